"""Images as users have them: every mode becomes the RGB a viewer shows, every bad file is one sentence."""

import cv2
import numpy as np
import pytest
from PIL import Image

from gla_jax.images.reading import as_rgb, find_images, read_image
from gla_jax.support.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.bmp"])
def test_lossless_rgb_is_read_as_it_is(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(PIXELS), name, **options), PIXELS)


def test_jpeg_is_close(tmp_path):
    smooth = np.broadcast_to(np.arange(32, dtype=np.uint8)[None, :, None] * 8, (24, 32, 3))
    read = saved(tmp_path, Image.fromarray(np.ascontiguousarray(smooth)), "a.jpg", quality=95)
    assert np.abs(read.astype(int) - smooth).max() <= 4


def test_grey_16_bits_keep_their_range(tmp_path):
    wide = np.array([[0, 257, 32768, 65535]], np.uint16).repeat(4, 0)
    read = saved(tmp_path, Image.fromarray(wide), "a.png")
    np.testing.assert_array_equal(read[0], [[0] * 3, [1] * 3, [128] * 3, [255] * 3])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_colours_of_16_bits_keep_their_range(tmp_path, name):
    cv2.imwrite(str(tmp_path / name), PIXELS[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / name), PIXELS)


def test_grey_maps_of_16_bits_keep_their_range(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 4 1 65535\n" + np.array([0, 257, 32768, 65535], ">u2").tobytes())
    assert read_image(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("values", [PIXELS[..., 0], PIXELS[..., 0].astype(np.int32) * 257])
def test_integers_of_32_bits_are_refused(tmp_path, values):
    """As 16 bits, values up to 255 would be a black image."""
    with pytest.raises(ImageError, match=r"a\.tif: pixels of 32 bits have no range"):
        saved(tmp_path, Image.fromarray(values.astype(np.int32)), "a.tif")


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_one_channel_becomes_three(tmp_path, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    np.testing.assert_array_equal(saved(tmp_path, image, "a.png"), np.asarray(image.convert("RGB")))


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert saved(tmp_path, image, "a.tif")[0, 0].tolist() == [255, 0, 0]
    # In a JPEG the inks are stored the other way round.
    assert np.abs(saved(tmp_path, image, "a.jpg")[0, 0].astype(int) - [255, 0, 0]).max() <= 2


def test_transparent_pixels_are_white(tmp_path):
    image = np.zeros((4, 4, 4), np.uint8)
    image[:2, :, 3] = 255
    read = saved(tmp_path, Image.fromarray(image), "a.png")
    assert read[0, 0].tolist() == [0, 0, 0]
    assert read[3, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("orientation", "turned"), [(3, np.rot90(PIXELS, 2)), (6, np.rot90(PIXELS, -1))])
def test_a_turned_camera_is_turned_back(tmp_path, orientation, turned):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(PIXELS), "a.png", exif=exif), turned)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_turned_back(tmp_path, orientation):
    """A phone writes JPEG, and labels must lie on the picture that a viewer shows."""
    upright = np.zeros((32, 64, 3), np.uint8)
    upright[:16, :32], upright[16:, 32:] = (255, 0, 0), (0, 0, 255)
    flips = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.transpose(1, 0, 2)}
    flips |= {6: np.rot90, 7: lambda x: np.rot90(x, 2).transpose(1, 0, 2), 8: lambda x: np.rot90(x, -1)}
    stored = np.ascontiguousarray(flips.get(orientation, lambda x: x)(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = saved(tmp_path, Image.fromarray(stored), "a.jpg", exif=exif, quality=100, subsampling=0)
    assert np.abs(read.astype(int) - upright).max() <= 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"just text", "not an image"),
        (b"II*\0", "not an image|cut off"),
        (None, "is damaged or cut off"),
        (..., "does not exist"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path, content, reason):
    path = tmp_path / "bad.png"
    if content is None:
        Image.fromarray(PIXELS).save(path)
        content = path.read_bytes()[:200]
    if content is not ...:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=f"bad.png.*{reason}") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_folder_and_a_name_too_long_are_not_called_damaged(tmp_path):
    with pytest.raises(ImageError, match="is a folder; name an image in it"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"cannot be read .*too long"):
        read_image(tmp_path / ("x" * 300 + ".png"))
    with pytest.raises(ImageError, match="does not exist"):
        find_images([tmp_path / ("x" * 300 + ".png")])


def test_floating_point_colours_are_not_answered_with_their_own_format(tmp_path):
    cv2.imwrite(str(tmp_path / "a.tif"), PIXELS.astype(np.float32))
    with pytest.raises(ImageError, match="TIFF with floating-point colours; save it as JPEG or PNG"):
        read_image(tmp_path / "a.tif")


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(ImageError, match=r"a\.tif: floating-point pixels have no range"):
        saved(tmp_path, Image.fromarray(np.zeros((4, 4), np.float32)), "a.tif")


def test_arrays_are_taken_as_rgb():
    np.testing.assert_array_equal(as_rgb(PIXELS), PIXELS)
    assert as_rgb(PIXELS[..., 0]).shape == (24, 32, 3)
    for wrong in (PIXELS / 255, PIXELS[..., :2], PIXELS[:0]):
        with pytest.raises(ImageError, match="is not an image; give uint8"):
            as_rgb(wrong)


def test_files_folders_and_patterns_name_each_image_once(tmp_path):
    for name in ("b.png", "a.jpg", "notes.txt", "sub/c.png", "d.AVIF", "e.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / "b.png", tmp_path, f"{tmp_path}/**/*.png"])
    assert found == [tmp_path / name for name in ("b.png", "a.jpg", "d.AVIF", "e.jp2", "sub/c.png")]


def test_an_input_without_images_is_named(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match=r"none\*\.png does not exist"):
        find_images([f"{tmp_path}/none*.png"])
