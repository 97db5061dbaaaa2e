"""NumPy's .npz archives, in which TIPS is published: one file for the images and one for the texts of a model."""

import io
import math
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from gla_jax.convert.rules import first_names
from gla_jax.convert.zip_file import MappedZip, naming
from gla_jax.support.errors import ConversionError

PAIR = ("_vision.npz", "_text.npz")  # ends of the two files of a model, in the order in which they are read
FIRST_TIPS = "tips_oss_"  # how the files of the first TIPS are named; TIPSv2's are tips_v2_
MAX_HEADER = 10_000  # bytes of an array's header; NumPy writes 118
MAX_INFLATION = 8  # times the file's size: what its arrays unpack to; trained float32 weights reach 1.1, rounded ones 2
_HEADERS: Mapping[tuple[int, int], Callable] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def npz_pair(path: Path) -> tuple[str, str]:
    """The names of the two files of a model, of which path is one and the other lies beside it.

    Raises ConversionError for another name, for files of the first TIPS and where the other is missing.
    """
    end = next((end for end in PAIR if path.name.endswith(end)), None)
    if end is None:
        raise ConversionError(
            f"{path} is not named NAME{PAIR[0]} or NAME{PAIR[1]}, as the two files of a TIPSv2 are; give both files "
            "those names and name one of them."
        )
    if path.name.startswith(FIRST_TIPS):
        raise ConversionError(
            f"{path} is a file of the first TIPS by its name, and TIPSv2 is converted; take tips_v2_b14{end} or "
            f"tips_v2_l14{end}."
        )
    names = tuple(path.name.removesuffix(end) + other for other in PAIR)
    missing = next((name for name in names if not (path.parent / name).is_file()), None)
    if missing:
        raise ConversionError(
            f"{path} holds one of the two towers of its model, and {missing} is not beside it; put it there too."
        )
    return names


def open_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, as views of it where they are not compressed.

    Raises ConversionError, naming the file, for anything that is not plain numbers.
    """
    with naming(path):
        archive = MappedZip(path)
        foreign = [name for name in archive.entries if not name.endswith(".npy")]
        if foreign:
            raise ConversionError(f"it is a zip file, but not one that NumPy writes: it holds {first_names(foreign)}.")
        deflated = sum(
            entry.file_size for entry in archive.entries.values() if entry.compress_type != zipfile.ZIP_STORED
        )
        if deflated > MAX_INFLATION * archive.bytes.size:
            raise ConversionError(
                f"its arrays unpack to {deflated} bytes, more than weights in a file of {archive.bytes.size}."
            )
        names = [name.removesuffix(".npy") for name in archive.entries]
        return {name: _array(first_names([name]), archive.read(f"{name}.npy", first_names([name]))) for name in names}


def _array(shown: str, content: np.ndarray) -> np.ndarray:
    """The array of a .npy file's bytes, as a view of them; shown: its name in messages."""
    head = io.BytesIO(content[: MAX_HEADER + 12].tobytes())
    try:
        shape, by_columns, dtype = _HEADERS[npy.read_magic(head)](head, max_header_size=MAX_HEADER)
    except Exception:  # NumPy reads it with Python's parser, which raises errors of many kinds
        raise ConversionError(f"its array {shown} has no header that NumPy writes; download it again.") from None
    if dtype.hasobject:
        raise ConversionError(
            f"its array {shown} holds Python objects in place of numbers, and no pickle is run; save the weights alone."
        )
    if dtype.kind not in "fiub":
        raise ConversionError(
            f"its array {shown} stores {str(dtype)[:60]}, which is not converted; save it as float32."
        )
    numbers = content[head.tell() :]
    try:
        if math.prod(shape) * dtype.itemsize != numbers.size:
            raise ValueError
        return np.ndarray(shape, dtype, numbers, order="F" if by_columns else "C")
    except (ValueError, TypeError):  # NumPy's: a negative side, more axes than it has, or True for a side
        raise ConversionError(
            f"its array {shown} has {numbers.size} bytes, which are not {str(shape)[:60]} of {dtype}; download it "
            "again."
        ) from None
