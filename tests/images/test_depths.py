"""Pixels of every depth and transparency become what a viewer shows, or are refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from gla_jax.images.reading import as_rgb, read_image
from gla_jax.support.errors import ImageError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def png(depth, rows, *chunks, channels=1):
    """A grey PNG, or of 3 channels in RGB, of packed rows with extra chunks (type, data)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, colours = len(rows[0]) * 8 // depth // channels, {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colours, 0, 0, 0)
    parts = [
        (b"IHDR", header),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(data, width, bits, photometric=1, order="<", **more):
    """An uncompressed TIFF of one row, grey where no further tags (t277 for 277) say otherwise."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1, 279: len(data)}
    tags = dict(sorted((tags | {int(name[1:]): value for name, value in more.items()}).items()))
    entries = b"".join(struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


WIDE = np.array([0, 257, 32768, 65535])


@pytest.mark.parametrize(
    ("content", "grey"),
    [
        (png(16, [WIDE.astype(">u2").tobytes()]), [0, 1, 128, 255]),
        (tiff(WIDE.astype("<u2").tobytes(), 4, 16), [0, 1, 128, 255]),
        (tiff(WIDE.astype(">u2").tobytes(), 4, 16, order=">"), [0, 1, 128, 255]),
        (tiff(WIDE.astype("<u2").tobytes(), 4, 16, photometric=0), [255, 254, 127, 0]),
        (tiff(bytes([0x00, 0x00, 0x10, 0x80, 0x0F, 0xFF]), 4, 12), [0, 1, 128, 255]),
        (tiff(bytes([0b00011011]), 4, 2, photometric=0), [255, 170, 85, 0]),
        (png(2, [bytes([0b00011011])]), [0, 85, 170, 255]),
        # A grey value that is transparent is named at the file's own depth.
        (png(16, [WIDE.astype(">u2").tobytes()], (b"tRNS", struct.pack(">H", 257))), [0, 255, 128, 255]),
        (png(8, [bytes([0, 1, 128, 255])], (b"tRNS", struct.pack(">H", 1))), [0, 255, 128, 255]),
        (png(2, [bytes([0b00011011])], (b"tRNS", struct.pack(">H", 1))), [0, 255, 170, 255]),
        (png(1, [bytes([0b00011011])], (b"tRNS", struct.pack(">H", 0))), [255] * 8),
    ],
)
def test_grey_of_every_depth_is_what_a_viewer_shows(tmp_path, content, grey):
    (tmp_path / "a.png").write_bytes(content)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[value] * 3 for value in grey]


def test_a_colour_of_16_bits_that_is_transparent_is_named_at_its_own_depth(tmp_path):
    """Pillow compares it with the 8 bits that it keeps: another colour would vanish."""
    row = np.array([[257, 514, 771], [1, 2, 3], [65535, 0, 0]], ">u2").tobytes()
    (tmp_path / "a.png").write_bytes(png(16, [row], (b"tRNS", struct.pack(">HHH", 1, 2, 3)), channels=3))
    assert read_image(tmp_path / "a.png")[0].tolist() == [[1, 2, 3], [255, 255, 255], [255, 0, 0]]


def jpeg2000(bits):
    """White of so many bits."""
    pixels = np.full((64, 64, 3), 2**bits - 1, np.uint16 if bits > 8 else np.uint8)
    return cv2.imencode(".jp2", pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        # Pillow takes the low bytes of the first plane for pixels, and white of 16 bits for black.
        (tiff(bytes(12), 2, 16, 2, t277=3, t284=2), "colours of 16 bits are not supported in this kind of file"),
        (jpeg2000(16), "colours of 16 bits are not supported in this kind of file; save it as PNG"),
        (tiff(b"\xfb\x64", 2, 8, t339=2), "signed pixels have no range that is known"),  # -5 would be nearly white
        (tiff(struct.pack("<2h", -5, 100), 2, 16, t339=2), "signed pixels have no range that is known"),
        (
            b"".join(
                f"{name:8}= {value:>20}".ljust(80).encode()
                for name, value in {"SIMPLE": "T", "BITPIX": 16, "NAXIS": 2, "NAXIS1": 2, "NAXIS2": 1}.items()
            )
            + b"END".ljust(2480)
            + struct.pack(">2h", -5, 300),
            "pixels of a FITS file have no range that is known",
        ),
    ],
)
def test_pixels_that_would_be_read_wrongly_are_refused(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"a\.png: {reason}"):
        read_image(tmp_path / "a.png")


def test_colours_that_are_read_rightly_are_not_refused_with_them(tmp_path):
    for content, pixel in (
        (jpeg2000(8), [255, 255, 255]),
        (tiff(bytes([1, 2, 3] * 2), 2, 8, 2, t277=3), [1, 2, 3]),
        (tiff(np.array([257, 514, 771], "<u2").tobytes(), 1, 16, 2, t277=3), [1, 2, 3]),
        (tiff(bytes([0, 255, 0, 0]), 2, 8, t277=2, t338=1), [0, 0, 0]),  # alpha that is multiplied in
    ):
        (tmp_path / "a.png").write_bytes(content)
        assert read_image(tmp_path / "a.png")[0, 0].tolist() == pixel


@pytest.mark.parametrize("mode", ["PA", "LA", "La", "RGBa", "RGBA", "P"])
def test_every_kind_of_transparency_is_laid_over_white(mode):
    image = Image.fromarray(np.dstack([PIXELS, np.zeros((24, 32), np.uint8)]))
    if mode == "P":
        image = Image.new("P", (4, 4), 1)
        image.putpalette([9, 9, 9, 255, 5, 5, 5, 0], "RGBA")
    else:
        image = Image.new("La", (4, 4)) if mode == "La" else image.convert(mode)
    assert as_rgb(image).min() == 255
