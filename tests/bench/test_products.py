"""Operations are counted as often as they run, in the precision in which they run: numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from gla_jax.bench.products import PARTS, REST, Way, count_products
from gla_jax.checkpoints.model_folder import abstract_params
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.pipeline import SegmenterParams, segment_logits
from gla_jax.predict import cost
from gla_jax.towers.clip import ClipImage
from tests.small_models import IMAGE, VFM

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
ONE = 2 * 8 * 8 * 8  # operations of X @ X


def counted(function, *arguments, platform="gpu"):
    return count_products(jax.make_jaxpr(function)(*(arguments or (X,))).jaxpr, platform)


def total(function, *arguments):
    return sum(counted(function, *arguments).flops.values())


def while_loop(x, start=2, end=7):
    return lax.while_loop(lambda state: state[0] < end, lambda state: (state[0] + 1, state[1] @ x), (start, x))[1]


def branch(x):
    return lax.cond(x[0, 0] > 0, lambda: x @ x @ x, lambda: x)


def kernel(x):
    from jax.experimental import pallas as pl

    def body(x_ref, o_ref):
        o_ref[...] = jnp.dot(x_ref[...], x_ref[...])

    return pl.pallas_call(body, out_shape=X, grid=(3, 2))(x)


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda x: x @ x, 1),
        (lambda x: lax.scan(lambda c, _: (c @ x, None), x, length=5)[0], 5),
        (
            lambda x: lax.scan(lambda c, _: (lax.scan(lambda d, _: (d @ x, None), c, length=3)[0], None), x, length=4),
            12,
        ),
        (lambda x: lax.scan(jax.checkpoint(lambda c, _: (c @ x, None)), x, length=5)[0], 5),
        (lambda x: lax.map(lambda row: row @ x, x[:, None]), 1),
        (lambda x: jax.jit(jax.jit(lambda y: y @ y))(x), 1),
        (lambda x: lax.fori_loop(0, np.int32(6), lambda _, y: y @ x, x), 6),
        (while_loop, 5),
        (branch, 2),
        (kernel, 6),
        (jax.vmap(lambda row: row @ jnp.ones((8, 8))), 1),
        (jax.custom_gradient(lambda x: (x @ x, lambda g: g)), 1),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(function, products):
    assert total(function) == products * ONE
    assert counted(function).unknown == 0


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    found = counted(lambda x: lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y @ x, x))
    assert (sum(found.flops.values()), found.unknown) == (ONE, 1)
    assert counted(lambda x: lax.while_loop(lambda y: y[0, 0] > 0, lambda y: y - x, x)).unknown == 0


def test_batches_and_long_sides_count():
    a, b = jax.ShapeDtypeStruct((4, 3, 5), jnp.float32), jax.ShapeDtypeStruct((4, 5, 7), jnp.float32)
    assert total(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b) == 2 * 4 * 3 * 5 * 7
    image, weights = jax.ShapeDtypeStruct((2, 3, 16, 16), jnp.float32), jax.ShapeDtypeStruct((6, 3, 4, 4), jnp.float32)
    assert total(lambda i, w: lax.conv(i, w, (4, 4), "VALID"), image, weights) == 2 * (2 * 6 * 4 * 4) * (3 * 4 * 4)


def test_inside_a_shard_map_a_device_counts_its_own_part():
    mesh = jax.make_mesh((4,), ("rows",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    rows, everywhere = PartitionSpec("rows"), PartitionSpec()

    def split(x):
        return jax.shard_map(lambda own, x: own @ x, mesh=mesh, in_specs=(rows, everywhere), out_specs=rows)(x, x)

    assert total(split) == ONE / 4


PRESET = lax.DotAlgorithmPreset


@pytest.mark.parametrize(
    ("precision", "gpu", "tpu"),
    [
        ("highest", Way("float32"), Way("bfloat16", 6)),
        ("high", Way("TF32"), Way("bfloat16", 3)),  # of a GPU one product: "high" is not split there
        (None, Way("TF32"), Way("bfloat16")),
        (("default", "highest"), Way("float32"), Way("bfloat16", 6)),
        (PRESET.TF32_TF32_F32_X3, Way("TF32", 3), Way("bfloat16", 6)),
        (PRESET.BF16_BF16_F32_X3, Way("bfloat16", 3), Way("bfloat16", 3)),
        (PRESET.BF16_BF16_F32_X6, Way("bfloat16", 6), Way("bfloat16", 6)),
        (PRESET.BF16_BF16_F32, Way("bfloat16"), Way("bfloat16")),
        (PRESET.F32_F32_F32, Way("float32"), Way("bfloat16", 6)),
        (PRESET.DEFAULT, Way("TF32"), Way("bfloat16")),
    ],
)
def test_precision_decides_the_unit_and_its_passes(precision, gpu, tpu):
    for platform, way in (("gpu", gpu), ("tpu", tpu)):
        found = counted(lambda x: jnp.matmul(x, x, precision=precision), platform=platform)
        assert found.flops == {(REST, way): ONE}
        assert found.passes == ONE * way.passes


def test_products_split_by_hand_and_bfloat16_ones_are_one_pass_each():
    """A mask in bfloat16 times two parts of the keys: two products, whatever precision says."""
    half = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)

    def split(mask, high, low):
        options = {"precision": "highest", "preferred_element_type": jnp.float32}
        return jnp.matmul(mask, high, **options) + jnp.matmul(mask, low, **options)

    for platform in ("gpu", "tpu"):
        assert counted(split, half, half, half, platform=platform).flops == {(REST, Way("bfloat16")): 2 * ONE}


def test_a_product_belongs_to_the_innermost_part_around_it():
    def image(x):
        with jax.named_scope("gla-attention"):

            def step(c, _):
                with jax.named_scope("gla-anchors"):
                    c = c @ x
                return c @ x @ x, None

            x = lax.scan(step, x, length=2)[0]
        with jax.named_scope("attention"):  # of a Linen module
            return x @ x

    found = counted(image, platform="tpu").flops
    assert {part: flops for (part, _), flops in found.items()} == {"anchors": 2 * ONE, "attention": 4 * ONE, REST: ONE}


def test_every_part_of_an_image_is_named_and_costs_what_the_formulas_say():
    """Without its scope a part would be missing in every plan. 6 windows of 16 tokens, two anchor iterations."""
    config = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
    pixels = jax.ShapeDtypeStruct((1, 3, 16, 16), jnp.float32)
    clip = jax.eval_shape(ClipImage(IMAGE).init, jax.random.key(0), pixels)["params"]
    params = SegmenterParams(clip, IMAGE, abstract_params(VFM), VFM)
    windows = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, cost.blank_windows(6, config)))
    text = jax.ShapeDtypeStruct((3, IMAGE.embed_dim), jnp.float32)
    program = jax.make_jaxpr(lambda p, w, t: segment_logits(p, w, t, config))(params, windows, text)
    found = count_products(program.jaxpr, "tpu").flops
    parts = dict.fromkeys(PARTS, 0.0)
    for (part, _), flops in found.items():
        parts[part] += flops
    widths = cost.model_widths(params, config)
    tokens = 6 * widths.tokens
    assert parts["anchors"] == 2 * 2 * (2 * tokens**2 * widths.features)
    both = cost.attention_flops(widths, 6, config.method)
    assert both <= parts["anchors"] + parts["attention"] < 1.2 * both  # resampling of the values beside it
    towers = 6 * (cost.clip_flops(IMAGE, 32) + cost.vfm_flops(VFM, 32))
    assert towers <= parts["towers"] < 1.1 * towers  # the column of ones that sums the weights
    assert parts["projection"] == cost.projection_flops(IMAGE, tokens, whole_block=False)
    assert parts["labels"] == 2 * tokens * IMAGE.embed_dim * 3
