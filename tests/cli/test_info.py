"""gla-jax info, and the help that needs no JAX."""

import shutil
import subprocess
import sys

import pytest

from gla_jax.cli import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLA_JAX_CACHE", str(tmp_path / "cache"))
    files = {
        "models/dino-vits8/weights/part": 3000,
        "text/" + "0a" * 32 + ".npy": 2000,
        "programs/jit_f-" + "0b" * 32 + "-cache": 1000,
    }
    foreign = ["models/mine/weights", "text/notes.txt", "programs/readme", "other/x"]
    for name, size in [*files.items(), *((name, 5) for name in foreign)]:
        path = tmp_path / "cache" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return tmp_path / "cache", files, foreign


def test_info_prints_versions_devices_and_the_cache(cache, capsys):
    folder, *_ = cache
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("gla-jax", "jaxlib", "flax", "numpy", "on cpu: ", str(folder)):
        assert word in printed


def test_clear_cache_removes_what_the_program_wrote_and_nothing_else(cache, capsys):
    folder, files, foreign = cache
    (folder / "models" / "dino-vitb8").symlink_to(folder / "other", target_is_directory=True)
    assert main(["info", "--clear-cache"]) == 0
    assert not any((folder / name).exists() for name in files)
    assert all((folder / name).exists() for name in foreign)
    assert not (folder / "models" / "dino-vitb8").is_symlink()
    assert "1 entries removed" in capsys.readouterr().out
    assert main(["info", "--clear-cache"]) == 0


def test_a_cache_that_cannot_be_listed_is_not_called_empty(cache, capsys):
    shutil.rmtree(cache[0] / "models")
    (cache[0] / "models").write_bytes(b"")
    assert main(["info", "--clear-cache"]) == 2
    assert "models cannot be read or written (Not a directory)" in capsys.readouterr().err


def test_help_loads_no_jax_and_eval_lists_its_commands():
    code = "import sys; from gla_jax.cli import main; main(['eval', '--help']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in ("run", "prepare", "compare", "overhead", "A benchmark may"):
        assert word in done.stdout


def test_old_names_of_options_work_with_a_warning(capsys):
    assert main(["ablate", "--hosts", "--host", "sclip"]) == 2
    said = capsys.readouterr().err
    assert "--hosts is called --baselines now; the old name goes with the next release" in said
    assert "--host is called --baseline now" in said
    assert "leave --baseline out" in said
    assert main(["bench", "--queries", "3", "--size", "x"]) == 2
    assert "--queries is called --prompts now" in capsys.readouterr().err
