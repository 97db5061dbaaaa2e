"""The recorded outputs of the official implementation: a user's figures must be comparable with the paper's."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import golden

FOLDER = os.environ.get("GLA_JAX_GOLDEN", "")
OWN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
# Each file once: the folder may hold what lies here too.
FILES = list({path.name: path for path in [*OWN, *(sorted(Path(FOLDER).rglob("*.npz")) if FOLDER else [])]}.values())


@pytest.mark.parametrize(
    ("path", "form", "precision", "part_dtype"),
    # The form of one device runs whole; the other two, which compute the same, on recorded features alone.
    [(path, "blockwise", "highest", None) for path in FILES]
    + [(path, form, "highest", None) for path in FILES if "attention" in path.stem for form in ("dense", "ring")]
    # As GPUs and as TPUs compute it by default.
    + [(path, "blockwise", "high", part_dtype) for path in FILES for part_dtype in ("float16", "bfloat16")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_case_is_within_the_limits(path, form, precision, part_dtype):
    results = list(golden.check_file(path, form, precision, part_dtype))
    assert [str(result) for result in results if not result.passed] == []


def write(path, *, cases=(("kv", {}),), without=(), **arrays):
    """An attention file of random features, with ones for the outputs of its cases."""
    rng = np.random.default_rng(0)
    meta = {"cases": [{"name": name, "config": config} for name, config in cases]}
    content = {
        "features": rng.normal(size=(2, 4, 3)).astype(np.float32),
        "values": rng.normal(size=(2, 1, 4, 2)).astype(np.float32),
        "meta_json": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "out/kv": np.ones((2, 4, 2), np.float32),
    } | arrays
    np.savez(path, **{name: array for name, array in content.items() if name not in without})
    return str(path)


def test_a_wrong_result_is_caught(tmp_path, capsys):
    """The check itself: attention recorded from another rule must fail, with a status other than 0."""
    assert golden.main([write(tmp_path / "wrong.npz")]) == 1
    assert "OUTSIDE" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["features", "out/kv"])
def test_what_is_not_a_number_is_outside_the_limits(tmp_path, capsys, broken):
    """NaN compares as neither above nor below a limit; a method that gives it must not pass."""
    shape = {"features": (2, 4, 3), "out/kv": (2, 4, 2)}[broken]
    assert golden.main([write(tmp_path / "nan.npz", **{broken: np.full(shape, np.nan, np.float32)})]) == 1
    assert "rows over 100.000%  OUTSIDE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "value"), [("values", 0.006), ("logits", 0.09), ("tokens", np.nan), ("labels", 0.9998)]
)
def test_every_part_of_a_case_can_fail_it(part, value):
    """Logits or tokens that are off while labels agree are a fault all the same."""
    right = golden.Result("case", *[golden.Errors(1e-7, 0.0)] * 3, labels=1.0)
    assert right.passed
    wrong = value if part == "labels" else golden.Errors(1.0, value)
    assert "OUTSIDE" in str(replace(right, **{part: wrong}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"cases": ()}, "it has no cases"),
        ({"without": ("out/kv",)}, "it has no out/kv"),
        ({"without": ("features",)}, "it has no clip"),
        ({"cases": [("kv", {"rho": 1})]}, "unknown settings rho"),
        ({"out/kv": np.ones((2, 4, 3), np.float32)}, "it holds an array [2, 4, 3] where the method gives [2, 4, 2]"),
    ],
)
def test_a_file_that_lacks_something_is_one_sentence(tmp_path, capsys, content, reason):
    """A file without cases must not pass, and a wrong one must say what is wrong."""
    assert golden.main([write(tmp_path / "odd.npz", **content)]) == 2
    said = capsys.readouterr().err
    assert f"odd.npz is not a golden file: {reason}" in said
    assert said.count("\n") == 1


def test_weights_that_do_not_convert_are_one_sentence(tmp_path, capsys):
    """A file of another architecture names the weight and shows no stack."""
    with np.load(OWN[0]) as archive:
        content = {name: archive[name] for name in archive.files}
    name = next(name for name in content if name.startswith("dino.") and name.endswith("qkv.weight"))
    np.savez(tmp_path / "odd.npz", **{key: array for key, array in content.items() if key != name})
    assert golden.main([str(tmp_path / "odd.npz")]) == 2
    said = capsys.readouterr().err
    assert "odd.npz is not a golden file: " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_a_file_of_another_format_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    assert golden.main([str(path)]) == 2
    assert "other.npz is not a golden file" in capsys.readouterr().err
