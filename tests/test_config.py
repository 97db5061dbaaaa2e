"""Settings are refused where they are made, whoever makes them, and a baseline of your own becomes a method."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax import config
from gla_jax.config import (
    BASELINES,
    METHODS,
    Baseline,
    MethodConfig,
    SegmenterConfig,
    WindowConfig,
    on_platform,
    register_baseline,
    settings_as_dict,
)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SegmenterConfig(logit_scale=math.nan), "logit_scale is nan; give a finite number"),
        (lambda: SegmenterConfig(logit_scale=0), "logit_scale is 0; give a number above 0"),
        (lambda: SegmenterConfig(threshold=1.5), "threshold is 1.5; give a number from 0 to 1"),
        (lambda: SegmenterConfig(threshold="0.5"), "threshold is '0.5'; give a number"),
        (lambda: SegmenterConfig(dtype="float16"), "dtype 'float16' is not one of float32, bfloat16"),
        (lambda: SegmenterConfig(tower_batch=2.5), "tower_batch is 2.5; give a whole number"),
        (lambda: MethodConfig(temperature=0), "temperature is 0; give a number above 0"),
        (lambda: MethodConfig(mask_temperature=-1.0), "mask_temperature is -1.0; give a number above 0"),
        (lambda: MethodConfig(anchor_threshold=np.float32("nan")), "anchor_threshold is nan; give a finite number"),
        (lambda: MethodConfig(dynamic_scale=math.inf), "dynamic_scale is inf; give a finite number"),
        (lambda: MethodConfig(anchor_iterations=1.0), "anchor_iterations is 1.0; give a whole number"),
        (lambda: MethodConfig(anchor_iterations=-1), "anchor_iterations is -1; give a whole number of 0 or more"),
        (lambda: MethodConfig(block_size=True), "block_size is True; give a whole number"),
        (lambda: MethodConfig(precision="exact"), "precision 'exact' is not one of highest, high, default"),
        (lambda: MethodConfig(attention="streaming"), "attention 'streaming' is not blockwise, dense or ring"),
        (lambda: WindowConfig(short_side=math.nan), "short_side is nan; give a whole number"),
        (lambda: WindowConfig(short_side=1.5), "short_side is 1.5; give a whole number"),
        (lambda: WindowConfig(crop=None), "crop is None; give a whole number"),
        (lambda: WindowConfig(stride=300), "stride 300 is larger than crop 224"),
        (lambda: WindowConfig(short_side=3000), "short_side 3000 is larger than 2048, the most that the other side"),
        (lambda: WindowConfig(crop=10**40), "give a whole number from 1 to 65536"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_where_it_is_made(make, reason):
    """NaN would go through to scores and into results.json, which would then not be JSON."""
    with pytest.raises(ValueError, match=reason.replace("(", r"\(")):
        make()


def test_arrays_tracers_and_trees_of_axes_are_settings_too():
    """Sweeps and gradients put arrays, tracers and axes where numbers are."""
    swept = MethodConfig(anchor_threshold=jnp.array([0.1, 0.2]))
    axes = replace(jax.tree.map(lambda _: None, MethodConfig()), anchor_threshold=0)
    found = jax.vmap(lambda method: method.anchor_threshold * 2, in_axes=(axes,))(swept)
    np.testing.assert_allclose(found, [0.2, 0.4])
    slope = jax.grad(lambda value: MethodConfig(temperature=value).temperature ** 2)(jnp.float32(3.0))
    assert slope == 6.0


def test_the_platform_fills_in_what_is_not_set_and_nothing_else():
    cpu, gpu = (on_platform(SegmenterConfig(tower_batch=7), platform) for platform in ("cpu", "gpu"))
    assert (cpu.tower_batch, cpu.head_by_head, cpu.method.block_size, cpu.method.skip_blocks) == (7, True, 512, True)
    assert (gpu.tower_batch, gpu.head_by_head, gpu.method.block_size, gpu.method.skip_blocks) == (7, False, 4096, False)
    assert on_platform(cpu, "gpu") == cpu
    numbers = settings_as_dict(cpu)
    assert numbers["method"]["block_size"] == 512  # as results.json shows it
    json.dumps(numbers, allow_nan=False)


@pytest.fixture
def tables(monkeypatch):
    """Tables of their own, so that a test's baseline does not stay."""
    monkeypatch.setattr(config, "BASELINES", BASELINES | {})
    monkeypatch.setattr(config, "METHODS", METHODS | {})
    return config


def test_a_registered_baseline_is_a_method_and_so_is_gla_on_it(tables):
    row = Baseline("mine", "Mine", (("keys", "keys"),), gla="gla-mine", features=("keys",))
    register_baseline(row)
    assert tables.METHODS["mine"] == tables.without_gla("mine")
    assert tables.METHODS["gla-mine"] == MethodConfig(baseline="mine")
    with pytest.raises(ValueError, match="'mine' names a method already"):
        register_baseline(row)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "My Method"}, "'My Method' cannot name a method; use small letters, digits and hyphens"),
        ({"pairs": (("queries", "values"),)}, 'each is two of "queries" and "keys"'),
        ({"features": ("dino",), "gla": "gla-mine"}, 'choose from "vfm", "queries" and "keys"'),
        ({"features": ("keys",)}, "needs both gla and features, or neither"),
        ({"attention": 3}, "is a function in place of pairs"),
        ({"attention": lambda qkv, num_heads: qkv.values, "pairs": (("keys", "keys"),)}, "in place of pairs"),
        ({"name": "gla"}, "'gla' names a method already"),
        ({"name": "gla-clip"}, "'gla-clip' names a method already"),
    ],
)
def test_a_wrong_row_is_refused_in_one_sentence(tables, fields, reason):
    with pytest.raises(ValueError, match=reason):
        register_baseline(Baseline(**{"name": "mine", "title": "Mine"} | fields))
    assert "mine" not in tables.METHODS
