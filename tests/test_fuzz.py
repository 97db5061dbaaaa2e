"""Damaged files of every kind are one sentence; GLA_JAX_FUZZ_SECONDS sets how long each door is tried (5)."""

import os
import time
import warnings
from collections import Counter

import numpy as np
import pytest

from gla_jax.support.errors import UserError
from tests import fuzz
from tests.fuzz import DOORS, attempt


@pytest.mark.parametrize("door", DOORS)
def test_no_damaged_file_leaves_a_traceback(door):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow about damaged files
        counts, findings = fuzz.fuzz(door, float(os.environ.get("GLA_JAX_FUZZ_SECONDS", "5")))
    assert not findings, findings[0].details
    assert counts["read"], f"no input of {door} was good: {counts}"
    assert len(counts) > 1, f"no input of {door} was refused: {counts}"


def test_what_a_door_must_not_do_is_found(tmp_path, monkeypatch):
    (tmp_path / "case").mkdir()
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    monkeypatch.setattr(fuzz, "BYTES", 10**8)

    def hanging():
        try:
            time.sleep(5)
        except Exception:
            pytest.fail("a reader took the end of its time for a damaged file")

    def refusing():
        raise UserError("one sentence.")

    ends = {
        "KeyError": lambda: {}["x"],
        "Hang": hanging,
        "outside": lambda: (tmp_path / "case/../escaped").write_text("x"),
        "memory": lambda: np.ones(50_000_000).sum(),
        "lines": lambda: (_ for _ in ()).throw(UserError("two\nlines")),
        "read": lambda: (tmp_path / "case/inside").write_text("x"),
        "refused": refusing,
    }
    counts = Counter()
    findings = {name: attempt(0, call, tmp_path / "case", counts) for name, call in ends.items()}
    assert [name for name, finding in findings.items() if finding is None] == ["read", "refused"]
    assert findings["KeyError"].place.startswith("KeyError at")
    assert (findings["Hang"].kind, findings["outside"].place) == ("over 0.05 s", str(tmp_path / "escaped"))


def test_an_input_is_built_again_by_its_index(tmp_path):
    contents = []
    (tmp_path / "seeds").mkdir()
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        door = DOORS["IMAGES"](tmp_path / "seeds")
        door(fuzz.random.Random("IMAGES/0/7"), tmp_path / name)
        contents.append([(path.name, path.read_bytes()) for path in (tmp_path / name).iterdir()])
    assert contents[0] == contents[1]
