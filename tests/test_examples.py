"""The examples run as a reader would run them, and say what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def shares(text):
    return [float(share) for share in re.findall(r"([\d.]+)% of the", text)]


PROMISES = {
    "segment_from_python": lambda said: abs(sum(shares(said)) - 100) < 0.5 and "overlay.png" in said,
    "swap_a_baseline": lambda said: max(shares(said)[:3]) < shares(said)[-1],
    "own_baseline": lambda said: len(shares(said)) == 3 and shares(said)[0] < min(shares(said)[1:]),
    "sweep_a_setting": lambda said: shares(said)[1] == 0 < max(shares(said)),
    "find_by_features": lambda said: shares(said)[0] > 95 > 30 > shares(said)[1] and shares(said)[2] > 99,
    "leave_out_classes": lambda said: "42 of 42 classes" in said and "prune_below=0.2: 4 of 42" in said,
    "label_masks": lambda said: shares(said)[1] == 100 > shares(said)[0] and " 0 of 4 masks" in said,
    "few_shot": lambda said: min(shares(said)) > 50,
    "shard_one_image": lambda said: said.count(" MiB of features") == 4 and shares(said)[-1] > 99.9,
}


def test_every_example_is_run():
    elsewhere = {"run_exported"}  # tests/cli/test_export.py, which writes what it runs
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PROMISES) | elsewhere


@pytest.mark.parametrize("name", PROMISES)
def test_an_example_keeps_its_promise(name, tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, FOLDER / f"{name}.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert PROMISES[name](done.stdout), done.stdout
