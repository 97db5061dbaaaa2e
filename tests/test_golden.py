"""The recorded outputs of the official implementation: a user's figures must be comparable with the paper's."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests import golden

FOLDER = os.environ.get("GLA_JAX_GOLDEN", "")
FILES = sorted(Path(FOLDER).glob("*.npz")) if FOLDER else []


@pytest.mark.skipif(not FILES, reason="GLA_JAX_GOLDEN names no folder of golden files")
@pytest.mark.parametrize(
    ("path", "form"),
    # What segments images runs whole; the dense form, which is for comparison, on recorded features alone.
    [(path, "streaming") for path in FILES] + [(path, "dense") for path in FILES if "attention" in path.stem],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_case_is_within_the_limits(path, form):
    results = list(golden.check_file(path, form))
    assert results
    assert [str(result) for result in results if not result.passed] == []


def test_a_wrong_result_is_caught(tmp_path, capsys):
    """The check itself: attention recorded from another rule must fail, with a status other than 0."""
    rng = np.random.default_rng(0)
    features, values = rng.normal(size=(2, 4, 3)).astype(np.float32), rng.normal(size=(2, 1, 4, 2)).astype(np.float32)
    meta = b'{"cases": [{"name": "kv", "config": {}}]}'
    arrays = {"features": features, "values": values, "meta_json": np.frombuffer(meta, np.uint8)}
    np.savez(tmp_path / "wrong.npz", **arrays, **{"out/kv": np.ones((2, 4, 2), np.float32)})
    assert golden.main([str(tmp_path / "wrong.npz")]) == 1
    assert "OUTSIDE" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04broken"])
def test_a_file_of_another_format_is_one_sentence(tmp_path, capsys, content):
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    assert golden.main([str(path)]) == 2
    assert "other.npz is not a golden file" in capsys.readouterr().err
