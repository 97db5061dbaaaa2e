"""Ablations: labels and figures as of every setting alone, the towers once an image, and one sentence a mistake."""

import csv
import json
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis import ablate, ablation, ablation_report, encoded
from gla_jax.cli import main
from gla_jax.config import BASELINES, NUMBER_SETTINGS, Baseline, SegmenterConfig, WindowConfig
from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.eval.runner import Run, measure, open_benchmark
from gla_jax.segmenter import Segmenter
from gla_jax.text.prompts import parse_classes
from gla_jax.towers.clip import ClipImage
from tests.small_models import random_pair

pytestmark = pytest.mark.filterwarnings("ignore:the model does not know")  # a random model knows a few words only
BASE = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
CLASSES = parse_classes(["sand; gravel", "water", "red cloth"])
NUMBERS = ["anchor_threshold=0.2,0.9", "dynamic_scale=5,60", "threshold=0,0.4", "logit_scale=5,40"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


def picture(seed, size=(48, 64)):
    """Patches of colour, so that tokens differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def segmenter(folder):
    """A random model whose queries lie at right angles to the mean token: otherwise one class takes every pixel."""
    made = Segmenter.from_pretrained(folder, BASE)
    features = np.asarray(made.window_features(picture(3))[0]).reshape(-1, 8)
    mean = features.mean(0) / np.linalg.norm(features.mean(0))
    bank = np.random.default_rng(0).normal(size=(len(CLASSES.prompts), 8))
    bank -= (bank @ mean)[:, None] * mean[None]
    bank = jnp.asarray(bank / np.linalg.norm(bank, axis=1, keepdims=True), jnp.float32)
    made.text_embeddings = lambda classes, templates=None: bank
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder benchmark of two images."""
    root = tmp_path_factory.mktemp("data")
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for seed in range(2):
        Image.fromarray(picture(seed)).save(root / f"images/{seed}.png")
        label = np.random.default_rng(seed).integers(0, 3, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(label).save(root / f"labels/{seed}.png")
    (root / "classes.txt").write_text("sand; gravel\nwater\nred cloth\n")
    return root


def labels_of(segmenter, compared, image):
    configs = [setting.config for setting in compared.settings]
    image = encoded.encode_image(segmenter.model, image, configs)
    question = encoded.vocabulary_question(segmenter, CLASSES)
    labels = {row.index: row.labels for row in encoded.label_settings(segmenter.model, image, configs, question)}
    return [labels[index] for index in range(len(configs))]


def alone(segmenter, setting, image):
    background = "sand" if setting.config.threshold else None
    return segmenter.with_config(setting.config)(image, CLASSES, background=background).labels


def part_of(compared, *names):
    return replace(compared, settings=tuple(setting for setting in compared.settings if setting.name in names))


def grid_of(*texts, base=BASE):
    return ablation.grid(base, "proxyclip", ablation.parse_axes(texts))


@pytest.mark.parametrize(
    "compared",
    [
        part_of(ablation.stages(BASE, "proxyclip"), "proxyclip as published", "+ global buffer"),
        part_of(ablation.baselines(BASE), "maskclip", "sclip", "clearclip + GLA"),
        grid_of(*NUMBERS),
    ],
    ids=["stages", "baselines", "grid"],
)
def test_every_setting_labels_as_the_segmenter_alone(compared, segmenter):
    image = picture(3)
    together = labels_of(segmenter, compared, image)
    for setting, labels in zip(compared.settings, together, strict=True):
        np.testing.assert_array_equal(labels, alone(segmenter, setting, image), setting.name)
    # Settings that all give one map would prove nothing.
    assert len({labels.tobytes() for labels in together}) > 1


def test_settings_of_different_numbers_share_a_program_and_others_do_not(segmenter, monkeypatch):
    """Numbers are arguments of one program; those that only move labels do not even run it again."""
    logits, calls = compiled_anew(encoded.encoded_logits), []
    monkeypatch.setattr(
        encoded, "encoded_logits", lambda *inputs, **static: calls.append(1) or logits(*inputs, **static)
    )
    labels_of(segmenter, grid_of("dynamic_scale=5,60,none", "logit_scale=5,40"), picture(4))
    assert (len(calls), logits._cache_size()) == (3, 2)


def compiled_anew(function):
    return jax.jit(lambda *inputs, **static: function.__wrapped__(*inputs, **static), static_argnames="counting")


def benchmark(data):
    dataset, row = open_benchmark("folder", data)
    return dataset, replace(row, settings=replace(row.settings, windows=BASE.windows))


def test_the_towers_run_once_an_image_for_all_settings(segmenter, data, monkeypatch):
    calls, traced = [], []
    tower = ClipImage.encode
    monkeypatch.setattr(ClipImage, "encode", lambda self, *inputs: traced.append(1) or tower(self, *inputs))
    # Programs of other tests are not taken again: these are traced here.
    encode, logits = (compiled_anew(function) for function in (encoded._encode, encoded.encoded_logits))
    monkeypatch.setattr(encoded, "_encode", lambda *inputs: calls.append(1) or encode(*inputs))
    monkeypatch.setattr(encoded, "encoded_logits", logits)
    compared = part_of(ablation.baselines(BASE), "maskclip", "sclip", "proxyclip")
    measured = ablate.measure(segmenter, compared, *benchmark(data))
    assert measured.images == len(calls) == 2
    # The tower stands in one compiled program alone: no setting brings it along.
    assert len(traced) == 1


def test_a_grid_over_the_towers_runs_them_under_each_setting(segmenter, data, monkeypatch):
    """Precision is the towers' too: one pass for all would report figures of settings that were not run."""
    seen, encode = [], encoded._encode
    monkeypatch.setattr(encoded, "_encode", lambda *inputs: seen.append(inputs[2]) or encode(*inputs))
    compared = grid_of("precision=highest,fast", "tower_batch=1,3", "rho=0.2,0.9")
    ablate.measure(segmenter, compared, *benchmark(data), limit=1)
    assert [(config.method.precision, config.tower_batch) for config in seen] == [
        ("highest", 1), ("highest", 3), ("fast", 1), ("fast", 3)]  # fmt: skip


def test_settings_whose_towers_give_other_tokens_go_apart(segmenter):
    """After one pass for both, OV-Stitcher's row would hold ProxyCLIP's figures."""
    compared = part_of(ablation.baselines(BASE), "proxyclip", "proxyclip + GLA", "ov-stitcher", "ov-stitcher + GLA")
    groups = ablate.tower_groups(segmenter, compared)
    assert [indices for _, indices in groups] == [[0, 1], [2, 3]]
    for model, indices in groups:
        configs = [compared.settings[index].config for index in indices]
        features = encoded.encode_image(model, picture(3), configs).tokens.features
        for config in configs:
            alone = encoded.encode_image(segmenter.model.with_config(config), picture(3), [config]).tokens
            np.testing.assert_array_equal(features, alone.features)


def test_a_grid_over_baselines_keeps_a_calibration_for_features_that_take_it():
    """CLIP's own heads keep the published numbers: rho and temperature of the calibration are for other cosines."""
    base = replace(BASE, method=replace(BASE.method, **NUMBER_SETTINGS["centred"]))
    one, other = (setting.config.method for setting in grid_of("baseline=proxyclip,clearclip", base=base).settings)
    assert (one.calibration, one.anchor_threshold, one.temperature) == ("centred", 0.9, 0.05)
    assert (other.calibration, other.anchor_threshold, other.temperature) == (None, 0.55, 1.0)


def test_figures_are_those_of_gla_jax_eval(segmenter, data, tmp_path):
    dataset, row = benchmark(data)
    compared = part_of(ablation.stages(row.config("gla"), "proxyclip"), "+ global buffer", "+ dynamic normalisation")
    measured = ablate.measure(segmenter, compared, dataset, row)
    for setting, tally in zip(compared.settings, measured.tallies, strict=True):
        run = Run(dataset, row, "any", segmenter.with_config(setting.config), tmp_path / setting.name)
        outcome = measure(run)
        expected = {"miou": outcome.areas().scores().miou, "aacc": outcome.areas().scores().aacc}
        expected |= {name: outcome.boundary().rates()[name] for name in ("ber_1", "control_1")}
        one, tokens = outcome.tally.one_key
        expected["one_key"] = 100 * one / tokens
        figures = tally.figures()
        assert figures == pytest.approx(expected, abs=1e-9)
        assert outcome.boundary().pairs[0] > 0


def test_windows_and_models_can_be_swept(segmenter, data, tmp_path):
    """Each row is what gla-jax eval gives with that model and those windows, boundary errors at their own edges."""
    dataset, row = benchmark(data)
    others = {"a": segmenter, "b": Segmenter.from_pretrained(random_pair(tmp_path / "b", 1), BASE)}
    others["b"].text_embeddings = segmenter.text_embeddings
    compared = grid_of("model=a,b", "crop=32,48", "stride=16,32")
    measured = ablate.measure(segmenter, compared, dataset, row, others=others)
    figures = [tally.figures() for tally in measured.tallies]
    assert len({tuple(one.values()) for one in figures}) > 4
    for index in (0, 3, 6):
        setting, own = compared.settings[index], others[compared.settings[index].model]
        windowed = replace(row, settings=replace(row.settings, windows=setting.config.windows))
        run = Run(dataset, windowed, "any", own.with_config(setting.config), tmp_path / f"run{index}")
        outcome = measure(run)
        assert figures[index]["miou"] == pytest.approx(outcome.areas().scores().miou, abs=1e-9)
        assert figures[index]["ber_1"] == pytest.approx(outcome.boundary().rates()["ber_1"], abs=1e-9, nan_ok=True)


def test_a_grid_over_models_names_each_in_its_files(folder, data, tmp_path, capsys):
    other, out = random_pair(tmp_path / "other", 1), tmp_path / "out"
    grid = ("--grid", f"model={folder},{other}", "--limit", 1, "--out", out)
    assert call("ablate", "folder", "--data", data, "--model", folder, *grid) == 2
    assert "leave --model out" in capsys.readouterr().err
    assert call("ablate", "folder", "--data", data, *grid) == 0
    content = json.loads((out / "ablation.json").read_text())
    assert [row["model"] for row in content["settings"]] == [str(folder), str(other)]
    assert len({model["sha256"] for model in content["models"]}) == 2


def test_names_are_bars_and_numbers_are_lines(monkeypatch):
    """A line between names would have a slope that means nothing."""
    drawn = []
    for name in ("bars", "lines", "heat_maps"):
        monkeypatch.setattr(ablation_report, name, lambda *_, name=name: drawn.append(name))
    for texts in (
        ["crop=32,48"],
        ["baseline=proxyclip,sclip"],
        ["dynamic_shift=0.3,none"],
        ["rho=0.4,0.5", "crop=32,48"],
    ):
        compared = grid_of(*texts)
        tally = ablation_report.Tally(Areas.zeros(2), BoundaryCounts.zeros(), 0.0)
        ablation_report._picture(compared, [tally] * len(compared.settings), "note")
    assert drawn == ["lines", "bars", "bars", "heat_maps"]


def test_stages_are_the_papers_and_end_with_the_whole_method():
    settings = ablation.stages(BASE, "clearclip").settings
    assert [ablation.Ablation("", settings[i : i + 2], {}).varied() for i in range(3)] == [
        ("global_buffer",),
        ("proxy_anchors",),
        ("row_mean", "dynamic_shift", "dynamic_scale"),
    ]
    assert settings[-1].config.method == replace(BASE.method, baseline="clearclip")


def test_a_preset_s_rho_holds_in_every_ablation():
    base = replace(BASE, method=replace(BASE.method, anchor_threshold=0.6))
    for compared in (ablation.stages(base, "proxyclip"), ablation.baselines(base), grid_of("shift=1,2", base=base)):
        with_anchors = [one.config.method for one in compared.settings if one.config.method.proxy_anchors]
        assert {method.anchor_threshold for method in with_anchors} == {0.6}


@pytest.mark.parametrize(
    ("text", "field", "values"),
    [
        ("block_size=128,none", "block_size", (128, None)),
        ("tower_batch=1,4", "tower_batch", (1, 4)),
        ("anchor_iterations=0,3", "anchor_iterations", (0, 3)),
        ("skip_blocks=true,false,none", "skip_blocks", (True, False, None)),
        ("masking=false", "masking", (False,)),
        ("mask_temperature=none,0.1", "mask_temperature", (None, 0.1)),
        ("attention=dense,blockwise", "attention", ("dense", "blockwise")),
        ("precision=high", "precision", ("high",)),
        ("rho=0.4,1", "anchor_threshold", (0.4, 1.0)),
        ("alpha_beta=0", "dynamic_shift", (0.0,)),
        ("alpha_gamma=none", "dynamic_scale", (None,)),
        ("crop=224,336", "crop", (224, 336)),
        ("short_side=448,none", "short_side", (448, None)),
        ("model=a,b+c", "model", ("a", "b+c")),
        ("host=proxyclip,clearclip", "baseline", ("proxyclip", "clearclip")),
    ],
)
def test_a_value_has_the_type_of_its_field(text, field, values):
    """A whole number that became a float would stop inside JAX, or decide nothing."""
    (axis,) = ablation.parse_axes([text]).items()
    assert axis == (field, values)
    assert [type(value) for value in axis[1]] == [type(value) for value in values]
    fields = [setting.fields()[field] for setting in grid_of(text).settings]
    assert fields == list(values)


def test_a_registered_baseline_is_in_every_ablation(monkeypatch):
    row = Baseline("mine", "Mine", gla="gla-mine", features=("keys",), attention=lambda qkv, num_heads: qkv.values)
    monkeypatch.setitem(BASELINES, "mine", row)
    assert "mine" in ablation.gla_baselines()
    assert [setting.name for setting in ablation.baselines(BASE).settings][-2:] == ["mine", "mine + GLA"]
    assert ablation.parse_axes(["baseline=mine"]) == {"baseline": ("mine",)}
    assert ablation.stages(BASE, "mine").settings[-1].config.method.baseline == "mine"


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_leaves_a_table_and_three_files(folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("folder", "--data", data, "--model", folder, "--limit", 1, "--out", out)
    assert call("ablate", *given, "--grid", "anchor_threshold=0.2,0.9") == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert {path.name for path in out.glob("[!.]*")} == {"ablation.json", "ablation.csv", "ablation.png"}
    content = json.loads((out / "ablation.json").read_text())
    assert content["axes"] == {"anchor_threshold": [0.2, 0.9]}
    assert content["images"] == {"measured": 1, "in_data": 2}
    assert len(content["model"]["sha256"]) == 64
    with (out / "ablation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["setting", "anchor_threshold", *ablation_report.FIGURES, "seconds"]
    for row, setting in zip(table, content["settings"], strict=True):
        assert row["setting"] == setting["name"]
        assert float(row["anchor_threshold"]) == setting["settings"]["method"]["anchor_threshold"]
        assert float(row["miou"]) == pytest.approx(setting["figures"]["miou"], abs=1e-4)
        assert setting["seconds"] > 0
    with Image.open(out / "ablation.png") as shown:
        assert shown.width > 1000


@pytest.mark.parametrize(
    ("asked", "title", "count"),
    [
        ((), "GLA on proxyclip, stage by stage", 4),
        (("--stages", "--baseline", "sclip"), "GLA on sclip, stage by stage", 4),
        (("--baselines",), "Baselines without and with GLA", 14),
        (("--grid", "shift=1,2", "--grid", "row_mean=true,false"), "GLA on proxyclip over shift and row_mean", 4),
        (("--grid", "masking=true,false"), "GLA on proxyclip over masking", 2),
    ],
)
def test_the_command_measures_what_was_asked_for(asked, title, count, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, "run_ablation", lambda _, compared, *rest: seen.append(compared) or "")
    assert call("ablate", *asked, "--model", folder, "--out", tmp_path / "out") == 0
    assert (seen[0].title, len(seen[0].settings)) == (title, count)


MISTAKES = {
    "field": (["--grid", "anchor_treshold=0.4"], "did you mean anchor_threshold?"),
    "no value": (["--grid", "anchor_threshold"], "is not a grid; write FIELD=VALUE,VALUE"),
    "number": (["--grid", "anchor_threshold=0.4,high"], "'high' is not a value of anchor_threshold; give a number."),
    "none": (["--grid", "scale=none"], "'none' is not a value of scale; give a number."),
    "optional": (["--grid", "dynamic_scale=many"], "give a number or none."),
    "whole": (["--grid", "anchor_iterations=1.5"], "give a whole number."),
    # Ranges are checked where settings are made, in the words that every other way to set a field has.
    "negative": (["--grid", "anchor_iterations=-1"], "anchor_iterations is -1; give a whole number from 0 to 1000"),
    "choice": (["--grid", "attention=sparse"], "'sparse' is not a value of attention"),
    "flag": (["--grid", "row_mean=yes"], "'yes' is not a value of row_mean"),
    "temperature": (["--grid", "temperature=0"], "temperature is 0.0; give a number above 0"),
    "probability": (["--grid", "threshold=2"], "threshold is 2.0; give a number from 0 to 1"),
    "infinite": (["--grid", "shift=inf"], "shift is inf; give a finite number"),
    "no cosine": (["--grid", "rho=1.5"], "the grid holds anchor_threshold 1.5: anchor threshold 1.5 is not a cosine"),
    "block size": (["--grid", "block_size=0"], "block_size is 0; give a whole number from 1 to 1000000"),
    "size": (["--grid", "block_size=128.5"], "'128.5' is not a value of block_size; give a whole number or none."),
    "same value": (["--grid", "shift=1,1.0"], "names a value twice"),
    "same field": (["--grid", "shift=1", "--grid", "shift=2"], "the field shift has two grids"),
    "same field by its letter": (["--grid", "rho=0.4", "--grid", "anchor_threshold=0.5"], "has two grids"),
    "baseline of the grid": (["--grid", "baseline=proxyclip,clip"], "GLA is not defined on the baseline clip"),
    "baseline": (["--baseline", "maskclip"], "'maskclip' is not a baseline of GLA"),
    "two kinds": (["--baselines", "--stages"], "choose one of them"),
    "baselines and baseline": (["--baselines", "--baseline", "sclip"], "leave --baseline out"),
    "stride": (["--grid", "stride=448"], "the grid holds stride 448: stride 448 is larger than crop"),
    "benchmark": (["tinyworld"], "'tinyworld' is not a benchmark; did you mean tiny-world?"),
    "data": (["voc21"], "name it with --data"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(name, folder, tmp_path, capsys):
    arguments, sentence = MISTAKES[name]
    out = tmp_path / "out"
    assert call("ablate", *arguments, "--model", folder, "--out", out) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_clip_alone_cannot_run_a_baseline_that_reads_both(folder, data, tmp_path, capsys):
    given = ("folder", "--data", data, "--model", folder / "clip", "--out", tmp_path / "out")
    assert call("ablate", *given) == 2
    assert "is a CLIP alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grids_that_cannot_move_a_label_warn(data):
    _, row = benchmark(data)
    grids = {text: grid_of(*text.split()) for text in (
        "logit_scale=10,40", "threshold=0.2,0.4", "shift=1,2", "threshold=0.2,0.4 logit_scale=10,40")}  # fmt: skip
    with pytest.warns(UserWarning, match="logit_scale moves no label"):
        ablate.warn_of_idle_fields(grids["logit_scale=10,40"], row)
    with pytest.warns(UserWarning, match="below the threshold become 'sand'"):
        ablate.warn_of_idle_fields(grids["threshold=0.2,0.4"], row)
    with_background = replace(row, classes=("background", *row.classes))
    for text in ("shift=1,2", "threshold=0.2,0.4 logit_scale=10,40"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ablate.warn_of_idle_fields(grids[text], with_background)
