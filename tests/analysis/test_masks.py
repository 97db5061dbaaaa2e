"""Masks of `explain` and labels of `crossing`: the values that lie on the image's pixels."""

import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis.explain_files import read_mask
from gla_jax.support.errors import ImageError, UserError

VALUES = np.random.default_rng(0).integers(0, 256, (60, 90), np.uint8)


def test_masks_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(VALUES).convert("RGB").save(path)
    with pytest.raises(ImageError, match="holds colours"):
        read_mask(path, (60, 90))
    Image.fromarray(np.zeros((60, 91), np.uint8)).save(path)
    with pytest.raises(ImageError, match="91 x 60 pixels, but the image has 90 x 60"):
        read_mask(path, (60, 90))
    Image.fromarray(np.ones((60, 90), bool)).save(path)
    assert read_mask(path, (60, 90)).sum() == 60 * 90
    Image.fromarray(VALUES).save(path, "JPEG")
    with pytest.raises(UserError, match=r"^the mask .* is a JPEG file, which changes class indices"):
        read_mask(path, (60, 90))


def test_a_mask_is_turned_as_its_exif_says(tmp_path):
    """The image is turned too: without, the object at a pixel would be another one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(VALUES))).save(tmp_path / "mask.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png", (60, 90)), VALUES)
