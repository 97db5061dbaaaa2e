"""Ablations and evaluations whose classes labelled images show: the same labels as the segmenter by itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import gla_jax
from gla_jax.analysis import ablate, ablation
from gla_jax.cli import main
from gla_jax.config import METHODS, NUMBER_SETTINGS, SegmenterConfig, WindowConfig
from gla_jax.eval.datasets.by_example import benchmark_examples, example_classes
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.runner import open_benchmark
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import DataError, UserError
from tests.small_models import random_pair

BASE = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
NAMES = "left", "right", "below"
RNG = np.random.default_rng(6)


def write(root, count, names=NAMES):
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(count):
        label = np.zeros((40, 48), np.uint8)
        label[:, 20 + 2 * number :], label[28:], label[:3] = 1, 2, 255
        colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[label % 253 % 3]
        image = np.clip(colours + RNG.integers(-60, 60, (40, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(label).save(root / "labels" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(names))
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data"), 4)


@pytest.mark.parametrize("model", ["pair", "vfm"])
def test_folds_measure_every_image_by_the_labels_of_the_others(pair, data, model):
    segmenter = Segmenter.from_pretrained(pair if model == "pair" else pair / "vfm", BASE)
    dataset, row = open_benchmark("folder", data)
    compared = ablation.stages(BASE, "proxyclip", alone=True)
    assert compared.settings[0].name == "each token alone"
    compared = replace(compared, settings=(compared.settings[0], compared.settings[-1]))
    measured = ablate.measure(segmenter, compared, dataset, row, folds=2)
    for setting, tally in zip(compared.settings, measured.tallies, strict=True):
        areas, changed = Areas.zeros(3), segmenter.with_config(setting.config)
        for part, others in (((0, 1), (2, 3)), ((2, 3), (0, 1))):
            classes = example_classes(dataset, others)
            for index in part:
                _, image, label = dataset.read(index)
                areas = areas.merge(image_areas(changed(image, classes).labels, label, 3, 255))
        for found, expected in zip(tally.areas, areas, strict=True):
            np.testing.assert_array_equal(found, expected, setting.name)
    with pytest.raises(UserError, match="4 images cannot make 5 folds"):
        ablate.measure(segmenter, compared, dataset, row, folds=5)
    with pytest.raises(UserError, match="folds need two images at least"):
        ablate.measure(segmenter, compared, dataset, row, limit=1, folds=2)


def test_a_class_that_one_fold_alone_shows_is_named_once_with_that_fold(pair, tmp_path):
    """Not once for every setting, and not as if no image of the data showed it."""
    segmenter = Segmenter.from_pretrained(pair / "vfm", BASE)
    names = (*NAMES, "corner")
    data = write(tmp_path / "data", 4, names)
    label = np.asarray(Image.open(data / "labels/3.png")).copy()
    label[28:, 32:] = 3
    Image.fromarray(label).save(data / "labels/3.png")
    dataset, row = open_benchmark("folder", data)
    stages = ablation.stages(BASE, "proxyclip", alone=True)
    with pytest.warns(UserWarning, match="no labelled token") as warned:
        ablate.measure(segmenter, stages, dataset, row, folds=4)
    messages = [str(one.message) for one in warned if "no labelled token" in str(one.message)]
    assert messages == [f"no labelled token of 'corner' in {data}, outside fold 4 of 4: no pixel gets that class"]


def test_ablate_and_eval_by_the_images_of_another_folder(pair, data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = write(tmp_path / "shown", 2)
    options = ["folder", "--data", str(data), "--model", str(pair / "vfm"), "--classes-from", str(shown)]
    assert main(["ablate", *options, "--grid", "rho=0.55", "--limit", "1", "--out", "a"]) == 0
    content = json.loads((tmp_path / "a/ablation.json").read_text())
    assert content["classes_from"]["origin"] == str(shown)
    assert main(["eval", *options, "--limit", "1", "--out", "e"]) == 0
    results = json.loads((tmp_path / "e/results.json").read_text())
    assert results["classes_from"] == content["classes_from"]
    assert results["figures"]["miou"] == pytest.approx(content["settings"][-1]["figures"]["miou"])
    assert "too good" not in capsys.readouterr().err
    assert main(["ablate", *options, "--folds", "2"]) == 2
    assert "choose one of them" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ablate", "eval"])
def test_images_that_are_measured_by_their_own_labels_are_warned_of(pair, data, tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "same").symlink_to(data)
    options = ["folder", "--data", str(data), "--model", str(pair / "vfm"), "--classes-from", "same", "--limit", "1"]
    assert main([command, *options, "--out", "a", *(["--grid", "rho=0.55"] if command == "ablate" else [])]) == 0
    assert "both show the classes and are measured, so the figures are too good" in capsys.readouterr().err


def test_a_folder_may_show_some_of_a_benchmarks_classes(tmp_path):
    shown = benchmark_examples(write(tmp_path / "a", 1, ("road", "sky", "car")), "cityscapes", ("car", "road", "sky"))
    own = gla_jax.classes_from(tmp_path / "a").read(0)[1]
    np.testing.assert_array_equal(shown.read(0)[1], np.array([1, 2, 0, 255])[np.minimum(own, 3)])
    with pytest.raises(DataError, match=r"'left', which is no class of cityscapes.*eval --list cityscapes"):
        benchmark_examples(write(tmp_path / "b", 1), "cityscapes", ("car", "road", "sky"))
    with pytest.raises(DataError, match=r"no class of folder; name the classes there as in the classes\.txt of --data"):
        benchmark_examples(tmp_path / "b", "folder", ("car", "road", "sky"))


def test_stages_under_a_calibration_begin_with_the_published_baseline():
    """Else a table would call a calibrated ProxyCLIP published, and lend CLIP's heads numbers of other features."""
    base = replace(BASE, method=replace(BASE.method, **NUMBER_SETTINGS["centred"]))
    rows = {setting.name: setting.config.method for setting in ablation.stages(base, "proxyclip").settings}
    assert list(rows)[:3] == ["proxyclip as published", "+ calibration", "+ global buffer"]
    assert rows["proxyclip as published"] == METHODS["proxyclip"]
    assert rows["+ calibration"] == replace(rows["+ global buffer"], global_buffer=False)
    assert rows["+ dynamic normalisation"] == base.method
    others = {setting.name: setting.config.method for setting in ablation.baselines(base).settings}
    assert others["clearclip + GLA"] == METHODS["gla-clearclip"]
    assert others["proxyclip + GLA"] == base.method


def test_eval_by_examples_that_cannot_be_used_leaves_no_folder(pair, data, tmp_path, capsys):
    """Else the same command, after the labels are mended, would be refused for other settings than its own."""
    shown = write(tmp_path / "shown", 1)
    label = np.asarray(Image.open(shown / "labels/0.png"))
    Image.fromarray(np.where(label == 0, label, 255).astype(np.uint8)).save(shown / "labels/0.png")
    sizes = ["--model", str(pair), "--classes-from", str(shown), "--method", "maskclip"]
    words = ["eval", "folder", "--data", str(data), *sizes, "--limit", "1", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "label two at least" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
