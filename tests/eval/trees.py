"""Small data sets in the layouts users have, with labels that are known pixel by pixel."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# The nine values stand in rows of a 9 x 12 label: raw values per encoding are put in here.
SIZE = (9, 12)


def label_of(values: list[int], dtype=np.uint8) -> np.ndarray:
    """A label whose rows hold the values in turn."""
    return np.array([values[row % len(values)] for row in range(SIZE[0])], dtype)[:, None].repeat(SIZE[1], 1)


def save_image(path: Path, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


def save_label(path: Path, label: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(label)
    if palette:
        picture.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
    picture.save(path)


def packed_png(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG whose pixels have 1, 2, 4 or 8 bits, with the values as they are."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(len(values), -1)
    lines = b"".join(b"\0" + np.packbits(row).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], len(values), bits, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def voc(root: Path, values: list[int], stems: tuple[str, ...] = ("b", "a")) -> Path:
    """VOC2012: a split file whose order is not alphabetical, palette PNGs."""
    for seed, stem in enumerate(stems):
        save_image(root / f"JPEGImages/{stem}.jpg", seed)
        save_label(root / f"SegmentationClass/{stem}.png", label_of(values), palette=True)
    save_image(root / "JPEGImages/not_in_the_split.jpg")
    split = root / "ImageSets/Segmentation/val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("".join(f"{stem}\n" for stem in stems))
    return root


def cityscapes(root: Path, values: list[int], suffix: str) -> Path:
    for city, stem in (("munster", "munster_1"), ("lindau", "lindau_0")):
        save_image(root / f"leftImg8bit/val/{city}/{stem}_leftImg8bit.png")
        save_label(root / f"gtFine/val/{city}/{stem}{suffix}", label_of(values))
    return root


def coco(root: Path, values: list[int], suffix: str, images: str = "images/val2017") -> Path:
    save_image(root / images / "000000000001.jpg")
    save_label(root / f"annotations/val2017/000000000001{suffix}", label_of(values))
    return root


def ade20k(root: Path, values: list[int]) -> Path:
    save_image(root / "images/validation/ADE_val_00000001.jpg")
    save_label(root / "annotations/validation/ADE_val_00000001.png", label_of(values))
    return root


def camvid(root: Path, values: list[int]) -> Path:
    save_image(root / "images/x.png")
    save_label(root / "labels/x.png", label_of(values))
    (root / "val.txt").write_text("x\n")
    return root


def folder(root: Path, classes: int, values: list[int], dtype=np.uint8) -> Path:
    save_image(root / "images/one.png", 1)
    save_image(root / "images/two.jpg", 2)
    for stem in ("one", "two"):
        save_label(root / f"labels/{stem}.png", label_of(values, dtype))
    (root / "classes.txt").write_text("".join(f"thing {index}; object {index}\n" for index in range(classes)))
    return root
