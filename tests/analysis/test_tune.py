"""Tuning: gradients repair a spoilt setting, what is held out is measured, and a preset is what segment takes."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis import encoded, tune
from gla_jax.cli import main
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.eval import runner
from gla_jax.eval.datasets.dataset import Example, open_dataset
from gla_jax.eval.protocols import protocol
from gla_jax.images.windows import window_grid
from gla_jax.labels.label_map import synonyms
from gla_jax.labels.targets import UNLABELLED, token_targets
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import METHOD_NUMBERS, NUMBERS, number, read_preset, settings_from_options
from gla_jax.support.errors import UserError
from gla_jax.tiny_world.scenes import render
from tests.small_models import random_pair

# Two windows an image: as many tokens as a test can afford.
ROW = protocol("tiny-world")
ROW = replace(ROW, settings=replace(ROW.settings, windows=WindowConfig(short_side=224, crop=224, stride=112)))


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("tiny-world", ROW.config("gla"))


@pytest.fixture(scope="module")
def scenes():
    made = [render(10**9 + seed, 224, 300, split="train") for seed in range(2)]
    return [Example(f"scene-{index}", scene.image, scene.labels) for index, scene in enumerate(made)]


@pytest.fixture(scope="module")
def problem(segmenter):
    return tune.Problem.of(segmenter, ROW)


def test_coordinates_are_undone():
    config = ROW.config("gla")
    found = tune.configured(tune.coordinates(replace(config, threshold=0.3)), config, background=True)
    for name in METHOD_NUMBERS:
        assert float(getattr(found.method, name)) == pytest.approx(getattr(config.method, name), rel=1e-5)
    assert float(found.logit_scale) == pytest.approx(40, rel=1e-5)
    assert float(found.threshold) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{"dynamic_shift": 0.0, "dynamic_scale": 0.0}, {"anchor_threshold": 1.0}, {"anchor_threshold": -1.0}]
)
def test_a_start_at_the_end_of_a_range_is_one_that_can_move(changes):
    """A preset may hold 0, where a logarithm is infinite: every step from there would be NaN."""
    config = ROW.config("gla")
    config = replace(config, method=replace(config.method, **changes))
    found = tune.configured(tune.coordinates(config), config, background=True)
    for name, value in changes.items():
        assert float(getattr(found.method, name)) == pytest.approx(value, abs=2e-3)


def test_a_folder_with_a_background_fits_the_threshold(segmenter, problem, monkeypatch):
    """Class 0 is the background by its name in a folder of one's own; from 0 the threshold could not move."""
    own = tune.Problem.of(segmenter, replace(ROW, benchmark="folder", classes=("background", *ROW.classes[1:])))
    seen = []

    def slope(tuned, _, __, background):
        seen.append((background, float(jax.nn.sigmoid(tuned.threshold))))
        return 1.0, jax.tree.map(jnp.ones_like, tuned)

    monkeypatch.setattr(tune, "_slope", slope)
    monkeypatch.setattr(tune.Problem, "inputs", lambda *_: ())
    found = [tune.fit(one, [None], segmenter.config, steps=1)[0].threshold for one in (own, problem)]
    assert seen[0] == (True, pytest.approx(tune.FIRST_THRESHOLD))
    assert not seen[1][0]
    assert found[0] == pytest.approx(tune.FIRST_THRESHOLD, rel=0.1)
    assert found[1] == 0.0


def test_targets_are_the_labels_under_token_centres():
    label = np.arange(8 * 12).reshape(8, 12).astype(np.uint8)
    label[0, 0] = 255
    grid = window_grid(16, 24, WindowConfig(None, crop=16, stride=8))  # twice the label's size
    targets = token_targets(label, grid, (3, 4), ignore=255)
    np.testing.assert_array_equal(targets[0], [label[2, 2], label[2, 6], label[6, 2], label[6, 6]])
    np.testing.assert_array_equal(targets[1], [label[2, 6], label[2, 10], label[6, 6], label[6, 10]])
    assert (targets[2] == UNLABELLED).all()
    fine = token_targets(label, grid, (2, 64), ignore=255)
    assert fine[0, 0] == UNLABELLED


def test_tokens_below_the_threshold_count_for_the_background():
    logits = jnp.asarray([[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0]]])  # unsure, then sure of class 1
    config = SegmenterConfig(logit_scale=1.0, threshold=0.6)
    found = jnp.exp(tune.class_log_probabilities(logits, jnp.arange(3)[:, None], config, background=True))
    np.testing.assert_allclose(found[:, 0, 0], [1, 0, 0], atol=1e-3)
    np.testing.assert_allclose(found[:, 0, 1], [0, 1, 0], atol=1e-3)
    off = tune.class_log_probabilities(logits, jnp.arange(3)[:, None], config, background=False)
    np.testing.assert_allclose(jnp.exp(off)[:, 0, 0], 1 / 3, rtol=1e-6)


def test_a_class_is_its_best_synonym():
    logits = jnp.asarray([[[1.0, 3.0, 2.0]]])
    prompts = jnp.asarray(synonyms(np.array([0, 0, 1]), 2))
    found = tune.class_log_probabilities(logits, prompts, SegmenterConfig(logit_scale=2.0), False)
    np.testing.assert_allclose(found[:, 0, 0], jax.nn.log_softmax(2.0 * logits[0, 0])[jnp.asarray([1, 2])], rtol=1e-5)


def test_a_token_that_is_quite_wrong_still_pulls():
    """Far from its class a probability is 0 in float32: its logarithm must keep a slope, or nothing is repaired."""

    def miss(scale, background):
        logits = jnp.asarray([[[0.0, 6.0, 0.0]]])
        config = SegmenterConfig(logit_scale=scale, threshold=0.1)
        return -tune.class_log_probabilities(logits, jnp.arange(3)[:, None], config, background)[2, 0, 0]

    for background in (False, True):
        assert float(jax.grad(miss)(40.0, background)) == pytest.approx(6.0, rel=1e-3)


def test_a_number_that_hardly_matters_hardly_moves(problem, segmenter, scenes):
    """Plain Adam moves a flat coordinate as far as a steep one, so that a preset would hold numbers out of noise. Here
    the slope of dynamic_scale is a hundredth of that of logit_scale."""
    images = [problem.labelled(scenes[0])]
    found = tune.fit(problem, images, segmenter.config, steps=8, learning_rate=0.15)[0]
    ends = tune.coordinates(found), tune.coordinates(segmenter.config)
    moved = tune.Tuned(*(abs(float(after - before)) for after, before in zip(*ends, strict=True)))
    assert moved.logit_scale > 0.3
    assert moved.dynamic_scale < moved.logit_scale / 3


def test_a_spoilt_rho_is_repaired(problem, segmenter, scenes):
    """Anchors over everything name every token alike; the gradient through the soft masks leads back, and the labels of
    the hard method show it. The logit scale cannot: it moves no label."""
    images = [problem.labelled(scenes[0])]
    spoilt = replace(segmenter.config, method=replace(segmenter.config.method, anchor_threshold=0.0))
    end, losses = tune.fit(problem, images, spoilt, steps=12, learning_rate=0.15)
    assert len(losses) == 12
    before, after = tune.figures(problem, images, (spoilt, end))
    assert end.method.anchor_threshold > 0.2
    assert after["miou"] > before["miou"] + 10
    assert after["loss"] < before["loss"]
    assert end.method.mask_temperature is None
    assert {type(leaf) for leaf in jax.tree.leaves(end)} == {float}


def test_figures_are_those_of_the_labels_that_segment_writes(problem, segmenter, scenes):
    from gla_jax.eval.metrics.areas import image_areas

    image = problem.labelled(scenes[0])
    (found,) = tune.figures(problem, [image], [segmenter.config])
    labels = segmenter(scenes[0].image, ROW.vocabulary).labels
    assert found["miou"] == pytest.approx(image_areas(labels, scenes[0].label, len(ROW.classes)).scores().miou)


def test_an_image_without_labels_is_named(problem, scenes):
    with pytest.raises(UserError, match="scene-1 has nothing labelled"):
        problem.labelled(scenes[1]._replace(label=np.full_like(scenes[1].label, 255)))


def test_only_methods_with_all_parts_are_tuned():
    with pytest.raises(UserError, match="only a method with anchors and dynamic normalisation"):
        tune.coordinates(SegmenterConfig(method=METHODS["proxyclip"]))


def test_images_are_spread_and_some_are_held_out():
    """Neighbours in a data set are often frames of one scene: fitted and held-out images must both cover it."""
    parts = tune.divide(100, 8, 0.25)
    assert sorted(parts["fitted"] + parts["held out"]) == [0, 14, 28, 42, 57, 71, 85, 99]
    assert parts["held out"] == (42, 99)
    assert [len(tune.divide(100, 2, share).get("held out", ())) for share in (0.0, 0.25, 0.5)] == [0, 1, 1]
    assert len(tune.divide(5, 8, 0.25)["fitted"]) == 4
    with pytest.raises(UserError, match="leaves none to fit on; give more with --images"):
        tune.divide(100, 1, 0.25)
    with pytest.raises(UserError, match="leaves none to fit on; label more"):
        tune.divide(1, 8, 0.25)


def test_the_scenes_to_fit_on_are_none_that_are_measured():
    """A figure on tiny-world's test scenes must not come from settings that were fitted to them."""
    test = open_dataset("tiny-world", None)
    fitting = tune.fitting_scenes(test)
    assert not set(fitting.ids) & set(test.ids)
    assert not np.array_equal(fitting.read(3).image, test.read(3).image)


def report(before, after):
    """A report of a fit whose held-out images have these figures."""
    ends = tuple({"miou": miou, "loss": loss} for miou, loss in (before, after))
    end = replace(SegmenterConfig(), logit_scale=33.0, threshold=0.2)
    images = {"fitted": ("a", "b"), "held out": ("c",)}
    return tune.Report(SegmenterConfig(), end, images, {"fitted": ends[::-1], "held out": ends}, (1.0, 0.5))


def test_worse_is_what_the_held_out_images_say():
    assert report((50, 1.0), (49, 0.5)).worse
    assert report((50, 1.0), (50, 1.1)).worse
    assert not report((50, 1.0), (50, 0.9)).worse
    assert not report((50, 1.0), (51, 1.1)).worse
    # A pixel more or less of a few images decides nothing: the loss does.
    assert not report((99.34, 1.0), (99.32, 0.5)).worse
    assert report((99.32, 1.0), (99.34, 1.1)).worse


def test_the_report_says_what_moved():
    assert list(report((50, 1.0), (49, 0.5)).lines()) == [
        "fitted   (2)   loss 0.500000 -> 1.000000   mIoU 49.000 -> 50.000",
        "held out (1)   loss 1.000000 -> 0.500000   mIoU 50.000 -> 49.000",
        "logit_scale      40 -> 33",
        "threshold        0 -> 0.2",
    ]


def test_a_preset_file_is_what_segment_takes(tmp_path):
    path = tmp_path / "mine.json"
    sizes = WindowConfig(short_side=560, crop=224, stride=112)
    found = report((50, 1.0), (60, 0.5))
    found = replace(found, end=replace(found.end, method=METHODS["gla-clearclip"], windows=sizes))
    found = replace(found, end=replace(found.end, method=replace(found.end.method, anchor_threshold=0.7)))
    tune.write_preset(path, found, "gla-clearclip", "proxyclip-prompts", {"benchmark": "folder"}, keep_start=False)
    config = settings_from_options(preset=str(path), method="gla-clearclip")
    assert config == found.end
    assert settings_from_options(preset=str(path), method="gla-clearclip", crop=336).windows.crop == 336
    with pytest.raises(UserError, match="is for the method gla-clearclip, not for gla; add --method gla-clearclip"):
        settings_from_options(preset=str(path))
    tune.write_preset(path, found, "gla", "sclip-prompts", {}, keep_start=True)
    assert settings_from_options(preset=str(path)) == SegmenterConfig()


GOOD = {
    "format": "gla-jax preset 1",
    "method": "gla",
    "windows": {"short_side": 48, "crop": 32, "stride": 16, "long_side": 2048},
    "numbers": {
        "anchor_threshold": 0.25,
        "dynamic_shift": 0.3,
        "dynamic_scale": 30,
        "logit_scale": 20.0,
        "threshold": 0.1,
    },
}
BAD = {
    "missing": (None, "cannot be read"),
    "not JSON": ("{", "is not JSON"),
    "not UTF-8": (b"\xff\xfe\x00", "is not JSON"),
    "another file": ("[]", "is not a preset of this program"),
    "without method": ({"method": None}, "is damaged"),
    "unknown size": ({"windows": {"side": 3}}, "is damaged"),
    "stride over crop": ({"windows": {"crop": 32, "stride": 64}}, "is damaged"),
    "text for a size": ({"windows": {"crop": "32"}}, "is damaged"),
    "a number more": ({"numbers": GOOD["numbers"] | {"temperature": 1.0}}, "other numbers than"),
    "rho above 1": ({"numbers": GOOD["numbers"] | {"anchor_threshold": 1.5}}, "anchor_threshold is 1.5"),
    "not a number": ({"numbers": GOOD["numbers"] | {"logit_scale": float("nan")}}, "it holds NaN"),
    "text for a number": ({"numbers": GOOD["numbers"] | {"threshold": "0.1"}}, "threshold is '0.1'"),
    "true for a number": ({"numbers": GOOD["numbers"] | {"dynamic_shift": True}}, "dynamic_shift is True"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_unusable_preset_is_one_sentence(tmp_path, name):
    content, reason = BAD[name]
    path = tmp_path / "mine.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(json.dumps(GOOD | content) if isinstance(content, dict) else content)
    with pytest.raises(UserError, match=reason) as caught:
        settings_from_options(preset=str(path))
    assert "\n" not in str(caught.value)


def test_segment_follows_a_preset_file(tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps(GOOD))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    given = ("--classes", "sand", "--classes", "water", "--background", "sand", "--preset", tmp_path / "mine.json")
    model, out = random_pair(tmp_path / "model"), tmp_path / "out"
    assert main(["segment", *map(str, (tmp_path / "photo.png", *given, "--model", model, "--out", out))]) == 0
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["method"]["anchor_threshold"] == 0.25
    assert (settings["logit_scale"], settings["threshold"], settings["windows"]["crop"]) == (20.0, 0.1, 32)


def test_the_command_encodes_once_and_writes_what_it_measured(tmp_path, capsys, monkeypatch):
    images = []

    def counted(*about):
        images.append(about)
        return encode(*about)

    def small(*about):
        dataset, row = open_benchmark(*about)
        return dataset, replace(row, settings=replace(row.settings, windows=ROW.windows))

    encode, open_benchmark = encoded.encode_image, runner.open_benchmark
    monkeypatch.setattr(encoded, "encode_image", counted)
    monkeypatch.setattr(runner, "open_benchmark", small)
    out = tmp_path / "preset.json"
    assert main(["tune", "--images", "2", "--hold-out", "0.5", "--steps", "1", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert len(images) == 2
    content = json.loads(out.read_text())
    for part in ("fitted", "held out"):
        before, after = (content["figures"][part][end] for end in ("start", "end"))
        line = f"loss {before['loss']:.6f} -> {after['loss']:.6f}   mIoU {before['miou']:.3f} -> {after['miou']:.3f}"
        assert line in said.out
        assert len(content["tuned_on"]["images"][part]) == 1
    assert content["holds"] == ("start" if "the fit is worse" in said.err else "fit")
    config, method, prompts = read_preset(out)
    assert (method, prompts) == ("gla", "sclip-prompts")
    assert {name: number(config, name) for name in NUMBERS} == content["numbers"]


@pytest.mark.parametrize("force", [False, True])
def test_a_fit_that_is_worse_is_kept_only_by_force(tmp_path, capsys, monkeypatch, force):
    monkeypatch.setattr(tune, "tune", lambda *_, **__: report((50, 1.0), (40, 0.5)))
    out = tmp_path / "preset.json"
    assert main(["tune", "--out", str(out), *(["--force"] if force else [])]) == 0
    assert "the fit is worse than the start" in capsys.readouterr().err
    assert read_preset(out).config.logit_scale == (33.0 if force else 40.0)


def test_mistakes_are_one_sentence(tmp_path, capsys):
    for arguments, reason in (
        (["--out", str(tmp_path / "preset.txt")], "does not end with .json"),
        (
            ["--method", "proxyclip", "--out", str(tmp_path / "a.json")],
            "name gla, gla-clearclip, gla-clip-dinoiser, gla-on-clip-keys, gla-ov-stitcher or gla-sclip",
        ),
        (["--images", "1", "--hold-out", "0.9", "--out", str(tmp_path / "a.json")], "leaves none to fit on"),
    ):
        assert main(["tune", *arguments]) == 2
        assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
