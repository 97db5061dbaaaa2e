"""Labels by given masks: the rule in float64, every form of a mask, and what is refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.images.masks import from_rle, read_masks
from gla_jax.labels.pool import label_masks
from gla_jax.results.regions import coco_rle
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import ImageError, UserError
from tests.small_models import random_pair

RNG = np.random.default_rng(5)
SIZE = 20, 31
IMAGE = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def boxes(*corners):
    masks = []
    for top, left, bottom, right in corners:
        masks.append(np.zeros(SIZE, bool))
        masks[-1][top:bottom, left:right] = True
    return masks


# Overlaps of three, two masks of one size, one pixel, one that is empty, and pixels without any.
MASKS = boxes(
    (0, 0, 18, 30), (2, 3, 9, 9), (4, 4, 8, 20), (10, 0, 14, 6), (12, 2, 16, 8), (19, 30, 20, 31), (5, 5, 5, 9)
)


def by_pixel(labels, scores, masks, threshold, background):
    """The rule, pixel by pixel in float64."""
    means = [scores[:, mask].astype(np.float64).mean(1) for mask in masks if mask.any()]
    winners = [background if mean.max() < threshold else mean.argmax() for mean in means]
    masks = [mask for mask in masks if mask.any()]
    result = labels.copy()
    for y, x in np.ndindex(labels.shape):
        covering = [number for number, mask in enumerate(masks) if mask[y, x]]
        if covering:
            result[y, x] = winners[min(covering, key=lambda number: (masks[number].sum(), number))]
    return result


@pytest.mark.parametrize("threshold", [0.0, 0.21])
def test_the_smallest_mask_wins_and_the_rest_keep_their_labels(threshold):
    scores = RNG.dirichlet(np.ones(5), SIZE).transpose(2, 0, 1).astype(np.float32)
    labels = scores.argmax(0).astype(np.uint8)
    found = label_masks(labels, scores, MASKS, threshold, 3)
    np.testing.assert_array_equal(found, by_pixel(labels, scores, MASKS, threshold, 3))
    assert found.dtype == np.uint8
    assert (found != labels).any()


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_are_those_of_cocos_own_code(seed):
    mask = np.random.default_rng(seed).random(SIZE) < (0.5, 0.02, 0, 1)[seed]
    packed = coco_rle(mask)
    np.testing.assert_array_equal(from_rle(packed, "it", SIZE), mask)
    flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
    edges = np.flatnonzero(np.diff(flat))
    plain = np.diff(np.concatenate([[0], edges])).tolist()
    np.testing.assert_array_equal(from_rle({"size": SIZE, "counts": plain}, "it", SIZE), mask)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    config = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), config)


def test_arrays_pngs_run_lengths_and_what_sam_writes_are_the_same(segmenter, tmp_path):
    options = {"background": "sky", "threshold": 0.4}
    plain = segmenter(IMAGE, ["sand; gravel", "water"], scores=True, **options)
    apart = [MASKS[1], MASKS[3], MASKS[5]]
    index = np.zeros(SIZE, np.uint16)
    for number, mask in zip((7, 300, 2), apart, strict=True):
        index[mask] = number
    Image.fromarray(index).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps([coco_rle(mask) for mask in apart]))
    sam = [{"segmentation": apart[0], "area": 3}, {"segmentation": coco_rle(apart[1])}, apart[2]]
    expected = by_pixel(plain.labels, plain.scores, apart, 0.4, 0)
    others = [jnp.asarray(apart[0]), *apart[1:]]
    for masks in (apart, np.stack(apart), others, tmp_path / "a.png", str(tmp_path / "a.json"), sam):
        result = segmenter(IMAGE, ["sand; gravel", "water"], masks=masks, **options)
        np.testing.assert_array_equal(result.labels, expected)
        assert result.scores is None


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (MASKS[0], "are ndarray, not a list of masks"),
        ([MASKS[0].astype(np.uint8)], "mask 1 is of type uint8; give bool arrays"),
        ([MASKS[0], MASKS[0][:5]], "mask 2 has 5 x 31 pixels, the image 20 x 31"),
        ([{"size": [10**9, 10**9], "counts": [10**18]}], "mask 1 has 1000000000 x 1000000000 pixels"),
        ([{"size": SIZE, "counts": [1, -2, 621]}], "the run lengths of mask 1 are damaged"),
        ([{"size": SIZE, "counts": ""}], "the run lengths of mask 1 are damaged"),
        ([{"size": SIZE, "counts": "\x00~~~"}], "the run lengths of mask 1 are damaged"),
        ([{"counts": "abc"}], "the run lengths of mask 1 are damaged"),
        ("no.png", "no.png does not exist"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, reason):
    with pytest.raises(ImageError, match=reason):
        read_masks(masks, SIZE)


def test_a_picture_with_colours_is_no_index(tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match="has colours"):
        read_masks(tmp_path / "a.png", SIZE)


def test_each_image_has_its_masks(segmenter):
    with pytest.raises(UserError, match="masks for 1 images, not 2"):
        segmenter.batch([IMAGE, IMAGE], ["sand", "water"], masks=[MASKS])
