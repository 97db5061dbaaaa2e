"""A large image in steps: the same features as in one program, every step counted."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax import pipeline
from gla_jax.config import METHODS, MethodConfig, SegmenterConfig, WindowConfig, without_gla
from gla_jax.pipeline import query_chunk, segment_features, segment_in_steps
from gla_jax.predict import model as module
from gla_jax.predict.model import prepare_image
from gla_jax.segmenter import Segmenter
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16), tower_batch=3)
IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
VARIANTS = {name: METHODS[name] for name in ("gla", "gla-clearclip", "gla-sclip", "sclip", "proxyclip")} | {
    "one mean over all": replace(without_gla("proxyclip"), global_buffer=True, proxy_anchors=True),
    "windows alone, dynamic": MethodConfig(global_buffer=False),
}


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_give_the_features_of_one_program(segmenter, name, monkeypatch):
    monkeypatch.setattr(pipeline, "QUERY_CHUNK", 50)
    # Steps of 50 queries: four blocks of 512 would hold all.
    config = replace(CONFIG, method=replace(VARIANTS[name], block_size=12))
    windows, grid, _ = prepare_image(IMAGE, CONFIG.windows, lambda count: -(-count // 3) * 3)
    assert len(windows.valid) > grid.count  # padding must leave no trace
    seen = []
    found = segment_in_steps(segmenter.params, windows, config, lambda done, of: seen.append((done, of)))
    expected = jax.jit(segment_features)(segmenter.params, jax.tree.map(jnp.asarray, windows), config)
    np.testing.assert_allclose(found[: grid.count], expected[: grid.count], atol=2e-5)
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert {of for _, of in seen} == {len(seen)}


@pytest.mark.parametrize(
    ("queries", "size"),
    # 168 windows in seven equal steps of five blocks; a prime number, which has none; fewer than a step has.
    [(168 * 784, 168 * 784 // 7), (131_713, 16_384), (5_000, 16_384)],
)
def test_steps_are_equal_where_they_can_be(queries, size):
    """The shorter last step of a large image would take as long to compile as all the others."""
    assert query_chunk(queries, MethodConfig(block_size=4096)) == size


def test_images_of_many_windows_go_in_steps(segmenter, monkeypatch):
    expected = segmenter(IMAGE, ["sand", "water"], scores=True)
    monkeypatch.setattr(module, "MAX_PROGRAM_WINDOWS", 4)
    seen = []
    found = segmenter(IMAGE, ["sand", "water"], scores=True, progress=lambda done, of: seen.append(done / of))
    assert seen[-1] == 1
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
