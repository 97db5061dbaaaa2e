"""Images as users have them: every mode becomes the RGB a viewer shows, every bad file is one sentence."""

import inspect
import io
import os
import socket
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from gla_jax.images import reading
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


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK"])
def test_large_images_are_read_strip_by_strip(monkeypatch, mode):
    image = Image.fromarray(PIXELS).convert(mode)
    monkeypatch.setattr(reading, "STRIP_PIXELS", 5 * 32 + 1)
    np.testing.assert_array_equal(as_rgb(image), np.asarray(image.convert("RGB")))


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
    # A folder whose subfolders hold images says now that it skips these.
    with pytest.warns(UserWarning, match="has images in subfolders, which are skipped; add --recursive"):
        found = find_images([tmp_path / "b.png", tmp_path, f"{tmp_path}/**/*.png"])
    assert found == [tmp_path / name for name in ("b.png", "a.jpg", "d.AVIF", "e.jp2", "sub/c.png")]


def test_an_input_without_images_is_named(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match=r"none\*\.png does not exist"):
        find_images([f"{tmp_path}/none*.png"])


def test_subfolders_are_searched_when_asked(tmp_path):
    for name in ("b.png", "only/below/c.JPG", "sub/a.tif", "sub/notes.txt", "x.png/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images([tmp_path], recursive=True)]
    assert found == ["b.png", "only/below/c.JPG", "sub/a.tif", "x.png/d.png"]
    with pytest.raises(ImageError, match="has images in subfolders and none beside them; add --recursive"):
        find_images([tmp_path / "only"])


def test_a_whole_disk_is_not_searched_for_what_is_skipped(tmp_path, monkeypatch):
    for name in ("a.png", "b/b.png", "b/deep/b.png", "c/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    entered, scandir = [], os.scandir
    monkeypatch.setattr(reading.os, "scandir", lambda path: entered.append(path) or scandir(path))
    monkeypatch.setattr(reading, "MAX_LOOKED_INTO", 2)
    with pytest.warns(UserWarning, match="has images in subfolders, which are skipped"):
        assert find_images([tmp_path]) == [tmp_path / "a.png"]
    assert len(entered) == 2
    assert len(find_images([tmp_path], recursive=True)) == 4


def test_links_in_a_circle_come_to_an_end_and_name_each_image_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "b/up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert find_images([tmp_path], recursive=True) == [tmp_path / "a/a.png", tmp_path / "b/b.png"]


def test_folders_nested_deep_are_searched(tmp_path):
    """Each level would take a frame of a search that calls itself."""
    folder = tmp_path.joinpath(*["d"] * 200)
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        assert find_images([tmp_path], recursive=True) == [folder / "a.png"]
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize(
    "fault",
    [
        *(RuntimeError("x"), struct.error("x"), OverflowError("x"), ZeroDivisionError("x"), KeyError("x")),
        *(IndexError("x"), AttributeError("x"), UserWarning("x"), RecursionError("x"), TypeError("x"), EOFError()),
        *(MemoryError(), SyntaxError("x\ny"), OSError("x"), zlib.error("x"), NotImplementedError("x")),
    ],
    ids=repr,
)
def test_whatever_pillow_raises_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, fault):
    def broken(*_):
        raise fault

    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(reading, "to_rgb", broken)
    with pytest.raises(ImageError, match=r"a\.png (is damaged or cut off|needs more memory)") as caught:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(caught.value)


def test_a_damaged_avif_is_named(tmp_path):
    """Pillow raises a RuntimeError for it."""
    Image.fromarray(PIXELS).save(tmp_path / "m.avif")
    content = bytearray((tmp_path / "m.avif").read_bytes())
    content[81] = 0
    (tmp_path / "m.avif").write_bytes(content)
    with pytest.raises(ImageError, match=r"m\.avif is (damaged|not an image)"):
        read_image(tmp_path / "m.avif")


def test_pipes_sockets_and_devices_are_named_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.png")
        for name in (tmp_path / "pipe.png", tmp_path / "link.png", "socket.png", "/dev/zero"):
            with pytest.raises(ImageError, match=f"{name} is a pipe, a socket or a device, and never opened"):
                read_image(name)
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    for name, reason in (("nowhere", "does not exist"), ("itself", r"cannot be read \(Too many levels")):
        with pytest.raises(ImageError, match=rf"{name}\.png {reason}"):
            read_image(tmp_path / f"{name}.png")
    with pytest.raises(ImageError, match=r"cannot be read \(embedded null"):
        read_image("a\0.png")


def test_sizes_are_bounded(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for limit in (PIXELS.size // 3 - 1, 10):  # Pillow warns of the first and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ImageError, match=r"a\.png has more than 0 million pixels; cut it"):
            read_image(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS.size // 3)
    assert read_image(tmp_path / "a.png").shape == PIXELS.shape
    with open(tmp_path / "huge.webp", "wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8 ")
        file.truncate(2**40)
    with pytest.raises(ImageError, match=r"huge\.webp is larger than 1024 MiB"):
        read_image(tmp_path / "huge.webp")
    (tmp_path / "empty.ppm").write_bytes(b"P6 0 5 255\n")
    with pytest.raises(ImageError, match=r"empty\.ppm"):
        read_image(tmp_path / "empty.ppm")
    with pytest.raises(ImageError, match="an image of 0 x 5 pixels is empty"):
        as_rgb(Image.new("RGB", (0, 5)))


def test_a_file_is_never_handed_to_another_program(tmp_path):
    """Pillow gives EPS to Ghostscript."""
    Image.fromarray(PIXELS).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png cannot be read as an image: it is not an image, or of a kind"):
        read_image(tmp_path / "a.png")


def test_lab_becomes_rgb(tmp_path):
    rgb = Image.new("RGB", (4, 4), (200, 90, 5))
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    lab = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    assert np.abs(saved(tmp_path, lab, "a.tif")[0, 0].astype(int) - [200, 90, 5]).max() <= 4


def test_bytes_are_read_under_the_name_they_are_given():
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    np.testing.assert_array_equal(read_image(content.getvalue(), "record 3"), PIXELS)
    with pytest.raises(ImageError, match="record 4 cannot be read as an image"):
        read_image(b"", "record 4")


def test_a_damaged_picture_of_the_caller_is_one_sentence(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ImageError, match=r"a\.png is damaged or cut off"):
        as_rgb(image)
