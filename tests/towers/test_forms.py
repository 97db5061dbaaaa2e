"""Every form of the towers' attention, and blocks that are scanned, compute what the plain tower computes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from gla_jax.towers import attention
from gla_jax.towers.attention import QKV, multi_head_attention
from gla_jax.towers.clip import ClipImage, ClipText
from gla_jax.towers.dino import DinoV2Spec
from gla_jax.towers.dinov3 import DinoV3Spec
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import stack_blocks, unstack_blocks
from tests.towers.test_layers import CLIP, DINO, DINOV2, IMAGE, TEXT, pixels, random_params

CAUSAL = jnp.tril(jnp.ones((13, 13), bool))
PADDED = jnp.broadcast_to(jnp.arange(13)[None, None] < jnp.array([[[9]], [[4]]]), (2, 13, 13))  # of each text its own
DINOV3 = DinoV3Spec(32, 8, width=32, depth=3, num_heads=4, mlp_width=48, registers=2)
GATED = DinoV2Spec(28, 14, width=32, depth=3, num_heads=4, mlp_width=48, activation="swiglu", registers=2)


def random_qkv(batch=2, tokens=13, width=48, dtype=jnp.float32):
    return QKV(*(pixels(3, batch, tokens, width).astype(dtype)))


@pytest.mark.parametrize("mask", [None, CAUSAL, PADDED], ids=["all", "causal", "padded"])
@pytest.mark.parametrize(
    ("form", "chunk"),
    [
        ("head_by_head", 2**26),
        ("chunked", 2**26),  # all six heads in one chunk
        ("chunked", 4 * 2 * 13 * 13 * 4),  # the scores of four heads: three at a time, since four do not divide six
        ("chunked", 4 * 2 * 13 * 5),  # five queries of one head: three parts, two rows of padding
        ("chunked", 1),
    ],
)
def test_every_form_gives_the_same_values_and_gradients(form, chunk, mask, monkeypatch):
    qkv = random_qkv()
    expected = multi_head_attention(qkv, 6, mask)
    slopes = jax.grad(lambda given: jnp.square(multi_head_attention(given, 6, mask)).sum())(qkv)
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk)
    attend = jax.jit(partial(multi_head_attention, num_heads=6, mask=mask, form=form))
    np.testing.assert_allclose(attend(qkv), expected, atol=2e-6)
    for ours, plain in zip(jax.grad(lambda given: jnp.square(attend(given)).sum())(qkv), slopes, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


def largest_array(jaxpr):
    """Numbers of the largest array that a traced program makes, inner programs included."""
    inner = (value for equation in jaxpr.eqns for value in jax.tree.leaves(equation.params, is_leaf=is_program))
    made = (out.aval.size for equation in jaxpr.eqns for out in equation.outvars)
    return max(*made, *(largest_array(getattr(value, "jaxpr", value)) for value in inner if is_program(value)), 0)


def is_program(value):
    return isinstance(value, Jaxpr | ClosedJaxpr)


def test_chunks_never_hold_the_scores_of_all_heads(monkeypatch):
    """At crop 448 with patches of 8 they would take 7.6 GB a layer."""
    monkeypatch.setattr(attention, "CHUNK_BYTES", 2**18)
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, 256, 64), x.dtype), random_qkv())
    largest = {
        form: largest_array(jax.make_jaxpr(partial(multi_head_attention, num_heads=8, form=form))(given).jaxpr)
        for form in ("together", "head_by_head", "chunked")
    }
    scores = 2 * 8 * 256 * 256
    assert largest == {"together": scores, "head_by_head": scores // 8, "chunked": 2**18 // 4}


@pytest.mark.parametrize("mask", [None, CAUSAL], ids=["all", "causal"])
def test_the_fused_kernel_is_asked_for_the_same_attention(mask, monkeypatch):
    """XLA's own implementation of the function stands in for cuDNN's, which runs on GPUs alone."""
    asked = []

    def on_processor(*heads, implementation, **options):
        asked.append(implementation)
        with jax.numpy_dtype_promotion("standard"):
            return fused(*heads, implementation="xla", **options)

    fused = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", on_processor)
    qkv = random_qkv(dtype=jnp.bfloat16)
    expected = multi_head_attention(jax.tree.map(lambda x: x.astype(jnp.float32), qkv), 6, mask)
    found = multi_head_attention(qkv, 6, mask, form="cudnn")
    assert found.dtype == jnp.bfloat16
    assert asked == ["cudnn"]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02)


@pytest.mark.parametrize(
    ("dtype", "heads"), [(jnp.float32, 6), (jnp.bfloat16, 4)], ids=["float32", "heads of 12 numbers"]
)
def test_what_the_fused_kernel_does_not_take_goes_in_chunks(dtype, heads):
    qkv = random_qkv(dtype=dtype)
    fused, chunked = (multi_head_attention(qkv, heads, form=form) for form in ("cudnn", "chunked"))
    np.testing.assert_array_equal(fused.astype(jnp.float32), chunked.astype(jnp.float32))


def test_the_fused_kernel_is_in_the_program_for_gpus():
    tower = build_tower(DINO, jnp.bfloat16, attention_form="cudnn")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_params(DINO))
    traced = None
    try:
        traced = jax.jit(tower.apply).trace({"params": params}, pixels(1, 3, 32, 32))
    except RuntimeError as error:
        pytest.skip(f"JAX has no cuDNN here ({error}); install jax[cuda13]")
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert program.count("__cudnn$fmhaSoftmax") == DINO.depth


@pytest.mark.parametrize("form", ["together", "head_by_head", "chunked"])
@pytest.mark.parametrize("spec", [DINO, DINOV2, GATED, DINOV3], ids=["dino", "dinov2", "gated", "dinov3"])
def test_a_vision_tower_scans_its_stacked_blocks(spec, form):
    params, image = random_params(spec), pixels(2, 3, 56, 56)
    tower = build_tower(spec, attention_form=form)
    stacked = stack_blocks(params, spec.depth)
    assert not [name for name in stacked if name.startswith("blocks_")]
    plain, scanned = (jax.jit(tower.apply)({"params": given}, image) for given in (params, stacked))
    assert len(scanned.blocks) == spec.depth
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-5), scanned, plain)


def test_a_scanned_tower_holds_the_outputs_of_one_block():
    """The last block's output as a row of all outputs would keep those of every block in the device's memory."""
    params, image = stack_blocks(random_params(DINOV2), DINOV2.depth), pixels(2, 3, 56, 56)
    tower = build_tower(DINOV2, attention_form="chunked")
    last = jax.jit(lambda params, image: tower.apply({"params": params}, image).patch_tokens)
    shape = tower.apply({"params": params}, image).blocks[0].shape
    program = last.lower(params, image).compile().as_text()
    assert f"f32[{','.join(map(str, shape))}]" in program
    assert f"f32[{DINOV2.depth},{','.join(map(str, shape))}]" not in program


def test_clip_scans_all_but_its_open_last_block():
    params, image = random_params(CLIP)["image"], pixels(2, 3, 32, 40)
    tower, stacked = ClipImage(IMAGE), stack_blocks(params, IMAGE.depth - 1)
    assert [name for name in stacked if name.startswith("blocks_")] == ["blocks_1"]
    plain, scanned = (tower.apply({"params": given}, image, method="encode") for given in (params, stacked))
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), scanned, plain)
    joint = (tower.apply({"params": given}, plain.qkv.values, method="project") for given in (params, stacked))
    np.testing.assert_array_equal(*joint)


def test_text_stays_causal_when_its_blocks_are_scanned():
    params = random_params(CLIP)["text"]
    stacked = stack_blocks(params, TEXT.depth)
    rows = jnp.asarray([[5, 7, 49, 0, 0], [5, 7, 49, 8, 9]], jnp.int32)
    plain, scanned = (ClipText(TEXT).apply({"params": given}, rows) for given in (params, stacked))
    np.testing.assert_allclose(scanned, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scanned[1], scanned[0], rtol=1e-4, atol=1e-5)


def test_stacking_keeps_every_parameter():
    params = random_params(DINOV2)
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stack_blocks(params, DINOV2.depth)), params)


def test_scanned_parameters_differentiate_and_map():
    params, image = stack_blocks(random_params(DINO), DINO.depth), pixels(1, 3, 32, 32)

    def loss(params):
        return build_tower(DINO, attention_form="chunked").apply({"params": params}, image).patch_tokens.sum()

    slopes = jax.jit(jax.grad(loss))(params)
    plain = jax.jit(jax.grad(loss))(unstack_blocks(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), unstack_blocks(slopes), plain)
    two = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(two)[0], jax.jit(loss)(params), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("form", "barriers"), [("chunked", 2), ("head_by_head", 0)], ids=["tpu", "processor"])
def test_arrays_are_kept_apart_on_tpus_alone(form, barriers):
    """Behind the patches and in the first block's MLP: without, a TPU's program is larger and compiles longer."""
    tower = build_tower(IMAGE, attention_form=form)
    encode = partial(tower.apply, method="encode")
    params = random_params(CLIP)["image"]
    program = jax.jit(encode).trace({"params": params}, pixels(2, 3, 32, 40)).lower(lowering_platforms=("tpu",))
    assert program.as_text().count("optimization_barrier") == barriers
