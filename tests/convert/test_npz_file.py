"""NumPy's archives as a stranger's files: what they hold is checked, and nothing in them is run."""

import io
import re
import zipfile
from copy import copy
from pathlib import Path

import numpy as np
import pytest

from gla_jax.convert import npz_file
from gla_jax.convert.npz_file import open_npz
from gla_jax.support.errors import ConversionError


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4, 2)])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_saved(order, kind, shape, save, tmp_path):
    array = np.asarray(np.random.default_rng(0).random(shape), kind, order=order)
    save(tmp_path / "x.npz", **{"a/b": array})
    np.testing.assert_array_equal(open_npz(tmp_path / "x.npz")["a/b"], array)


def npy(header: bytes, content: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    length = len(header).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + header + content


def header(descr="<f4", shape="(2,)", order=False) -> bytes:
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "no header", id="nothing"),
        pytest.param(b"\x93NUMPY\x01\x00\xff\xff{", "no header", id="cut header"),
        pytest.param(npy(header() + b" " * 20_000), "no header", id="long header"),
        pytest.param(npy(b"(" * 9_000), "no header", id="nested header"),
        pytest.param(npy(b"__import__('os').system('touch trace')"), "no header", id="code in the header"),
        pytest.param(npy(header(shape="(2, 'x')")), "no header", id="side of text"),
        pytest.param(npy(header(), bytes(8), b"\x03\x00"), "no header", id="version of names"),
        pytest.param(npy(header(), b"\xff\xff\xff\x7f", b"\x02\x00"), "4 bytes, which are not (2,)", id="too short"),
        pytest.param(npy(header(), bytes(9)), "9 bytes, which are not (2,)", id="too long"),
        pytest.param(npy(header(shape="(-2,)"), bytes(8)), "8 bytes", id="negative side"),
        pytest.param(npy(header(shape="(-1, -2)"), bytes(8)), "8 bytes", id="two negative sides"),
        pytest.param(npy(header(shape=f"({1 << 62}, {1 << 62})"), bytes(8)), "8 bytes", id="exabytes"),
        pytest.param(npy(header(shape=f"(0, {1 << 70})")), "0 bytes", id="nothing of exabytes"),
        pytest.param(npy(header(shape="(True, 2)"), bytes(8)), "8 bytes", id="a truth for a side"),
        pytest.param(npy(header(shape="(" + "1, " * 65 + ")"), bytes(4)), "4 bytes", id="65 axes"),
        pytest.param(npy(header("|O"), b"cos\nsystem\n(S'touch trace'\ntR."), "no pickle is run", id="pickle"),
        pytest.param(npy(header([("a", "<f4"), ("b", "|O")], "(1,)"), bytes(12)), "no pickle", id="pickle in a record"),
        pytest.param(npy(header("<U4", "(1,)"), bytes(16)), "stores <U4", id="text"),
        pytest.param(npy(header("<c8", "(1,)"), bytes(8)), "stores complex64", id="complex"),
    ],
)
def test_headers_are_not_trusted(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("x.npz", "w") as archive:
        archive.writestr("a.npy", content)
    with pytest.raises(ConversionError, match=re.escape(reason)) as caught:
        open_npz(Path("x.npz"))
    assert "\n" not in str(caught.value)
    assert not Path("trace").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_noticed(save, tmp_path):
    save(tmp_path / "x.npz", a=np.random.default_rng(0).random(1000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConversionError, match="damaged at a"):
        open_npz(tmp_path / "x.npz")


def test_an_archive_that_unpacks_without_end_is_not_unpacked(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(1 << 22, np.float32))
    monkeypatch.setattr(npz_file.MappedZip, "read", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ConversionError, match=r"unpack to .* bytes, more than weights"):
        open_npz(tmp_path / "x.npz")


def test_an_entry_that_unpacks_to_more_than_it_states(tmp_path):
    packed = io.BytesIO()
    np.savez_compressed(packed, a=np.zeros(1 << 22, np.float32))
    true, stated = (1 << 24) + 128, 1000
    content = packed.getvalue().replace(true.to_bytes(4, "little"), stated.to_bytes(4, "little"))
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ConversionError, match="damaged at a"):
        open_npz(tmp_path / "x.npz")


def test_two_entries_of_one_name_and_entries_that_overlap(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones(1 << 14))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as archive:
        archive.writestr("b.npy", npy(header(), bytes(8)))  # so that the list is written anew
        for name in ("c.npy", "d.npy"):
            archive.filelist.append(copy(archive.filelist[0]))
            archive.filelist[-1].filename = name
    with pytest.raises(ConversionError, match="damaged at c: entries overlap"):
        open_npz(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", a=np.ones(1), b=np.ones(1))
    (tmp_path / "y.npz").write_bytes((tmp_path / "y.npz").read_bytes().replace(b"b.npy", b"a.npy"))
    with pytest.raises(ConversionError, match="two entries of one name"):
        open_npz(tmp_path / "y.npz")


def test_arrays_that_are_not_compressed_are_not_copied(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.ones((3, 4)))
    base = open_npz(tmp_path / "x.npz")["a"]
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
