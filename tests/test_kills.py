"""Runs that are killed go on: two of tests.kills, which has more of them and full disks."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.kills import contents, half_written


@pytest.mark.skipif(sys.platform == "win32", reason="runs are forked")
def test_killed_runs_resume_with_the_files_of_an_unbroken_one():
    # A process of its own: JAX, which runs here, does not survive a fork.
    words = [sys.executable, "-m", "tests.kills", "--count", "2", "--disks", "0", "--command", "segment"]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("^2 kills, 0 disks, 0 findings$", done.stdout, re.MULTILINE)


def test_what_is_half_written_or_other_is_found(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text('{"seconds": 1, "miou": 2}')
    (tmp_path / "a.jsonl").write_text('{"image_id": "x", "areas": [], "seconds": {}}\t0123abcd\n')
    before = contents(tmp_path)
    assert before["a.json"] == {"miou": 2}
    assert before["a.jsonl"] == {"x": {"image_id": "x", "areas": []}}
    assert not half_written(tmp_path)
    (tmp_path / "a.json").write_text('{"seconds": 1')
    (tmp_path / "a.png").write_bytes(before["a.png"][:45])
    assert sorted(half_written(tmp_path)) == ["a.json", "a.png"]
