"""Zip files mapped into memory, as PyTorch and NumPy write them.

Nothing is extracted: names in an archive are only looked up. Entries are views of the file; only compressed ones are
copied.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gla_jax.support.errors import ConversionError

MAX_DIRECTORY = 1 << 22  # bytes of the list of entries; that of the largest CLIP with its optimizer has under 2^18


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise what goes wrong within the block as a ConversionError that names the file."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{path}: {error}") from error.__cause__
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror}).") from error


class _File(io.FileIO):
    """A file of which zipfile reads no list of a million entries, which takes it seconds and gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of entries has {size} bytes")
        return super().read(size)


class MappedZip:
    """The entries of a zip file by name, and its bytes; raises ConversionError where it is damaged."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with _File(path) as file, zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            raise ConversionError(f"it is a damaged or incomplete zip file ({error}); download it again.") from error
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise ConversionError("it is a zip file with two entries of one name; download it again.")
        self.bytes = np.memmap(path, np.uint8, "r")
        self.unread = self.bytes.size

    def read(self, name: str, shown: str) -> np.ndarray:
        """The bytes of an entry, uint8 [n]; a stored one is a view, a deflated one is copied.

        shown: its name in messages. Raises ConversionError when they are not those that were written.
        """
        entry = self.entries[name]
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise ConversionError(f"{shown} in its archive is encrypted or compressed in another way than by deflate.")
        # The local header repeats the name and an extra field of its own length; the bytes follow.
        header = np.asarray(self.bytes[entry.header_offset : entry.header_offset + 30])
        lengths = header[26:].view("<u2") if header.size == 30 else np.zeros(2)
        start = entry.header_offset + 30 + int(lengths.sum(dtype=np.int64))
        content = np.asarray(self.bytes[start : start + entry.compress_size])
        self.unread -= content.size
        if self.unread < 0:
            raise ConversionError(f"its archive is damaged at {shown}: entries overlap; download it again.")
        whole = header[:4].tobytes() == b"PK\x03\x04" and content.size == entry.compress_size
        if whole and entry.compress_type == zipfile.ZIP_DEFLATED:
            content = _inflated(content, entry.file_size)
        if not whole or content.size != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise ConversionError(f"its archive is damaged at {shown}; download it again.")
        return content


def _inflated(content: np.ndarray, size: int) -> np.ndarray:
    """At most one byte more than size of what deflated bytes unpack to; none where they are damaged."""
    try:
        return np.frombuffer(zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1), np.uint8)
    except zlib.error:
        return np.empty(0, np.uint8)
