"""Shares of attention over whole images: each token's must be the one that `explain` draws for it."""

import numpy as np
import pytest

from gla_jax import crossing
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.crossing import Crossing, crossings, summary
from gla_jax.explain import explain
from gla_jax.segmenter import Segmenter
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("at_once", [50, 512])
def test_every_token_has_the_share_that_explain_draws(folder, monkeypatch, at_once):
    monkeypatch.setattr(crossing, "QUERIES_AT_ONCE", at_once)
    segmenter = Segmenter.from_pretrained(folder, CONFIG)
    found = crossings(segmenter, IMAGE)
    for at in ((3, 3), (40, 20), (69, 39)):
        drawn = explain(segmenter, IMAGE, at)
        for stage in drawn.stages:
            own = found[stage.name]
            assert own.outside[drawn.window, drawn.token] == pytest.approx(stage.outside, abs=1e-5)
            assert (own.counts is None) == (stage.count is None)
            if stage.count is not None:
                assert own.counts[drawn.window, drawn.token] == stage.count


def test_the_summary_counts_tokens_not_images():
    small = {"a": Crossing(np.full((1, 1), 1.0, np.float32), np.ones((1, 1)))}
    large = {"a": Crossing(np.zeros((1, 3), np.float32), np.array([[5.0, 5.0, 9.0]]))}
    (row,) = summary([small, large]).values()
    assert row == {"tokens": 4, "outside": 25.0, "anchor_mean": 5.0, "anchor_median": 5.0, "alone": 25.0}


def test_the_command_refuses_a_method_without_stages(tmp_path, capsys):
    assert main(["crossing", str(tmp_path), "--method", "proxyclip"]) == 2
    assert "choose gla, gla-clearclip or gla-clip" in capsys.readouterr().err
