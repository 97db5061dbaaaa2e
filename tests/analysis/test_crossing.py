"""Shares of attention over whole images: each token's must be the one that `explain` draws for it."""

import json

import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis import crossing
from gla_jax.analysis.crossing import Crossing, Crossings, Likeness, crossings, find_samples, likeness, summary
from gla_jax.analysis.explain import explain
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.segmenter import Segmenter
from gla_jax.tiny_world.scenes import render
from tests import oracle
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("at_once", [50, 512])
def test_every_token_has_the_share_that_explain_draws(folder, monkeypatch, at_once):
    monkeypatch.setattr(crossing, "QUERY_CHUNK", at_once)
    crossing._shares.clear_cache()  # the size of a chunk is part of the program
    segmenter = Segmenter.from_pretrained(folder, CONFIG)
    found = crossings(segmenter, IMAGE).stages
    for at in ((3, 3), (40, 20), (63, 39)):
        drawn = explain(segmenter, IMAGE, at)
        for stage in drawn.stages:
            own = found[stage.name]
            assert own.outside[drawn.window, drawn.token] == pytest.approx(stage.outside, abs=1e-5)
            assert own.one_key[drawn.window, drawn.token] == (np.count_nonzero(stage.weights) == 1)
            assert (own.counts is None) == (stage.count is None)
            if stage.count is not None:
                assert own.counts[drawn.window, drawn.token] == stage.count


def test_the_share_on_the_own_class_is_what_explain_measures_on_that_mask(folder):
    """Labels as blocks of whole tokens: a token is of one class, so a mask covers it or not."""
    segmenter = Segmenter.from_pretrained(folder, CONFIG)
    label = np.random.default_rng(1).integers(0, 3, (5, 8)).repeat(8, 0).repeat(8, 1)
    label[:8, :8] = crossing.IGNORED
    found = crossings(segmenter, IMAGE, label)
    labelled = label != crossing.IGNORED
    for at in ((3, 30), (40, 20)):
        drawn = explain(segmenter, IMAGE, at)
        shares = zip(drawn.shares_on(label == label[at[::-1]]), drawn.shares_on(labelled), strict=True)
        for stage, (own, known) in zip(drawn.stages, shares, strict=True):
            assert found.stages[stage.name].own_class[drawn.window, drawn.token] == pytest.approx(own / known, abs=1e-5)
    corner = explain(segmenter, IMAGE, (3, 3))
    assert all(np.isnan(one.own_class[corner.window, corner.token]) for one in found.stages.values())


def test_likeness_is_the_mean_cosine_to_the_own_class_and_to_others():
    keys = oracle.l2(np.random.default_rng(0).normal(size=(6, 4)))
    classes = np.array([7, 7, 2, -1, 2, 2], np.int32)
    found = likeness(keys, classes)
    cosines = keys @ keys.T
    np.testing.assert_allclose(found.own_cosine[0], cosines[0, [0, 1]].mean())
    np.testing.assert_allclose(found.other_cosine[0], cosines[0, [2, 4, 5]].mean())
    np.testing.assert_allclose(found.own_cosine[4], cosines[5, [2, 4, 5]].mean())
    np.testing.assert_allclose(found.own_tokens, [0.4, 0.4, 0.6, 0.6, 0.6])
    assert np.isnan(likeness(keys, np.full(6, 3, np.int32)).other_cosine).all()  # there are no others


def test_the_summary_counts_tokens_not_images():
    nan = np.nan
    small = Crossing(np.full((1, 1), 1.0, np.float32), np.ones((1, 1)), np.array([[0.2]]), np.ones((1, 1), bool))
    large = Crossing(
        np.zeros((1, 3), np.float32), np.array([[5.0, 5.0, 9.0]]), np.array([[0.5, 0.8, nan]]), np.zeros((1, 3), bool)
    )
    alike = [Likeness(*(np.array(values) for values in rows)) for rows in (
        ([1.0], [nan], [1.0]), ([0.4, 0.4], [0.1, 0.3], [0.5, 0.5]))]  # fmt: skip
    found = summary([Crossings({"a": one}, own) for one, own in zip((small, large), alike, strict=True)])
    row = {"tokens": 4, "outside": 25.0, "own_class": pytest.approx(50.0), "one_key": 25.0}
    assert found["stages"] == {"a": row | {"anchor_mean": 5.0, "anchor_median": 5.0, "alone": 25.0}}
    labels = {"tokens": 3, "even": 200 / 3, "own_cosine": 0.6, "other_cosine": 0.2}
    assert found["labels"] == pytest.approx(labels)


def test_without_labels_there_is_nothing_on_a_class(folder):
    found = summary([crossings(Segmenter.from_pretrained(folder, CONFIG), IMAGE)])
    assert set(found) == {"stages"}
    assert all("own_class" not in row for row in found["stages"].values())


def test_the_command_reads_labels_by_name(folder, tmp_path, capsys):
    (tmp_path / "labels").mkdir()
    for name in ("a", "b"):
        Image.fromarray(IMAGE).save(tmp_path / f"{name}.png")
    given = ["crossing", str(tmp_path), "--labels", str(tmp_path / "labels"), "--model", str(folder)]
    assert main(given) == 2
    assert "a.png has no label" in capsys.readouterr().err
    Image.fromarray(np.eye(40, 64, dtype=np.uint8)).save(tmp_path / "labels/a.png")
    assert main([*given, "--limit", "1", "--out", str(tmp_path / "figures.json")]) == 0
    said = capsys.readouterr().out
    assert said.count("on the own class") == 4
    assert "mean cosine of a feature" in said
    content = json.loads((tmp_path / "figures.json").read_text())
    assert content["images"] == 1
    assert content["labels"]["tokens"] == content["stages"]["Global buffer"]["tokens"]


def test_tiny_world_brings_its_scenes_and_labels():
    samples, read = find_samples(["tiny-world"], None, 3)
    assert len(samples) == 3
    scene = render(2, 336, 448, "test")
    image, label = read(samples[2])
    np.testing.assert_array_equal(image, scene.image)
    np.testing.assert_array_equal(label, scene.labels)


def test_the_command_refuses_a_method_without_stages(tmp_path, capsys):
    assert main(["crossing", str(tmp_path), "--method", "proxyclip"]) == 2
    methods = "gla, gla-clearclip, gla-clip-dinoiser, gla-on-clip-keys or gla-ov-stitcher"
    assert f"choose {methods}" in capsys.readouterr().err
