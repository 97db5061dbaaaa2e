"""Ablations: labels and figures as of every setting alone, the towers once an image, and pictures of all kinds."""

import csv
import json
import math
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis import ablate
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.eval.runner import Run, measure, open_benchmark
from gla_jax.pictures.charts import Column, bars, heat_maps, lines, shade, ticks
from gla_jax.segmenter import Segmenter
from gla_jax.text.prompts import parse_classes
from gla_jax.towers.clip_image import ClipImage
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


def labels_of(segmenter, ablation, image):
    configs = [setting.config for setting in ablation.settings]
    encoded = ablate.encode(segmenter, image, configs)
    bank = segmenter.text_embeddings(CLASSES)
    found = {row.index: row.labels for row in ablate.label_settings(segmenter, encoded, configs, bank, CLASSES)}
    return [found[index] for index in range(len(configs))]


def alone(segmenter, setting, image):
    background = "sand" if setting.config.threshold else None
    return segmenter.with_config(setting.config)(image, CLASSES, background=background).labels


def some(ablation, *names):
    return replace(ablation, settings=tuple(setting for setting in ablation.settings if setting.name in names))


@pytest.mark.parametrize(
    "ablation",
    [
        some(ablate.stages(BASE, "proxyclip"), "proxyclip as published", "+ global buffer"),
        some(ablate.hosts(BASE), "maskclip", "sclip", "clearclip + GLA"),
        ablate.grid(BASE, "proxyclip", ablate.parse_axes(NUMBERS)),
    ],
    ids=["stages", "hosts", "grid"],
)
def test_every_setting_labels_as_the_segmenter_alone(ablation, segmenter):
    image = picture(3)
    together = labels_of(segmenter, ablation, image)
    for setting, labels in zip(ablation.settings, together, strict=True):
        np.testing.assert_array_equal(labels, alone(segmenter, setting, image), setting.name)
    # Settings that all give one map would prove nothing.
    assert len({labels.tobytes() for labels in together}) > 1


def test_a_grid_too_large_for_one_vmap_gives_the_same_in_chunks(segmenter, monkeypatch):
    ablation = ablate.grid(BASE, "proxyclip", ablate.parse_axes(["temperature=0.5,1,2,4,8"]))
    sizes = []
    stack = ablate.stack_numbers
    monkeypatch.setattr(ablate, "stack_numbers", lambda configs: sizes.append(len(configs)) or stack(configs))
    monkeypatch.setattr(ablate, "settings_at_once", lambda *_: 2)
    image = picture(4)
    for setting, labels in zip(ablation.settings, labels_of(segmenter, ablation, image), strict=True):
        np.testing.assert_array_equal(labels, alone(segmenter, setting, image), setting.name)
    assert sizes == [2, 2, 2]


def test_settings_of_different_numbers_share_a_program_and_others_do_not():
    ablation = ablate.grid(BASE, "proxyclip", ablate.parse_axes(["dynamic_scale=5,60,none", "logit_scale=5,40"]))
    groups = ablate.by_structure([setting.config for setting in ablation.settings])
    assert [list(group.values()) for group in groups] == [[[0, 1], [2, 3]], [[4, 5]]]


def test_a_vmap_never_takes_more_memory_than_its_bound(segmenter):
    image, configs = picture(0), [BASE]
    tokens = ablate.encode(segmenter, image, configs).tokens
    dense, streaming = (replace(BASE.method, attention=form, block_size=16) for form in ("dense", "blockwise"))
    assert 1 < ablate.settings_at_once(tokens, 4, dense) < ablate.settings_at_once(tokens, 4, streaming)
    assert ablate.settings_at_once(tokens, 10**9, streaming) == 1


def compiled_anew(function):
    return jax.jit(lambda *given: function.__wrapped__(*given))


def test_the_towers_run_once_an_image_for_all_settings(segmenter, data, monkeypatch):
    calls, traced = [], []
    tower = ClipImage.encode
    monkeypatch.setattr(ClipImage, "encode", lambda self, *given: traced.append(1) or tower(self, *given))
    # Programs of other tests are not taken again: these are traced here.
    encode, logits = (compiled_anew(function) for function in (ablate._encode, ablate._logits))
    monkeypatch.setattr(ablate, "_encode", lambda *given: calls.append(1) or encode(*given))
    monkeypatch.setattr(ablate, "_logits", logits)
    dataset, row = open_benchmark("folder", data, "sclip")
    row = replace(row, windows=BASE.windows)
    measured = ablate.measure(segmenter, some(ablate.hosts(BASE), "maskclip", "sclip", "proxyclip"), dataset, row)
    assert measured.images == len(calls) == 2
    # The tower stands in one compiled program alone: no setting brings it along.
    assert len(traced) == 1


def test_figures_are_those_of_gla_jax_eval(segmenter, data, tmp_path):
    dataset, row = open_benchmark("folder", data, "sclip")
    row = replace(row, windows=BASE.windows)
    ablation = some(ablate.stages(row.config("gla"), "proxyclip"), "+ global buffer", "+ dynamic normalisation")
    measured = ablate.measure(segmenter, ablation, dataset, row)
    for setting, tally in zip(ablation.settings, measured.tallies, strict=True):
        run = Run(dataset, row, "any", segmenter.with_config(setting.config), tmp_path / setting.name)
        outcome = measure(run)
        expected = {"miou": outcome.areas().scores().miou, "aacc": outcome.areas().scores().aacc}
        expected |= {name: outcome.boundary().rates()[name] for name in ("ber_1", "control_1")}
        assert tally.figures() == pytest.approx(expected, abs=1e-9)
        assert outcome.boundary().pairs[0] > 0


def test_stages_are_the_papers_and_end_with_the_whole_method():
    settings = ablate.stages(BASE, "clearclip").settings
    assert [ablate.Ablation("", settings[i : i + 2], {}).varied() for i in range(3)] == [
        ("global_buffer",),
        ("proxy_anchors",),
        ("row_mean", "dynamic_shift", "dynamic_scale"),
    ]
    assert settings[-1].config.method == replace(BASE.method, baseline="clearclip")


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_leaves_a_table_and_three_files(folder, data, tmp_path, capsys):
    out = tmp_path / "out"
    given = ("folder", "--data", data, "--model", folder, "--limit", 1, "--out", out)
    assert call("ablate", *given, "--grid", "anchor_threshold=0.2,0.9") == 0
    printed = capsys.readouterr().out
    assert "mIoU" in printed
    assert {path.name for path in out.iterdir()} == {"ablation.json", "ablation.csv", "ablation.png"}
    content = json.loads((out / "ablation.json").read_text())
    assert content["axes"] == {"anchor_threshold": [0.2, 0.9]}
    assert content["images"] == {"measured": 1, "in_data": 2}
    assert len(content["model"]["sha256"]) == 64
    with (out / "ablation.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["setting", "anchor_threshold", *ablate.FIGURES, "seconds"]
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
        (("--stages", "--host", "sclip"), "GLA on sclip, stage by stage", 4),
        (("--hosts",), "Hosts without and with GLA", 12),
        (("--grid", "shift=1,2", "--grid", "row_mean=true,false"), "GLA on proxyclip over shift and row_mean", 4),
        (("--grid", "masking=true,false"), "GLA on proxyclip over masking", 2),
    ],
)
def test_the_command_measures_what_was_asked_for(asked, title, count, folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(ablate, "run_ablation", lambda _, ablation, *rest: seen.append(ablation) or "")
    assert call("ablate", *asked, "--model", folder, "--out", tmp_path / "out") == 0
    assert (seen[0].title, len(seen[0].settings)) == (title, count)


MISTAKES = {
    "field": (["--grid", "anchor_treshold=0.4"], "did you mean anchor_threshold?"),
    "no value": (["--grid", "anchor_threshold"], "is not a grid; write FIELD=VALUE,VALUE"),
    "number": (["--grid", "anchor_threshold=0.4,high"], "'high' is not a value of anchor_threshold; give a number."),
    "none": (["--grid", "scale=none"], "'none' is not a value of scale; give a number."),
    "optional": (["--grid", "dynamic_scale=some"], "give a number or none."),
    "whole": (["--grid", "anchor_iterations=1.5"], "give a whole number."),
    "negative": (["--grid", "anchor_iterations=-1"], "anchor_iterations is -1; it counts passes"),
    "choice": (["--grid", "attention=sparse"], "'sparse' is not a value of attention"),
    "flag": (["--grid", "row_mean=yes"], "'yes' is not a value of row_mean"),
    "temperature": (["--grid", "temperature=0"], "temperature 0 is not above 0"),
    "probability": (["--grid", "threshold=2"], "threshold 2 is not a probability"),
    "infinite": (["--grid", "shift=inf"], "'inf' is not a value of shift"),
    "same value": (["--grid", "shift=1,1.0"], "names a value twice"),
    "same field": (["--grid", "shift=1", "--grid", "shift=2"], "the field shift has two grids"),
    "host of the grid": (["--grid", "baseline=proxyclip,clip"], "GLA is not defined on the host clip"),
    "host": (["--host", "maskclip"], "'maskclip' is not a host of GLA"),
    "two kinds": (["--hosts", "--stages"], "choose one of them"),
    "hosts and host": (["--hosts", "--host", "sclip"], "leave --host out"),
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


def test_a_clip_alone_cannot_run_a_host_that_reads_both(folder, data, tmp_path, capsys):
    given = ("folder", "--data", data, "--model", folder / "clip", "--out", tmp_path / "out")
    assert call("ablate", *given) == 2
    assert "is a CLIP alone" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grids_that_cannot_move_a_label_warn(data):
    _, row = open_benchmark("folder", data, "sclip")
    grids = {text: ablate.grid(BASE, "proxyclip", ablate.parse_axes(text.split())) for text in (
        "logit_scale=10,40", "threshold=0.2,0.4", "shift=1,2", "threshold=0.2,0.4 logit_scale=10,40")}  # fmt: skip
    with pytest.warns(UserWarning, match="logit_scale moves no label"):
        ablate.warn_of_what_labels_ignore(grids["logit_scale=10,40"], row)
    with pytest.warns(UserWarning, match="below the threshold become 'sand'"):
        ablate.warn_of_what_labels_ignore(grids["threshold=0.2,0.4"], row)
    with_background = replace(row, classes=("background", *row.classes))
    for text in ("shift=1,2", "threshold=0.2,0.4 logit_scale=10,40"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ablate.warn_of_what_labels_ignore(grids[text], with_background)


def column(values, higher=True, marks=()):
    return Column("mIoU, %", tuple(values), higher, ablate.BLUE, tuple(marks))


def test_the_best_is_the_highest_or_the_lowest_and_never_nothing():
    assert column([1.0, math.nan, 3.0]).best == 2
    assert column([1.0, math.nan, 0.5], higher=False).best == 2
    assert column([math.nan]).best is None


def coloured(picture, colour):
    return (np.asarray(picture).astype(int) == colour).all(-1)


def test_a_bar_is_as_long_as_its_value():
    drawn = bars("Title", "note", ["a", "b", "c"], [True, True, False], [column([40.0, 10.0, 20.0])], [])
    lengths = coloured(drawn, ablate.BLUE).sum(1)
    tall = sorted(length for length in set(lengths[lengths > 0].tolist()) if (lengths == length).sum() >= 10)
    assert len(tall) == 2
    assert tall[1] / tall[0] == pytest.approx(4, rel=0.02)
    assert coloured(drawn, ablate.GREY).any()


def test_lines_rise_where_values_rise_and_break_where_there_is_none():
    drawn = coloured(lines("Title", "note", "field", list("abcd"), [column([10, 20, math.nan, 5])]), ablate.BLUE)
    rows, columns = np.nonzero(drawn)
    quarter = np.quantile(np.arange(columns.min(), columns.max()), [0.2, 0.35])
    assert rows[columns == columns.min() + 2].mean() > rows[np.abs(columns - quarter[1]) < 3].mean()
    assert (~drawn.any(0))[columns.min() : columns.max()].any()


@pytest.mark.parametrize("values", [[math.nan] * 6, [50.0] * 6, [1.0, 2, 3, 4, 5, math.nan]])
def test_pictures_of_nothing_and_of_equals_are_drawn(values):
    names = [f"a name that is much too long for a picture {index}" * 3 for index in range(6)]
    assert bars("Title", "note", names, [True] * 6, [column(values, marks=values)] * 2, []).width > 1000
    assert lines("Title", "note", "field", names, [column(values)] * 2).width > 1000
    assert heat_maps("Title", "note", ("a", "b"), (["1", "2"], ["1", "2", "3"]), [column(values)] * 2).width > 1000


@pytest.mark.parametrize("higher", [True, False])
def test_the_darkest_cell_of_a_map_is_the_best(higher):
    page = heat_maps("", "", ("a", "b"), (["1", "2"], ["1", "2"]), [column([90.0, 50, 50, 10], higher=higher)])
    places = [np.argwhere(coloured(page, shade(ablate.BLUE, share))).mean(0) for share in (0.0, 1.0)]
    pale, dark = reversed(places) if higher else places
    # 10 lies below 90 and to its right.
    assert (dark - pale > 40).all()


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (12.3, 12.4), (0.0, 100.0), (48.2, 57.9)])
def test_ticks_are_few_and_hold_the_range(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 9
    assert found[0] <= low
    assert high <= found[-1]
