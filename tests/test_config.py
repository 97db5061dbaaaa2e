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
    DEFAULT_PRESET,
    METHODS,
    Baseline,
    MethodConfig,
    SegmenterConfig,
    WindowConfig,
    on_platform,
    register_baseline,
    settings_as_dict,
    with_plain_numbers,
)
from gla_jax.eval.protocols import protocol
from gla_jax.settings.options import settings_from_options


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
        (lambda: MethodConfig(anchor_iterations=-1), "anchor_iterations is -1; give a whole number from 0 to 1000"),
        (lambda: MethodConfig(anchor_iterations=10**9), "give a whole number from 0 to 1000"),  # it would never end
        # Far outside these ranges float32 overflows: scores are NaN, as they are for NaN itself.
        (lambda: SegmenterConfig(logit_scale=1e39), r"logit_scale is 1e\+39; give a number above 0, up to 1000000"),
        (lambda: SegmenterConfig(logit_scale=10**400), "logit_scale is 1000.*; give a number above 0"),
        (lambda: MethodConfig(temperature=1e-50), "temperature is 1e-50; give a number from 1e-06 to 1000000"),
        (lambda: MethodConfig(dynamic_shift=1e38), r"dynamic_shift is 1e\+38; give a number from -1000000 to 1000000"),
        (lambda: MethodConfig(masking="false"), "masking is 'false'; give True or False"),  # as text it would be true
        (lambda: MethodConfig(skip_blocks=1), "skip_blocks is 1; give True or False"),
        (lambda: SegmenterConfig(tower_attention="no"), "tower_attention 'no' is not one of together, head_by_head"),
        (lambda: MethodConfig(baseline=["clip"]), "is not a baseline"),
        (lambda: SegmenterConfig(method="gla"), "method is 'gla'; give a MethodConfig"),
        *(
            (lambda wrong=wrong: SegmenterConfig(method=wrong), "method is .*; give a MethodConfig")
            for wrong in (math.nan, [], {}, MethodConfig, np.zeros(2), WindowConfig(), True)
        ),
        *(
            (lambda wrong=wrong, make=make, name=name: make(**{name: wrong}), f"{name} is .*; give .*number")
            for wrong in (
                [0.5],
                (0.5,),
                {},
                "0.5",
                b"1",
                1j,
                float,
                np.bool_(True),
                np.array(["a"]),
                np.array(math.nan),
            )
            for make, name in (
                (SegmenterConfig, "logit_scale"),
                (MethodConfig, "dynamic_scale"),
                (MethodConfig, "anchor_iterations"),
                (WindowConfig, "short_side"),
            )
        ),
        (lambda: MethodConfig(shift=np.array([0.5, math.inf])), "shift is .*; give finite numbers"),
        (lambda: SegmenterConfig(dtype=np.array(["float32", "x"])), "dtype .* is not one of"),
        (lambda: SegmenterConfig(windows={"crop": 224}), "windows is .*; give a WindowConfig"),
        (lambda: MethodConfig(block_size=True), "block_size is True; give a whole number"),
        (lambda: MethodConfig(precision="exact"), "precision 'exact' is not one of highest, high, fast"),
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


def test_a_model_takes_plain_numbers_alone():
    """Arrays and trees of axes are settings, but what runs needs one finite number for each."""
    config = SegmenterConfig(MethodConfig(anchor_threshold=jnp.float32(0.5)), logit_scale=np.float32(40))
    plain = with_plain_numbers(config)
    assert plain == SegmenterConfig(MethodConfig(anchor_threshold=0.5), logit_scale=40.0)
    assert {type(plain.logit_scale), type(plain.method.anchor_threshold)} == {float}
    json.dumps(settings_as_dict(replace(config, windows=WindowConfig(crop=np.int64(224)))), allow_nan=False)
    for wrong, reason in (
        (jnp.array([0.1, 0.2]), "anchor_threshold is Array.*; give a number"),
        (None, "anchor_threshold is None; give a number"),
        (jnp.float32(jnp.nan), "anchor_threshold is nan; give a finite number"),
    ):
        with pytest.raises(ValueError, match=reason):
            with_plain_numbers(SegmenterConfig(MethodConfig(anchor_threshold=wrong)))
    for wrong in ({}, "gla", MethodConfig()):
        with pytest.raises(ValueError, match="give a SegmenterConfig"):
            with_plain_numbers(wrong)


def test_the_platform_fills_in_what_is_not_set_and_nothing_else():
    cpu, gpu = (on_platform(SegmenterConfig(tower_batch=7), platform) for platform in ("cpu", "gpu"))
    assert (cpu.tower_batch, cpu.tower_attention, cpu.method.block_size, cpu.method.skip_blocks) == (
        7,
        "head_by_head",
        512,
        True,
    )
    assert (gpu.tower_batch, gpu.tower_attention, gpu.method.block_size, gpu.method.skip_blocks) == (
        7,
        "chunked",
        4096,
        False,
    )
    assert on_platform(cpu, "gpu") == cpu
    assert (cpu.method.precision, gpu.method.precision) == ("highest", "high")
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
        ({"pairs": 3}, 'each is two of "queries" and "keys"'),
        ({"pairs": "queries"}, 'each is two of "queries" and "keys"'),
        ({"features": ["keys"], "gla": "gla-mine"}, "choose from vfm, queries, keys, dinoiser"),
        ({"neighbourhood": math.nan}, "neighbourhood of mine is nan; give a finite number"),
        ({"whole_block": "no"}, "whole_block of mine is 'no'; give True or False"),
        ({"name": None}, "None cannot name a method"),
        ({"features": ("dino",), "gla": "gla-mine"}, "choose from vfm, queries, keys, dinoiser"),
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


def test_a_preset_names_numbers_and_a_protocol_counts_them():
    """`centred` is another protocol: its figures never stand beside those of the published numbers."""
    config = settings_from_options(preset="448-336-112+centred")
    assert (config.windows.short_side, config.method.calibration, config.method.anchor_threshold) == (
        448,
        "centred",
        0.9,
    )
    assert settings_from_options(preset="centred").method.temperature == 0.05
    rows = {name: protocol("camvid", name) for name in (DEFAULT_PRESET, "rho-0.6", "centred")}
    assert len({row.sha256 for row in rows.values()}) == 3
    assert rows["centred"].config("gla").method == settings_from_options(preset="centred").method
    with pytest.raises(ValueError, match="not centred or none"):
        MethodConfig(calibration="mean")
