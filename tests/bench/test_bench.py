"""gla-jax bench and what it says: counted operations are those of the compiled programs, and the report is complete."""

import json
import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax import config as settings
from gla_jax.attention.attend import aggregate_values
from gla_jax.bench import timing
from gla_jax.bench.measure import FORMAT
from gla_jax.bench.options import read_options
from gla_jax.bench.parts import CLIP_BASE, DINO_BASE, random_params
from gla_jax.cli import main
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.pipeline import SegmenterParams, encode_windows
from gla_jax.predict import cost
from gla_jax.support.errors import UserError
from gla_jax.towers.clip import ClipImageSpec
from gla_jax.towers.dino import DinoSpec
from tests.small_models import random_pair

CLIP = ClipImageSpec(64, 16, width=96, depth=3, num_heads=3, mlp_width=384, embed_dim=48)
VFM = DinoSpec(64, 8, width=64, depth=3, num_heads=2, mlp_width=256)
CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=64, stride=32), tower_batch=1)


@pytest.fixture(autouse=True)
def _small_ceiling(monkeypatch):
    monkeypatch.setitem(timing.CEILING_SIZES, "cpu", (64,))


def counted(function, *arguments):
    """XLA's own count of a program that runs everything once."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, random_params(CLIP, VFM))


@pytest.mark.parametrize("method", ["vanilla", "proxyclip"])
def test_tower_operations_are_those_of_the_program(params, method, monkeypatch):
    """XLA also counts LayerNorm, softmax and activations, which the formulas leave out: up to a sixth at this width."""
    # A loop counts once however often it runs.
    monkeypatch.setattr(jax.lax, "map", lambda f, xs, **_: jax.vmap(f)(xs))
    config = replace(CONFIG, method=METHODS[method])
    found = counted(encode_windows, params, cost.blank_windows(1, config), config)
    vfm = cost.vfm_flops(VFM, 64) if config.method.reads_vfm else 0
    formula = cost.clip_flops(CLIP, 64) + vfm
    assert formula < found < 1.2 * formula


def test_attention_operations_are_those_of_the_dense_program():
    """What XLA counts beyond the products are masks and softmax: N^2 each, against 2 N^2 D."""
    windows, tokens, width = 3, 64, 64
    rng = np.random.default_rng(0)
    features, values = (jnp.asarray(rng.normal(size=(windows, tokens, width)), jnp.float32) for _ in range(2))
    method = replace(METHODS["gla"], attention="dense")
    found = counted(aggregate_values, features, values, jnp.ones(windows, bool), method)
    formula = cost.attention_flops(cost.Widths(tokens, 16, width, width), windows, method)
    assert formula < found < 1.15 * formula


def test_cost_grows_with_the_square_of_the_windows(params):
    """What is said before a long run must hold for images of other sizes than the measured piece."""
    widths = cost.model_widths(params, CONFIG)
    few, many = (cost.attention_flops(widths, count, CONFIG.method) for count in (10, 100))
    assert many == pytest.approx(100 * few)
    found = cost.estimate(params, CONFIG, 100)
    assert found.tokens == 6400
    assert found.flops == cost.image_flops(params, 100, CONFIG)
    assert found.seconds > 0
    assert "6,400 tokens" in str(found)


def test_seconds_of_windows_that_stay_alone_grow_with_their_number(params, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(cost.time, "perf_counter", lambda: float(next(clock)))  # every step takes a second
    alone = replace(CONFIG, method=METHODS["proxyclip"], tower_batch=2)
    assert cost.estimate(params, alone, 100).seconds == 50


@pytest.mark.parametrize(("linear", "quadratic"), [(5, 7), (600, 0.1), (0, 7), (5, 0)])
def test_what_every_query_costs_by_itself_is_not_squared(params, monkeypatch, linear, quadratic):
    """In a small image most of the attention's time is such: squared, an image of one minute was said to take eight."""

    def steps(params, config, n):
        halves = (linear * n + quadratic * n**2) / 2
        return np.array([*[3] * n, halves, halves, *[2] * n])  # towers, anchors, attention, projection

    monkeypatch.setattr(cost, "_step_seconds", steps)
    found = cost.estimate(params, replace(CONFIG, tower_batch=2), 100).seconds
    assert found == pytest.approx((3 + 2 + linear) * 50 + quadratic * 50**2)


# Operations of an image of 12 windows of the published pair, in TFLOP, as release 0.1 counted them.
FORMULAS = {
    "gla": 3.104735588,
    "gla-on-clip-keys": 0.450590847,
    "gla-sclip": 0.523769131,
    "clip": 0.423235731,
    "maskclip": 0.399608820,
    "sclip": 0.424666386,
    "clearclip": 0.401039475,
    "proxyclip": 2.311681831,
    "proxyclip-clip": 0.401024987,
}


@pytest.mark.parametrize("method", FORMULAS)
def test_formulas_stay(method):
    params = SegmenterParams({}, CLIP_BASE, {}, DINO_BASE)
    assert cost.image_flops(params, 12, SegmenterConfig(METHODS[method])) / 1e12 == pytest.approx(FORMULAS[method])


def test_the_command_leaves_a_table_a_record_and_a_picture(tmp_path, capsys):
    model = random_pair(tmp_path / "model")
    options = ["--size", "48x64", "--crop", "32", "--stride", "16", "--prompts", "3", "--repeats", "1"]
    options += ["--sweep", "--max-windows", "4", "--devices", "2", "--out", str(tmp_path / "out")]
    assert main(["bench", "--model", str(model), *options]) == 0
    page = capsys.readouterr().out
    assert "| image" in page
    content = json.loads((tmp_path / "out/bench.json").read_text())
    above = any(row["share_of_ceiling"] > 1 for row in content["parts"] + content["sweep"])
    assert content["ceiling"]["exceeded"] == above == ("the ceiling was measured too low" in page)
    assert content["format"] == FORMAT
    rows = {(row["part"], row["name"]): row for row in content["parts"]}
    forms = {("attention", form) for form in ("dense", "blockwise", "ring")}
    assert forms | {("towers", "CLIP"), ("towers", "features"), ("labels", "stitching")} <= set(rows)
    steps = {"labels alone", "labels, pruning", "labels, margin", "labels, 16 masks", "features, no classes"}
    assert {name for part, name in rows if part == "steps"} == steps | {
        "blockwise",
        "blockwise, merge_overlaps True",
        "blockwise, calibration centred",
    }
    for row in content["parts"] + content["sweep"]:
        assert row["seconds_median"] > 0
        assert row["flops_per_second"] > 0
        assert math.isclose(row["images_per_second"], 1 / row["seconds_median"])
    assert {row["windows"] for row in content["sweep"]} == {1, 2, 4}
    with Image.open(tmp_path / "out/bench.png") as picture:
        assert picture.width > 500


def test_other_dtypes_are_compared_with_float32(tmp_path, capsys):
    """Speed in bfloat16 is worth nothing without what it costs in accuracy."""
    model = random_pair(tmp_path / "model")
    options = ["--parts", "labels", "--size", "48x64", "--crop", "32", "--stride", "16", "--repeats", "1"]
    assert main(["bench", "--model", str(model), *options, "--dtype", "bfloat16", "--out", str(tmp_path / "out")]) == 0
    assert "Cosine to float32 towers: CLIP's values 0.99" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/bench.json").read_text())["agreement"]
    for name in ("values", "features", "joint"):
        assert 0.9 < found[name]["least"] < found[name]["mean"] < 1 - 1e-7
    assert 0.5 < found["labels"] <= 1


def test_what_does_not_fit_is_not_run_and_marked(tmp_path, monkeypatch):
    """The sweep shows where the dense form stops instead of taking the machine down with it."""
    small = settings.PLATFORMS["cpu"]._replace(block_size=64)
    monkeypatch.setitem(settings.PLATFORMS, "cpu", small)  # as small beside 512 tokens as 512 beside a large image
    model = random_pair(tmp_path / "model")
    limit = str(400_000 / 2**30)
    options = ["--parts", "attention", "--size", "48x64", "--crop", "32", "--stride", "16", "--repeats", "1"]
    options += ["--sweep", "--max-windows", "32", "--memory-limit", limit, "--out", str(tmp_path / "out")]
    assert main(["bench", "--model", str(model), *options]) == 0
    rows = json.loads((tmp_path / "out/bench.json").read_text())["sweep"]
    windows = {form: [row["windows"] for row in rows if row["name"] == form] for form in ("dense", "blockwise")}
    assert windows["blockwise"] == [1, 2, 4, 8, 16, 32]
    assert [(row["name"], row["windows"]) for row in rows if row["stopped"]] == [("dense", windows["dense"][-1])]
    assert all(row["seconds_median"] is None for row in rows if row["stopped"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "336"}, "'336' is not HEIGHTxWIDTH"),
        ({"parts": "towers,legs"}, "legs"),
        ({"memory_limit": -1.0}, "not an amount of memory"),
        ({"memory_limit": math.nan}, "memory limit nan is not an amount of memory"),
        ({"memory_limit": math.inf}, "memory limit inf is not an amount of memory"),
        ({"dtype": "float16"}, "float16"),
    ],
)
def test_a_wrong_option_is_one_sentence(options, message):
    given = {"model": "random", "size": "336x504", "dtype": "float32", "parts": "all"} | options
    with pytest.raises(UserError, match=message):
        read_options(**given)
