"""Every matrix product runs in the precision that the settings name, whatever the process's default is."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.lax import Precision

import gla_jax
from gla_jax.bench.parts import random_params
from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.config import BASELINES, METHODS, PRECISIONS, SegmenterConfig, WindowConfig, on_platform
from gla_jax.distributed.mesh import make_mesh, place_params, place_parts, ring_features
from gla_jax.labels import label_map as labels
from gla_jax.pipeline import segment_features, segment_in_steps
from gla_jax.predict.cost import blank_windows
from gla_jax.predict.model import image_grid
from gla_jax.text import embeddings
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.towers.dinoiser import DinoiserSpec
from gla_jax.towers.dinov3 import DinoV3Spec
from gla_jax.towers.siglip import SiglipImageSpec, SiglipTextSpec
from gla_jax.towers.tips import TipsImageSpec
from tests import small_models
from tests.small_models import IMAGE, VFM, small_clip

DINOV2 = DinoV2Spec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)
SIGLIP = SiglipImageSpec(image_size=32, patch_size=16, width=8, depth=1, num_heads=2, mlp_width=8)
DINOV3 = DinoV3Spec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)
GATED = replace(DINOV2, activation="swiglu", registers=2)
SPECS = {"dino": VFM, "dinov2": DINOV2, "dinov2, gated": GATED, "dinov3": DINOV3}
TIPS = TipsImageSpec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)
SPECS["tipsv2, both roles"] = TIPS
# What products without a precision of their own would take: another one than the settings name.
OTHER = {"highest": "default", "high": "default", "fast": "highest"}
ROWS = jnp.ones((3, IMAGE.embed_dim)) / IMAGE.embed_dim**0.5


def pair(spec):
    """The towers of values and of features; one of TIPSv2 is both."""
    return (spec, None) if spec is TIPS else (IMAGE, spec)


def products(function, *arguments, other):
    """How many matrix products and convolutions of each kind a traced function has, inner functions included.

    A kind is "parts" for those of the attention, of 16 bits and added up in float32, else JAX's word for the precision.
    """
    with jax.default_matmul_precision(other):
        traced = jax.make_jaxpr(function)(*arguments)
    return Counter(precisions(traced.jaxpr))


def precisions(jaxpr):
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            of_sides = equation.params["precision"]
            (precision,) = set(of_sides) if isinstance(of_sides, tuple) else {of_sides}
            dtypes = {side.aval.dtype.name for side in equation.invars}
            if dtypes in ({"bfloat16"}, {"float16"}):
                assert (precision, equation.outvars[0].aval.dtype) == (Precision.DEFAULT, jnp.float32)
                yield "parts"
            else:
                yield precision and precision.name.lower()
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, Jaxpr | ClosedJaxpr):
                yield from precisions(getattr(inner, "jaxpr", inner))


def settings(method, precision, crop=32, **fields):
    """Settings of a method on a crop, with what depends on the platform as numbers."""
    method = replace(METHODS[method], precision=precision, **fields)
    return on_platform(SegmenterConfig(method, WindowConfig(None, crop, crop // 2)), "cpu")


def of_attention(method):
    """Products of parts that a blockwise program has: of T anchors, cosines and sums; then cosines and values."""
    if method.products == "highest" or not method.attends_by_features:
        return 0
    anchored = method.proxy_anchors or method.dynamic_scale is not None
    values = {"high": 2, "fast": 1}[method.products]  # two parts of the weights
    return len(BASELINES[method.baseline].features) * (2 * method.anchor_iterations * anchored + 1 + values)


def kinds(method):
    """Towers, projections and labels in full or in one pass; of the attention only means are always in full."""
    return {method.plain_precision} | ({"highest", "parts"} if of_attention(method) else set())


def assert_counts(found, method):
    assert set(found) == kinds(method)
    assert found["parts"] == of_attention(method)
    if method.products == "fast":
        assert found["highest"] == 2 * len(BASELINES[method.baseline].features) * method.attends_by_features


def test_products_of_inner_functions_are_seen():
    """Loops, branches, recomputation and custom gradients hide products from a plain look at the program."""

    @jax.custom_vjp
    def inner(x):
        return jnp.dot(x, x, precision="high")

    inner.defvjp(lambda x: (inner(x), x), lambda x, g: (g,))

    def function(x):
        x = jax.lax.map(jax.checkpoint(inner), x)
        x = jax.lax.cond(x.sum() > 0, lambda: jax.lax.map(jnp.transpose, x), lambda: x @ x)
        return jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: jax.jit(jnp.matmul)(x, x), x)

    found = products(function, jnp.ones((2, 4, 4)), other="highest")
    assert found == {"high": 1, "highest": 2}


CASES = [
    (method, spec)
    for method in METHODS
    for spec in SPECS
    if (METHODS[method].reads_vfm or spec == next(iter(SPECS)))
    and (not METHODS[method].stitches or isinstance(SPECS[spec], DinoSpec | DinoV2Spec))
]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("method", "spec"), CASES)
def test_the_jitted_call_of_the_readme(method, spec, precision):
    layers = DinoiserSpec(IMAGE.width, 6) if METHODS[method].reads_dinoiser else None
    clip, vfm = pair(SPECS[spec])
    params = random_params(replace(clip, depth=3) if layers else clip, vfm, dinoiser=layers)
    for form in ("blockwise", "dense") if precision == "highest" else ("blockwise",):
        config = settings(method, precision, attention=form)
        arguments = params, blank_windows(3, config), ROWS, config
        found = products(jax.jit(gla_jax.segment_logits), *arguments, other=OTHER[precision])
        assert found.total() > 10
        assert_counts(found, config.method)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["gla", "clip"])
def test_the_jitted_call_on_siglip(method, precision):
    config = settings(method, precision)
    arguments = random_params(SIGLIP, VFM), blank_windows(3, config), ROWS, config
    assert_counts(products(jax.jit(gla_jax.segment_logits), *arguments, other=OTHER[precision]), config.method)


@pytest.mark.parametrize("spec", SPECS)
def test_resized_positions_keep_the_highest(spec):
    """They are constants of the weights, resized once a program: nothing is gained by rounding them."""
    config = settings("gla", "highest", crop=48)
    arguments = random_params(*pair(SPECS[spec])), blank_windows(3, config), ROWS, config
    found = products(jax.jit(gla_jax.segment_logits), *arguments, other="default")
    assert set(found) == {"highest"}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", ["gla", "gla-clearclip", "proxyclip", "clip"])
def test_what_a_model_runs(method, precision):
    """One image, a batch, an image in steps and a mesh of devices, then the labels."""
    params, config = random_params(IMAGE, VFM), settings(method, precision)
    windows, mesh = blank_windows(8, config), make_mesh()
    batch = jax.tree.map(lambda leaf: np.stack([leaf, leaf]), windows)
    on_mesh = place_parts(jax.tree.map(lambda leaf: leaf[None], windows), mesh)
    grid = image_grid((40, 60), config.windows)
    _, _, rows, columns = next(labels.layout(grid, 16, (40, 60)).tiles())
    logits, of_prompt = jnp.ones((grid.count, 16, 3)), np.arange(3, dtype=np.int32)
    plain = config.method.plain_precision
    scalars = np.int32(2), of_prompt, np.float32(40), np.float32(0), np.int32(0)
    programs = {
        "image": lambda: segment_features(params, windows, config),
        "batch": lambda: jax.vmap(segment_features, (None, 0, None))(params, batch, config),
        "steps": lambda: segment_in_steps(params, windows, config),
        "ring": lambda: ring_features(place_params(params, mesh), on_mesh, config, mesh),
        "text": lambda: labels._token_logits(jnp.ones((1, 16, IMAGE.embed_dim)), ROWS, None, plain),
        "labels": lambda: labels.label_tile(logits, rows, columns, *scalars, thresholded=True, precision=plain),
        "scores": lambda: labels._across_columns(logits, rows, columns, precision=plain),
    }
    for name, program in programs.items():
        found = products(program, other=OTHER[precision])
        assert found, name
        if name in ("image", "batch"):
            assert_counts(found, config.method)
        else:  # a ring and steps have some products in several programs
            assert set(found) == (kinds(config.method) if name in ("ring", "steps") else {plain}), name


@pytest.mark.parametrize("text", [small_clip().text, SiglipTextSpec(5, 8, 8, 1, 2, 8, 8, 1, 0)], ids=["clip", "siglip"])
def test_the_text_tower_runs_in_the_highest(text):
    """Its features are computed once for a model and kept on disk: they belong to no setting."""
    weights = small_models.random_params(ClipSpec(IMAGE, text), 0)["text"]
    found = products(lambda: embeddings._encode(weights, np.ones((2, 8), np.int32), spec=text), other="default")
    assert set(found) == {"highest"}


def test_settings_load_no_towers():
    """A command that only reads settings must answer at once."""
    loaded = "import sys, gla_jax.config; print(*(n for n in sys.modules if n.startswith(('flax', 'gla_jax.towers'))))"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "\n"
