"""A folder belongs to one process at a time, and to none when that process is gone."""

import subprocess
import sys

import pytest

from gla_jax.cli import main
from gla_jax.support.errors import UserError
from gla_jax.support.files import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from gla_jax.support.files import folder_lock
with folder_lock(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_taken_folder_is_refused_and_a_released_one_is_not(tmp_path):
    with folder_lock(tmp_path, "first"):
        with (
            pytest.raises(UserError, match=r"^another run writes there$"),
            folder_lock(tmp_path, "another run writes there"),
        ):
            pass
        with folder_lock(tmp_path, "of another process of the run", ".gla-jax-1.lock"):
            pass
    with folder_lock(tmp_path, "again"):
        pass


def test_an_error_in_the_block_releases_the_lock(tmp_path):
    with pytest.raises(ValueError, match="in the block"), folder_lock(tmp_path, "taken"):
        raise ValueError("in the block")
    with folder_lock(tmp_path, "taken"):
        pass


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="busy"), folder_lock(tmp_path, "busy"):
            pass
        holder.kill()
    with folder_lock(tmp_path, "taken"):
        pass


def test_a_missing_folder_is_created_and_a_file_is_the_systems_error(tmp_path):
    with folder_lock(tmp_path / "new" / "folder", "taken"):
        assert (tmp_path / "new" / "folder").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), folder_lock(tmp_path / "file", "taken"):
        pass


@pytest.mark.parametrize("command", [["demo"], ["ablate", "tiny-world"], ["bench"]], ids=lambda words: words[0])
def test_two_runs_into_one_folder_would_mix_their_figures(command, tmp_path, capsys):
    with folder_lock(tmp_path, "unused"):
        assert main([*command, "--out", str(tmp_path)]) == 2
    assert "another run is writing to" in capsys.readouterr().err


def test_a_run_that_fails_leaves_no_folder_with_a_lock_alone(tmp_path):
    assert main(["bench", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "new" / "out")]) == 2
    assert not any(tmp_path.iterdir())
