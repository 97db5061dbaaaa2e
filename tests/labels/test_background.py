"""The rules of the background: the published threshold, and our margin, which is off until it is asked for."""

from dataclasses import replace

import numpy as np
import pytest

from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import make_mesh
from gla_jax.eval.job import read_job
from gla_jax.eval.protocols import protocol, with_steps
from gla_jax.labels.background import labels_with_background, leads
from gla_jax.labels.pool import label_masks
from gla_jax.outputs.files import deciding_settings
from gla_jax.predict.predict import without_small_classes
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from tests import oracle
from tests.small_models import random_pair

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
CLASSES = ["sand; gravel", "water", "a red cloth with dots"]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    sizes = WindowConfig(short_side=48, crop=32, stride=16)
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("pair")), SegmenterConfig(windows=sizes))


@pytest.mark.parametrize(("threshold", "margin"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.1), (0.4, 0.1)])
def test_a_pixel_is_background_below_the_threshold_or_the_margin(threshold, margin):
    scores = oracle.softmax(np.random.default_rng(1).normal(size=(6, 7, 4))).transpose(2, 0, 1).astype(np.float32)
    found = labels_with_background(scores, threshold, margin, background=2)
    for row in range(6):
        for column in range(7):
            *_, second, best = sorted(scores[:, row, column])
            unsure = best < threshold or best - second < margin
            assert found[row, column] == (2 if unsure else scores[:, row, column].argmax())
    assert (leads(scores[:1]) == scores[0]).all()  # one class leads nothing


def test_it_is_a_setting_of_every_way_to_labels(segmenter):
    """Labels, a mesh and masks agree, and without it an image is what it was."""
    plain = segmenter(IMAGE, CLASSES, scores=True)
    margin = float(np.median(leads(plain.scores)))
    expected = labels_with_background(plain.scores, 0.0, margin, background=0)
    assert (expected != plain.labels).any()
    wary = segmenter.with_settings(background_margin=margin)
    mesh = Segmenter(segmenter.clip, segmenter.vfm, wary.config, mesh=make_mesh())
    for other in (wary, mesh):
        np.testing.assert_array_equal(other(IMAGE, CLASSES, background="sand").labels, expected)
    mask = np.zeros((60, 90), bool)
    mask[10:30, 20:50] = True
    means = plain.scores[:, mask].mean(1)
    for own in (float(leads(means)) - 1e-4, float(leads(means)) + 1e-4):
        masked = label_masks(plain.labels, plain.scores, [mask], background=0, margin=own)
        assert (masked[mask] == (means.argmax() if own < leads(means) else 0)).all()
    other = wary(IMAGE, CLASSES, background="void")  # a background of its own comes first and has no probability
    assert (other.labels == 0).any()


def test_without_a_background_it_is_one_sentence(segmenter):
    with pytest.raises(UserError, match=r"background_margin 0\.1 needs a class for the pixels below it; name one"):
        segmenter.with_settings(background_margin=0.1)(IMAGE, CLASSES)
    with pytest.raises(UserError, match=r"background_margin is 2\.0; give a number from 0 to 1"):
        segmenter.with_settings(background_margin=2.0)


def test_steps_of_our_own_are_another_protocol():
    """A figure with them must never stand beside the paper's."""
    row = protocol("voc21")
    assert with_steps(row) == row
    others = [with_steps(row, prune_below=0.2), with_steps(row, background_margin=0.1)]
    assert len({each.sha256 for each in (row, *others)}) == 3
    assert others[0].config("gla").prune_below == 0.2
    with pytest.raises(UserError, match="voc20 has no class for the background"):
        with_steps(protocol("voc20"), background_margin=0.1)
    with pytest.raises(UserError, match="prune_below is 3"):
        with_steps(row, prune_below=3)


def test_runs_of_before_go_on(segmenter):
    """Neither a folder nor a job of an earlier version names the settings that came later."""
    assert "background_margin" not in deciding_settings(segmenter.config)
    assert deciding_settings(replace(segmenter.config, background_margin=0.1))["background_margin"] == 0.1
    job = dict.fromkeys(("benchmark", "method", "preset", "dtype"), "x")
    job |= dict.fromkeys(("data", "model", "precision", "mesh", "limit"))
    job |= {"drop_duplicates": False, "save_predictions": False, "offline": True, "threads": 1, "batch": 1}
    assert (read_job(job).prune_below, read_job(job).background_margin) == (0.0, 0.0)


def test_small_classes_are_taken_away_as_sclip_does():
    """By hand: 20 pixels, class 0 on 8, class 1 on 10, class 2 on 2 of the 12 others, which is more than a tenth."""
    scores = np.full((4, 1, 20), 0.1, np.float32)
    for index, pixels in enumerate((slice(0, 8), slice(8, 18), slice(18, 20))):
        scores[index, 0, pixels] = 0.6
    scores[1, 0, 18:] = 0.2

    def labels(area_threshold, threshold):
        return labels_with_background(without_small_classes(scores, area_threshold), threshold)

    assert labels(0.1, 0.0)[0].tolist() == [0] * 8 + [1] * 10 + [2] * 2
    assert labels(2 / 12, 0.0)[0].tolist() == [0] * 8 + [1] * 12
    assert labels(2 / 12, 0.3)[0].tolist() == [0] * 8 + [1] * 10 + [0] * 2
