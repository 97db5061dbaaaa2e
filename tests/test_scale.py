"""Any resolution, any number of images: few programs, and nothing that grows with the square of an image."""

import math
import re

import jax
import numpy as np
import pytest
from PIL import Image

from gla_jax.config import MethodConfig, SegmenterConfig, WindowConfig
from gla_jax.distributed.processes import Processes
from gla_jax.images.windows import bucket
from gla_jax.labels import label_map as classify
from gla_jax.outputs.run import Task, segment_files
from gla_jax.pipeline import segment_features
from gla_jax.predict import model as module
from gla_jax.predict.cost import blank_windows
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.text.prompts import parse_classes
from tests.small_models import random_pair

WINDOWS = WindowConfig(short_side=48, crop=32, stride=16)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), SegmenterConfig(windows=WINDOWS))


def test_a_folder_of_fifty_sizes_compiles_once_a_bucket(segmenter):
    """A compilation an image would take longer than the images."""
    rng = np.random.default_rng(0)
    sizes = {(int(h), int(w)) for h, w in rng.integers(30, 400, (50, 2))}
    assert len(sizes) == 50
    buckets = {bucket(image_grid(size, WINDOWS).count) for size in sizes}
    assert 5 < len(buckets) < 20
    towers, labels, logits = module._segment_features, classify._label_tile, classify._token_logits
    before = [program._cache_size() for program in (towers, labels, logits)]
    for size in sizes:
        segmenter(np.zeros((*size, 3), np.uint8), ["sand", "water"])
    after = [program._cache_size() for program in (towers, labels, logits)]
    compiled = [now - then for now, then in zip(after, before, strict=True)]
    assert compiled[0] <= len(buckets)
    assert compiled[2] <= len(buckets)
    # A tile's program also knows the lengths of its bands, which are few.
    assert compiled[1] <= 4 * len(buckets)


@pytest.mark.parametrize("form", ["blockwise", "dense"])
def test_no_array_of_all_tokens_by_all_tokens_exists(segmenter, form):
    """The dense form, which has one, shows that the test would see it."""
    config = SegmenterConfig(MethodConfig(block_size=64, attention=form), WINDOWS, tower_batch=4)
    windows = blank_windows(256, config)
    tokens = 256 * 16
    program = jax.jit(segment_features).lower(segmenter.params, windows, config).compile().as_text()
    shapes = re.findall(r"(?:f32|pred|s32|bf16|u8)\[([\d,]+)\]", program)
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert (largest >= tokens**2) == (form == "dense")
    if form == "blockwise":
        assert largest <= max(windows.pixels.size, tokens * 64)


def test_a_large_image_is_told_what_it_costs_before(segmenter, tmp_path, monkeypatch):
    """Half an hour on a laptop must not come as a surprise."""
    monkeypatch.setattr(module, "MAX_PROGRAM_WINDOWS", 4)
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "large.png")
    said = []
    task = Task(segmenter, parse_classes(["sand", "water"]))
    done = segment_files(task, [tmp_path / "large.png"], tmp_path, Processes(), said.append)
    assert (done.images, done.failed) == (1, 0)
    assert len(said) == 1
    assert "large.png: 8 windows, 128 tokens, " in said[0]
    assert "TFLOP, about" in said[0]
