"""PyTorch's zip format (.pt, .pth, .bin, TorchScript archives) without PyTorch.

A file of this format is an uncompressed zip of a pickle and the bytes of its storages. Nothing is extracted: names in
the archive are only looked up, and tensors are views of the mapped file.
"""

import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.convert.rules import first_names
from gla_jax.convert.torch_pickle import ScriptModule, Tensor, foreign_origin, unpickle
from gla_jax.convert.zip_file import MappedZip, naming
from gla_jax.support.errors import ConversionError

# Where checkpoints of training runs keep the weights; DINO is evaluated with its teacher.
WRAPPERS = ("state_dict", "model_state_dict", "teacher", "student", "model", "module")
MAX_PICKLE = 1 << 23  # bytes; that of the largest CLIP with its optimizer has under 2^19
MAX_CODE = 1 << 22  # characters of TorchScript's source files that are read
MAX_MODULES = 10_000
MAX_NAME = 1000  # characters of a tensor's whole name
# What TorchScript writes for the activations of a transformer; a tower has no other sigmoid.
SCRIPT_ACTIVATIONS = {
    r"torch\.sigmoid\(": "quick_gelu",
    r"torch\.gelu\([^()]*[\"']tanh[\"']": "gelu_tanh",
    r"torch\.gelu\((?![^()]*[\"']tanh[\"'])": "gelu",
}
MAX_SHARING = 4  # times the file's size: what its tensors may hold, where several view one storage


@dataclass(frozen=True)
class TorchFile:
    """The tensors of a file, as views of it; torchscript: TorchScript wrote it.

    activation: "gelu", "quick_gelu" or "gelu_tanh", where the code of a TorchScript archive shows one alone.
    """

    tensors: dict[str, np.ndarray]
    torchscript: bool
    activation: str | None = None


class _Archive:
    """The entries of a PyTorch zip file, mapped into memory."""

    def __init__(self, path: Path):
        self.zip = MappedZip(path)
        self.entries = self.zip.entries
        pickles = [name for name in self.entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ConversionError("it is a zip file, but not one that PyTorch writes.")
        self.root = pickles[0].removesuffix("data.pkl")
        self.read = cache(self.read)  # a storage that many tensors view is checked once

    def read(self, name: str) -> np.ndarray:
        """The bytes of an entry, uncopied. Raises ConversionError when they are not those that were written."""
        entry, shown = self.entries.get(self.root + name), first_names([name])
        if entry is None:
            raise ConversionError(f"its archive lacks {shown}; download it again.")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ConversionError(f"{shown} in its archive is compressed or encrypted, which PyTorch never writes.")
        return self.zip.read(self.root + name, shown)

    def activation(self) -> str | None:
        """The activation that the code of a TorchScript archive computes, None where it shows none or several."""
        plain = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        names = [name for name, entry in self.entries.items() if entry.compress_type in plain and name.endswith(".py")]
        code = ""
        try:
            with zipfile.ZipFile(self.zip.path) as archive:
                for name in names[:MAX_MODULES]:
                    with archive.open(name) as file:  # deflated: the size that it states proves nothing
                        code += file.read(MAX_CODE - len(code)).decode("utf-8", "replace")
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
            raise ConversionError("its archive is damaged where its code lies; download it again.") from error
        shown = {kind for pattern, kind in SCRIPT_ACTIVATIONS.items() if re.search(pattern, code)}
        return shown.pop() if len(shown) == 1 else None

    def tensor(self, tensor: Tensor) -> np.ndarray:
        """A tensor as a read-only view of the file."""
        storage = tensor.storage
        content = self.read(f"data/{storage.key}")
        if content.size != storage.count * storage.dtype.itemsize:
            raise ConversionError(f"its data/{storage.key} has {content.size} bytes for {storage.count} numbers.")
        # Bytes start where the archive puts them, aligned or not.
        numbers = np.frombuffer(content, storage.dtype)[tensor.offset :]
        strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)


def open_torch_file(path: Path | str) -> TorchFile:
    """The tensors of a .pt, .pth or .bin file by name; those of a TorchScript archive by the path of their attributes.

    Raises ConversionError, naming the file, for anything that is not plain tensors in PyTorch's zip format.
    """
    path = Path(path)
    with naming(path):
        if not zipfile.is_zipfile(path):
            raise ConversionError(_what_it_is(path))
        archive = _Archive(path)
        if archive.entries[f"{archive.root}data.pkl"].file_size > MAX_PICKLE:
            raise ConversionError(f"its pickle is larger than any model's ({MAX_PICKLE >> 20} MiB).")
        order = archive.root + "byteorder"
        if order in archive.entries and archive.read("byteorder").tobytes() != b"little":
            raise ConversionError("it was written on a big-endian machine; save it again on another.")
        tensors = dict(_named_tensors(unpickle(archive.read("data.pkl").tobytes())))
        size = sum(math.prod(x.shape) * x.storage.dtype.itemsize for x in tensors.values())
        if size > MAX_SHARING * archive.zip.bytes.size:  # views of one storage, which conversion would copy
            raise ConversionError(
                f"its tensors hold {size} bytes, more than a file of {archive.zip.bytes.size} describes."
            )
        torchscript = archive.root + "constants.pkl" in archive.entries
        activation = archive.activation() if torchscript else None
        return TorchFile({name: archive.tensor(tensor) for name, tensor in tensors.items()}, torchscript, activation)


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
            origin = foreign_origin(value)
            what = f"the Python object {origin}, which is not run" if origin else "not a tensor"
            raise ConversionError(
                f"{first_names([name])} in its state dict is {what}; save the model's state_dict() alone."
            )
        yield name, value


def _state_dict(root: Any) -> Mapping[str, Any]:
    state = root
    for _ in range(3):  # wrapped twice at most; beside the weights may lie tensors, such as the state of a generator
        inner = (state.get(key) for key in WRAPPERS) if isinstance(state, dict) else ()
        state = next((value for value in inner if isinstance(value, dict)), state)
    if isinstance(state, dict) and any(isinstance(value, Tensor) for value in state.values()):
        return state
    keys = [key for key in root if isinstance(key, str)] if isinstance(root, dict) else []
    origin, kind = foreign_origin(root), "nothing" if isinstance(root, dict) else type(root).__name__.strip("_").lower()
    what = " of ".join(filter(None, (first_names(keys), origin))) or kind
    raise ConversionError(f"it holds no state dict but {what}; save the model's state_dict() alone.")


def _attributes(root: ScriptModule) -> Iterator[tuple[str, Tensor]]:
    waiting = [("", root)]
    for prefix, module in waiting:
        for name, value in module.attributes.items():
            if not isinstance(name, str) or len(prefix) + len(name) > MAX_NAME:
                raise ConversionError("its modules are named without end, or not by text.")
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(value, ScriptModule):
                waiting.append((f"{prefix}{name}.", value))
        if len(waiting) > MAX_MODULES:  # as when one contains itself
            raise ConversionError(f"it holds more than {MAX_MODULES} modules.")
