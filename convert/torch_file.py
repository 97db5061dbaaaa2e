"""PyTorch's zip format (.pt, .pth, .bin, TorchScript archives) without PyTorch.

A file of this format is an uncompressed zip of a pickle and the bytes of its storages. Nothing is extracted: names in
the archive are only looked up, and tensors are views of the mapped file.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.convert.rules import some
from gla_jax.convert.torch_pickle import ScriptModule, Tensor, unpickle
from gla_jax.support.errors import ConversionError

# Where checkpoints of training runs keep the weights; DINO is evaluated with its teacher.
WRAPPERS = ("state_dict", "model_state_dict", "teacher", "student", "model")
LARGEST_PICKLE = 1 << 28  # bytes; that of a 40-block model with its optimiser is under 2^20
MOST_MODULES = 10_000


@dataclass(frozen=True)
class TorchFile:
    """The tensors of a file, each read when its function is called, and whether TorchScript wrote it."""

    tensors: Mapping[str, Callable[[], np.ndarray]]
    torchscript: bool


class _Archive:
    """The entries of a PyTorch zip file, mapped into memory."""

    def __init__(self, path: Path):
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            raise ConversionError(f"it is a damaged or incomplete zip file ({error}); download it again.") from error
        self.entries = {entry.filename: entry for entry in entries}
        pickles = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or len(self.entries) != len(entries):
            raise ConversionError("it is a zip file, but not one that PyTorch writes.")
        self.root = pickles[0].removesuffix("data.pkl")
        self.bytes = np.memmap(path, np.uint8, "r")

    def read(self, name: str) -> np.ndarray:
        """The bytes of an entry, uncopied. Raises ConversionError when they are not those that were written."""
        entry = self.entries.get(self.root + name)
        if entry is None:
            raise ConversionError(f"its archive lacks {name}; download it again.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ConversionError(f"{name} in its archive is compressed or encrypted, which PyTorch never writes.")
        # The local header repeats the name and an extra field of its own length; the bytes follow.
        header = np.asarray(self.bytes[entry.header_offset : entry.header_offset + 30])
        if header.size < 30 or header[:4].tobytes() != b"PK\x03\x04":
            raise ConversionError(f"its archive is damaged at {name}; download it again.")
        lengths = header[26:30].view("<u2")
        start = entry.header_offset + 30 + int(lengths.sum(dtype=np.int64))
        content = np.asarray(self.bytes[start : start + entry.file_size])
        if content.size != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise ConversionError(f"its archive is damaged at {name}; download it again.")
        return content

    def tensor(self, tensor: Tensor) -> np.ndarray:
        """A tensor as a read-only view of the file."""
        storage = tensor.storage
        content = self.read(f"data/{storage.key}")
        if content.size != storage.count * storage.dtype.itemsize:
            raise ConversionError(
                f"its archive has {content.size} bytes for {storage.count} numbers in data/{storage.key}."
            )
        # Bytes start where the archive puts them, aligned or not.
        numbers = np.frombuffer(content, storage.dtype)[tensor.offset :]
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)


def open_torch_file(path: Path | str) -> TorchFile:
    """The tensors of a .pt, .pth or .bin file by name; those of a TorchScript archive by the path of their attributes.

    Raises ConversionError, naming the file, for anything that is not plain tensors in PyTorch's zip format.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            raise ConversionError(_what_it_is(path))
        archive = _Archive(path)
        if archive.entries[f"{archive.root}data.pkl"].file_size > LARGEST_PICKLE:
            raise ConversionError("its pickle is larger than any model's.")
        order = archive.root + "byteorder"
        if order in archive.entries and archive.read("byteorder").tobytes() != b"little":
            raise ConversionError("it was written on a big-endian machine; save it again on another.")
        tensors = dict(_named_tensors(unpickle(archive.read("data.pkl").tobytes())))
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}).") from error
    torchscript = archive.root + "constants.pkl" in archive.entries
    return TorchFile({name: partial(archive.tensor, tensor) for name, tensor in tensors.items()}, torchscript)


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(512)
    if head[:4] == b"PK\x03\x04":
        return "it is an incomplete zip file; download it again."
    if head[:1] == b"\x80" or head[257:262] == b"ustar":
        return (
            "it is in the format PyTorch wrote before version 1.6, which is not read here; load it in PyTorch, save "
            "its state_dict() again and convert that."
        )
    return "it is not a PyTorch file."


def _named_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(root, ScriptModule):
        yield from _attributes(root)
        return
    state = _state_dict(root)
    for name, value in state.items():
        if not isinstance(name, str):
            raise ConversionError("its state dict names a tensor with something else than text.")
        if not isinstance(value, Tensor):
            raise ConversionError(f"{name} in its state dict is not a tensor; save the model's state_dict() alone.")
        yield name, value


def _state_dict(root: Any) -> Mapping[str, Any]:
    state = root
    for _ in range(3):  # wrapped twice at most
        if not isinstance(state, dict) or any(isinstance(value, Tensor) for value in state.values()):
            break
        state = next((state[key] for key in WRAPPERS if key in state), None)
    if isinstance(state, dict) and state:
        return state
    keys = [key for key in root if isinstance(key, str)] if isinstance(root, dict) else [type(root).__name__]
    raise ConversionError(f"it holds no state dict but {some(keys) or 'nothing'}; save the model's state_dict() alone.")


def _attributes(root: ScriptModule) -> Iterator[tuple[str, Tensor]]:
    waiting = [("", root)]
    for prefix, module in waiting:
        for name, value in module.attributes.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
        if len(waiting) > MOST_MODULES:  # as when one contains itself
            raise ConversionError(f"it holds more than {MOST_MODULES} modules.")
