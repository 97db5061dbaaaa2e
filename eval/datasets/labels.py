"""Label images to class indices: every benchmark's way of encoding them, mapped while they are read."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gla_jax.eval.metrics.areas import IGNORE
from gla_jax.support.errors import DataError
from gla_jax.support.shapes import Integer, UInt8

WIDE_IGNORE = 65535
LARGEST_NARROW = 254  # more classes than this need 16-bit labels: 255 is ignored
_FOREIGN = 254  # marks values a table has no entry for; no narrow label has so many classes


@dataclass(frozen=True)
class LabelCode:
    """How raw values become classes: table maps 8-bit values, None takes those of more classes as they are."""

    classes: int
    table: bytes | None

    @property
    def ignore(self) -> int:
        """The value of pixels that count nowhere."""
        return WIDE_IGNORE if self.table is None else IGNORE

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """What labels are held as."""
        return np.uint16 if self.table is None else np.uint8


def label_code(encoding: str, classes: int, tables: dict[str, dict[int, int]] | None = None) -> LabelCode:
    """The code of an encoding as FolderLayout names it. Raises ValueError for one that does not exist."""
    if classes > LARGEST_NARROW:
        if encoding != "plain":
            raise ValueError(f"encoding {encoding} is for at most {LARGEST_NARROW} classes")
        return LabelCode(classes, None)
    known = {IGNORE: IGNORE}
    if encoding in ("plain", "last_ignored"):
        known |= {index: index for index in range(classes)}
    elif encoding == "zero_ignored":
        known |= {0: IGNORE} | {index + 1: index for index in range(classes)}
    elif tables and encoding in tables:
        known |= tables[encoding]
    else:
        raise ValueError(f"there is no label encoding {encoding}")
    if encoding == "last_ignored":
        known[classes] = IGNORE
    return LabelCode(classes, bytes(known.get(raw, _FOREIGN) for raw in range(256)))


def read_label(source: Path | bytes, code: LabelCode, name: str) -> Integer[np.ndarray, "h w"]:
    """A label image as class indices and the ignored value, uint8 (uint16 above 254 classes).

    source: a path or the file's bytes; name stands in messages. Raises DataError for a file that is no label image or
    holds a value the encoding does not know.
    """
    raw = _decode(source, name, None)
    if code.table is None and raw.dtype == np.uint8:
        raw = _widened(raw, code, name)
    if raw.ndim != 2 or raw.dtype != code.dtype:
        raise DataError(
            f"label {name} is {raw.dtype} with shape {raw.shape}, but a label of {code.classes} classes is an index "
            f"PNG of {np.dtype(code.dtype).itemsize * 8} bits and one channel; write class indices, not colours."
        )
    if code.table is None:
        foreign = (raw >= code.classes) & (raw != WIDE_IGNORE)
        label = raw
    else:
        label = np.frombuffer(raw.tobytes().translate(code.table), np.uint8).reshape(raw.shape)
        foreign = label == _FOREIGN
    if foreign.any():
        raise DataError(
            f"label {name} holds the value {int(raw[foreign][0])}, which stands for none of the {code.classes} "
            "classes; check that these are the labels of this benchmark."
        )
    return label


def _widened(raw: UInt8[np.ndarray, "..."], code: LabelCode, name: str) -> np.ndarray:
    """Values of 8 bits where there are more classes than these hold: 255 is ignored unless it may be a class."""
    wide = raw.astype(np.uint16)
    if code.classes <= IGNORE:
        wide[raw == IGNORE] = WIDE_IGNORE
    elif (raw == IGNORE).any():
        raise DataError(
            f"label {name} has 8 bits and holds {IGNORE}, which may be the class of that index or pixels to ignore; "
            f"write it with 16 bits, where {WIDE_IGNORE} is ignored."
        )
    return wide


def read_image(source: Path | bytes, name: str) -> UInt8[np.ndarray, "h w 3"]:
    """A benchmark's image as RGB; EXIF rotation is not applied, since labels do not know it. Raises DataError."""
    return _decode(source, name, "RGB")


def write_label(path: Path | io.BytesIO, label: Integer[np.ndarray, "h w"]) -> None:
    """Class indices as an index PNG of 8 or 16 bits. Raises ValueError for another dtype."""
    if label.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels are uint8 or uint16, not {label.dtype}")
    Image.fromarray(label).save(path, format="PNG")


def _decode(source: Path | bytes, name: str, mode: str | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if mode and picture.mode != mode:
                return np.asarray(picture.convert(mode))
            return np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} cannot be read as an image ({reason}); fetch the data set again.") from error
