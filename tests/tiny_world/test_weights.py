"""The shipped weights on a few held-out scenes; the whole table is `python -m gla_jax.eval.tiny_world`."""

from pathlib import Path

import pytest

import gla_jax.tiny_world
from gla_jax.eval.tiny_world import GLA, PROXYCLIP, RANDOM, contenders, measure, table
from gla_jax.segmenter import Segmenter

FOLDER = Path(gla_jax.tiny_world.__file__).parent / "weights"
SEEDS = range(3)


@pytest.fixture(scope="module")
def rows():
    return contenders(Segmenter.from_pretrained("tiny-world"))


def test_weights_are_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 10_000_000


def test_trained_weights_beat_random_ones_and_gla_beats_its_host(rows):
    results = {name: measure(rows[name], SEEDS) for name in (PROXYCLIP, GLA, RANDOM)}
    assert results[RANDOM]["aacc"] < 20
    assert results[PROXYCLIP]["aacc"] > 60
    assert results[GLA]["aacc"] > results[PROXYCLIP]["aacc"]
    assert results[GLA]["ber_1"] < results[PROXYCLIP]["ber_1"]
    assert table(results).row_count == 3


def test_measure_leaves_out_classes_that_do_not_occur(rows):
    figures = measure(rows[GLA], range(1))
    assert figures["miou"] <= 100
    assert figures["miou"] == pytest.approx(figures["miou"])  # a number, although most classes are absent
