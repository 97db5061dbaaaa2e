"""Label images to class indices: every benchmark's way of encoding them, mapped while they are read."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gla_jax.eval.metrics.areas import IGNORE
from gla_jax.images.reading import grey_step, opened
from gla_jax.support.arrays import Integer
from gla_jax.support.errors import DataError

WIDE_IGNORE = 65535
NAMED = "named"  # the encoding of labels of which classes.json names some values
LARGEST_NARROW = 254  # more classes than this need 16-bit labels: 255 is ignored
# Lossy formats, and one whose writers number colours anew.
CHANGING = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF", "GIF")
CHANGING_TIFF = ("jpeg", "tiff_jpeg", "webp")
_FOREIGN = 254  # marks values a table has no entry for; no narrow label has so many classes


@dataclass(frozen=True)
class LabelCode:
    """The mapping from raw values to classes: table maps 8-bit values, None takes those of more classes as they are."""

    classes: int
    table: bytes | None

    @property
    def ignore(self) -> int:
        """The value of pixels that count nowhere."""
        return WIDE_IGNORE if self.table is None else IGNORE

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """The type of labels."""
        return np.uint16 if self.table is None else np.uint8


def label_code(encoding: str, classes: int, tables: dict[str, dict[int, int]] | None = None) -> LabelCode:
    """The code of an encoding as FolderLayout names it. Raises ValueError for one that does not exist."""
    if classes > LARGEST_NARROW:
        if encoding != "plain":
            raise ValueError(f"encoding {encoding} is for at most {LARGEST_NARROW} classes")
        return LabelCode(classes, None)
    index_of = {IGNORE: IGNORE}
    if encoding in ("plain", "last_ignored"):
        index_of |= {index: index for index in range(classes)}
    elif encoding == "zero_ignored":
        index_of |= {0: IGNORE} | {index + 1: index for index in range(classes)}
    elif tables and encoding in tables:
        index_of |= tables[encoding]
    else:
        raise ValueError(f"there is no label encoding {encoding}")
    if encoding == "last_ignored":
        index_of[classes] = IGNORE
    return LabelCode(classes, bytes(index_of.get(raw, _FOREIGN) for raw in range(256)))


def stored_values(image: Image.Image, what: str, upright: bool) -> np.ndarray:
    """The numbers [h w] or [h w channels] that an opened file holds; black and white are 0 and 1.

    what: names the file in the error; upright: they are turned as its EXIF says. Raises DataError for a format that
    changes class indices.
    """
    if image.format in CHANGING or image.info.get("compression") in CHANGING_TIFF:
        raise DataError(
            f"{what} is a {image.format} file, which changes class indices when it is written; write labels as index "
            "PNGs from the data that they were made of."
        )
    step = grey_step(image)  # a file of 2 or 4 bits holds indices, which Pillow spreads over 0..255
    raw = np.asarray(ImageOps.exif_transpose(image) if upright else image)
    raw = raw.astype(np.uint8 if raw.dtype == bool else raw.dtype.newbyteorder("="))
    return raw // raw.dtype.type(step) if step > 1 else raw


def read_label(source: Path | bytes, code: LabelCode, name: str, upright: bool = False) -> Integer[np.ndarray, "h w"]:
    """A label image as class indices and the ignored value, uint8 [h w] (uint16 above 254 classes).

    Args:
        source: a path or the file's bytes.
        code: values of classes.
        name: of the label in messages.
        upright: turn it as its own EXIF says, like images.

    Raises DataError for a file that is no label image or holds a value that the encoding does not have.
    """
    with opened(source, name, DataError) as image:
        raw = stored_values(image, f"label {name}", upright)
    if raw.ndim != 2 or raw.dtype not in (np.uint8, np.uint16):
        raise DataError(
            f"label {name} is {raw.dtype} with shape {raw.shape}, but a label of {code.classes} classes is an index "
            f"PNG of {np.dtype(code.dtype).itemsize * 8} bits and one channel; write class indices, not colours."
        )
    if code.table is None:
        label = raw.astype(np.uint16)
        if raw.dtype == np.uint8 and (raw == IGNORE).any():
            if code.classes > IGNORE:
                raise DataError(
                    f"label {name} has 8 bits and holds {IGNORE}, which may be the class of that index or pixels to "
                    f"ignore; write it with 16 bits, where {WIDE_IGNORE} is ignored."
                )
            label[raw == IGNORE] = WIDE_IGNORE
        foreign = (label >= code.classes) & (label != WIDE_IGNORE)
    else:
        table = code.table
        if raw.dtype == np.uint16:
            table += bytes([_FOREIGN]) * (WIDE_IGNORE - 256) + bytes([IGNORE])
            label = np.frombuffer(table, np.uint8)[raw]
        else:
            label = np.frombuffer(raw.tobytes().translate(table), np.uint8).reshape(raw.shape)
        foreign = label == _FOREIGN
    if foreign.any():
        raise DataError(
            f"label {name} holds the value {int(raw[foreign][0])}, which stands for none of the {code.classes} "
            "classes; check that these are the labels of this benchmark."
        )
    return label


def write_label(path: Path | io.BytesIO, label: Integer[np.ndarray, "h w"]) -> None:
    """Class indices as an index PNG of 8 or 16 bits. Raises ValueError for another dtype."""
    if label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels are uint8 or uint16, not {label.dtype}")
    Image.fromarray(label).save(path, format="PNG")
