import gc
import io
import os
import pickle
import zipfile
from collections import OrderedDict
from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from gla_jax.convert import torch_pickle
from gla_jax.convert.torch_file import open_torch_file
from gla_jax.convert.torch_pickle import unpickle
from gla_jax.support.errors import ConversionError
from tests.convert.published import torchscript


def saved(content, folder: Path, **options) -> Path:
    torch.save(content, folder / "weights.pt", **options)
    return folder / "weights.pt"


def rezipped(path: Path, change) -> Path:
    """The archive with its entries passed through change(name, content, info), None leaves one out."""
    out = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info), info)
            if content is not None:
                new.writestr(info, content)
    return out


def refused(path: Path) -> str:
    with pytest.raises(ConversionError) as caught:
        open_torch_file(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


TABLE = torch.arange(63, dtype=torch.float32).reshape(7, 9)


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(torch.randn(3, 4), id="float32"),
        pytest.param(torch.randn(3, 2).half(), id="float16"),
        pytest.param(torch.randn(5).bfloat16(), id="bfloat16"),
        pytest.param(torch.randn(2).double(), id="float64"),
        pytest.param(torch.arange(-2, 4), id="int64"),
        pytest.param(torch.tensor([True, False]), id="bool"),
        pytest.param(torch.tensor(4.5), id="scalar"),
        pytest.param(torch.zeros(0), id="empty"),
        pytest.param(TABLE.T, id="transposed"),
        pytest.param(TABLE[1:6:2, 2:5], id="slice of a storage"),
        pytest.param(torch.nn.Parameter(torch.randn(2, 2)), id="parameter"),
    ],
)
def test_tensors_come_back_as_saved(tensor, tmp_path):
    read = open_torch_file(saved({"x": tensor}, tmp_path)).tensors["x"]
    assert read.dtype.name == str(tensor.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(read.astype(np.float64), tensor.detach().double().numpy())


def test_tensors_may_share_a_storage(tmp_path):
    path = saved({"all": TABLE, "row": TABLE[3]}, tmp_path)
    with zipfile.ZipFile(path) as archive:
        assert sum("/data/" in name for name in archive.namelist()) == 1
    tensors = open_torch_file(path).tensors
    np.testing.assert_array_equal(tensors["row"], tensors["all"][3])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"student": {"x": torch.zeros(1)}, "teacher": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"rng": torch.get_rng_state(), "model": state, "loss": torch.zeros(())},
    ],
    ids=["plain", "training", "teacher", "twice", "tensors beside"],
)
def test_state_dicts_are_found_in_checkpoints(wrap, tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    file = open_torch_file(saved(wrap(state), tmp_path))
    assert list(file.tensors) == ["weight", "bias"]
    assert not file.torchscript


def test_torchscript_archives_are_read_by_attribute(tmp_path):
    names = {"visual.conv1.weight": TABLE, "visual.blocks.0.bias": TABLE[0], "scale": torch.tensor(3.0)}
    torchscript(names, {"size": torch.tensor(224)}).save(str(tmp_path / "model.pt"))
    file = open_torch_file(tmp_path / "model.pt")
    assert file.torchscript
    assert file.tensors.keys() == {*names, "size"}
    np.testing.assert_array_equal(file.tensors["visual.blocks.0.bias"], TABLE[0].numpy())


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize(
    ("malice", "named"),
    [
        pytest.param(lambda trace: Calls(os.system, f"touch {trace}"), "posix.system", id="os.system"),
        pytest.param(lambda trace: Calls(eval, f"open({str(trace)!r}, 'w')"), "__builtin__.eval", id="eval"),
        pytest.param(lambda _: Calls(getattr, Path, "unlink"), "__builtin__.getattr", id="getattr"),
        pytest.param(lambda trace: [{"deep": (Calls(os.mkdir, str(trace)),)}], "posix.mkdir", id="nested"),
        pytest.param(lambda trace: Calls(Path, str(trace)), "pathlib", id="pathlib"),
        pytest.param(lambda _: Calls(np.dtype, "f4"), "numpy.dtype", id="numpy"),
        pytest.param(lambda _: torch.nn.ReLU(), "torch.nn.modules.activation.ReLU", id="module"),
        pytest.param(lambda _: Calls(torch.load, "other.pt"), "torch.serialization.load", id="torch.load"),
    ],
)
def test_a_malicious_pickle_is_named_and_runs_nothing(malice, named, tmp_path):
    trace = tmp_path / "trace"
    path = saved({"weight": torch.zeros(2), "extra": malice(trace)}, tmp_path)
    message = refused(path)
    assert named in message
    assert str(path) in message
    assert "is not run" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.", id="function"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aK\x01s\x86b.", id="slots"),
        pytest.param(b"\x80\x02c__torch__\nModule\nN}X\x01\x00\x00\x00aK\x01s\x86b.", id="class"),
    ],
)
def test_a_pickle_cannot_write_to_the_reader_itself(code):
    with pytest.raises(ConversionError):
        unpickle(code)
    assert not hasattr(torch_pickle.ScriptModule, "a")
    assert not hasattr(torch_pickle._rebuild_tensor, "a")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(b"\x80\x02\x8d" + b"\xff" * 7 + b"\x7f" + b"a.", "damaged", id="string of exabytes"),
        pytest.param(b"\x80\x02(((.", "damaged", id="unbalanced"),
        pytest.param(b"", "damaged", id="nothing"),
        pytest.param(b"\x80\x02K\x01Q.", "damaged", id="storage that is a number"),
        pytest.param(b"\x80\x02)" + b"\x85" * 4_000_000 + b".", "more steps", id="deep tuple"),
        # Hashing these ends the process, for the stack overflows.
        pytest.param(b"\x80\x02})" + b"\x85" * 4_000_000 + b"Ns.", "more steps", id="deep tuple as a key"),
        pytest.param(b"\x80\x04()" + b"\x85" * 4_000_000 + b"\x91.", "more steps", id="deep tuple in a set"),
        pytest.param(b"\x80\x02]q\0" + b"h\0h\0\x86q\0" * 1_000_000 + b".", "more steps", id="doubled tuples"),
        pytest.param(b"\x80\x02" + b"(" * 4_000_000 + b"t" * 4_000_000, "more steps", id="marks"),
        pytest.param(b"\x80\x02" + b"]" * 4_000_000 + b"a" * 3_999_999, "more steps", id="deep list"),
        pytest.param(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.", "key without end", id="300,000 levels as a key"),
        pytest.param(b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"Ns.", "key without end", id="doubled tuple as a key"),
        pytest.param(b"\x80\x02\x8b\0\0\x10\0" + bytes(1 << 20) + b".", "damaged", id="number of 2^20 bytes"),
        pytest.param(b"".join(b"c%x\nb\n" % i for i in range(20_000)) + b".", "more names", id="20,000 names"),
        pytest.param(b"\x80\x02(" + b"K\1" * 2_000_000 + b"t.", "more steps", id="many numbers"),
    ],
)
def test_absurd_pickles_are_damaged(code, reason):
    with pytest.raises(ConversionError, match=reason):
        unpickle(code)


def test_what_was_read_is_let_go_of():
    """A process that converts many files would keep the pickle of each."""
    unpickle(pickle.dumps(OrderedDict(a=1), protocol=2))
    gc.collect()
    assert not [left for left in gc.get_objects() if type(left) is torch_pickle._Unpickler]


def test_a_memo_of_gigabytes_is_not_allocated():
    assert unpickle(b"\x80\x02Nr\xff\xff\xff\x7f.") is None


def tensor_pickle(offset=0, shape=(2, 2), strides=(2, 1), count=4) -> bytes:
    """A pickle of {"x": tensor} over storage 0 of float32, with sizes of the caller's choice."""

    storage = object()

    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", count) if item is storage else None

    out = io.BytesIO()
    tensor = Calls(torch._utils._rebuild_tensor_v2, storage, offset, shape, strides, False, OrderedDict())
    Pickler(out, protocol=2).dump({"x": tensor})
    return out.getvalue()


@pytest.mark.parametrize(
    "sizes",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 2)},
        {"shape": (1 << 40, 1 << 40), "strides": (0, 0)},
        {"shape": (0, 1 << 62)},
        {"strides": (-2, 1)},
        {"strides": (2,)},
        {"shape": (2.0, 2)},
        {"count": 1 << 50},
        {"shape": (1,) * 65, "strides": (1,) * 65},  # NumPy has 64 axes at most
    ],
    ids=str,
)
def test_tensors_stay_inside_their_storage(sizes, tmp_path):
    path = saved({"x": torch.ones(2, 2)}, tmp_path)
    good = rezipped(path, lambda name, content, _: tensor_pickle() if name.endswith("data.pkl") else content)
    np.testing.assert_array_equal(open_torch_file(good).tensors["x"], np.ones((2, 2)))
    refused(rezipped(path, lambda name, content, _: tensor_pickle(**sizes) if name.endswith("data.pkl") else content))


def test_paths_in_an_archive_lead_nowhere(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(16))
    path = saved({"x": torch.ones(2, 2)}, tmp_path)

    climb = (b"X\x01\x00\x00\x000", b"X\x0f\x00\x00\x00../../../secret")
    climbing = rezipped(path, lambda name, content, _: content.replace(*climb) if name.endswith(".pkl") else content)
    assert "lacks data/../../../secret" in refused(climbing)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../escaped", b"x")
    before = sorted(tmp_path.rglob("*"))
    assert list(open_torch_file(path).tensors) == ["x"]
    assert sorted(tmp_path.rglob("*")) == before
    assert not (tmp_path.parent.parent / "escaped").exists()


def _compress(_, content, info):
    info.compress_type = zipfile.ZIP_DEFLATED
    return content


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda n, c, _: None if n.endswith("data/0") else c, "lacks data/0", id="no storage"),
        pytest.param(
            lambda n, c, _: None if n.endswith("data.pkl") else c, "not one that PyTorch writes", id="no pickle"
        ),
        pytest.param(lambda n, c, _: c[:8] if n.endswith("data/0") else c, "8 bytes for 4 numbers", id="short storage"),
        pytest.param(lambda n, c, _: b"big" if n.endswith("byteorder") else c, "big-endian", id="big-endian"),
        pytest.param(_compress, "compressed", id="compressed"),
    ],
)
def test_archives_that_pytorch_did_not_write(change, reason, tmp_path):
    assert reason in refused(rezipped(saved({"x": torch.ones(2, 2)}, tmp_path), change))


def test_a_flipped_bit_is_noticed(tmp_path):
    path = saved({"x": torch.full((2, 2), 3.0)}, tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(np.full(4, 3.0, np.float32).tobytes())] ^= 1
    path.write_bytes(content)
    assert "damaged at data/0" in refused(path)


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(share, tmp_path):
    path = saved({"x": torch.ones(50, 50)}, tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "incomplete" in refused(path)


def test_the_format_before_1_6_is_named(tmp_path):
    path = saved({"x": torch.ones(2)}, tmp_path, _use_new_zipfile_serialization=False)
    assert "before version 1.6" in refused(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"], ids=["empty", "a web page"])
def test_other_files_are_named(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    assert "not a PyTorch file" in refused(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    "content",
    [
        {"step": 3},
        {},
        [torch.ones(1)],
        torch.ones(1),
        {"state_dict": {"x": torch.ones(1), "y": "z"}},
        {1: torch.ones(1)},
    ],
    ids=["a number", "nothing", "a list", "a tensor", "text among tensors", "no name"],
)
def test_files_without_a_state_dict_are_named(content, tmp_path):
    assert "state dict" in refused(saved(content, tmp_path))


def test_a_module_that_contains_itself_ends(tmp_path):
    torchscript({"a.x": torch.ones(1)}, {}).save(str(tmp_path / "model.pt"))
    cyclic = b"\x80\x02c__torch__\nModule\n)\x81q\x00}X\x04\x00\x00\x00selfh\x00sb."
    path = rezipped(tmp_path / "model.pt", lambda name, c, _: cyclic if name.endswith("/data.pkl") else c)
    assert "modules" in refused(path)


def test_names_of_modules_do_not_grow_without_end(tmp_path):
    """A thousand modules in one another, each named by the same megabyte, are a terabyte of names."""
    torchscript({"a.x": torch.ones(1)}, {}).save(str(tmp_path / "model.pt"))
    name = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\0"
    chain = b"c__torch__\nModule\nq\1)\x81}" + name + b"h\1)\x81" + b"}h\0h\1)\x81" * 1000 + b"sb" * 1001 + b"."
    path = rezipped(tmp_path / "model.pt", lambda n, c, _: b"\x80\x02" + chain if n.endswith("/data.pkl") else c)
    assert "named without end" in refused(path)


def test_a_name_that_holds_anything_is_one_line(tmp_path):
    message = refused(saved({"x": torch.ones(1), "a\nb" * 999: 3}, tmp_path))
    assert r"a\nba\nb" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (torch.zeros(4, dtype=torch.float8_e4m3fn), "torch.float8_e4m3fn"),
        (torch.zeros(4, dtype=torch.complex64), "torch.ComplexFloatStorage"),
        (torch.eye(3).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    ],
    ids=["fp8", "complex", "sparse", "module"],
)
def test_what_is_not_read_is_named(content, named, tmp_path):
    assert named in refused(saved({"x": content}, tmp_path))
    assert named in refused(saved({"x": content, "y": torch.ones(1)}, tmp_path))
    state = open_torch_file(saved({"state_dict": {"y": torch.ones(1)}, "x": content}, tmp_path)).tensors
    assert list(state) == ["y"]  # beside the weights it does not matter


def test_tensors_that_share_more_than_the_file_holds(tmp_path):
    shared = torch.ones(1 << 16)
    assert "more than a file of" in refused(saved({f"x{i}": shared for i in range(9)}, tmp_path))
    assert len(open_torch_file(saved({f"x{i}": shared for i in range(3)}, tmp_path)).tensors) == 3


def test_a_pickle_of_many_megabytes_is_not_looked_at(tmp_path):
    path = rezipped(
        saved({"x": torch.ones(1)}, tmp_path), lambda name, c, _: bytes(9 << 20) if name.endswith("data.pkl") else c
    )
    assert "larger than any model's (8 MiB)" in refused(path)


def test_a_zip_of_a_million_entries_is_not_listed(tmp_path):
    """Listing it takes seconds and a gigabyte."""
    saved({"x": torch.ones(2)}, tmp_path)
    with zipfile.ZipFile(tmp_path / "weights.pt", "a") as archive:
        for index in range(100):
            archive.writestr(f"{index:060000}", b"")
    assert "its list of entries has" in refused(tmp_path / "weights.pt")


def test_entries_that_overlap_are_not_read_over_and_over(tmp_path):
    """A thousand storages in the same gigabyte would each be checked."""
    path = saved({f"x{i}": torch.ones(1 << 16) for i in range(4)}, tmp_path)
    path = rezipped(path, lambda name, content, _: None if name[-7:] in ("/data/1", "/data/2", "/data/3") else content)
    with zipfile.ZipFile(path, "a") as archive:
        first = next(entry for entry in archive.infolist() if entry.filename.endswith("/data/0"))
        archive.writestr("x", b"")  # so that the list is written anew
        for index in "123":
            archive.filelist.append(copy(first))
            archive.filelist[-1].filename = first.filename[:-1] + index
    assert "entries overlap" in refused(path)
