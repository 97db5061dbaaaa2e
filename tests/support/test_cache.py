"""The cache folder on machines where there is no place for one."""

import os
import warnings
from pathlib import Path

import pytest

from gla_jax.support import files
from gla_jax.support.files import cache_folder, usable_cache


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for name in ("GLA_JAX_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    files._warn_once.cache_clear()


def test_the_folder_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("text") == tmp_path / ".cache/gla-jax/text"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("text") == tmp_path / "xdg/gla-jax/text"
    monkeypatch.setenv("GLA_JAX_CACHE", "~/ours")
    assert cache_folder("text") == tmp_path / "ours/text"
    assert cache_folder("text", tmp_path / "root") == tmp_path / "root/text"


def test_a_user_without_a_home_has_a_folder_name(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert cache_folder("text") == Path("/.cache/gla-jax/text")
    monkeypatch.setenv("HOME", "/")
    assert cache_folder("text") == Path("/.cache/gla-jax/text")
    monkeypatch.setenv("GLA_JAX_CACHE", "~nobody-of-this-name/x")
    assert cache_folder("text").is_absolute()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_cannot_be_written_is_one_warning(monkeypatch):
    monkeypatch.setenv("HOME", "/proc/nohome")
    with pytest.warns(UserWarning, match=r"cache folder /proc/nohome/\.cache/gla-jax cannot.*GLA_JAX_CACHE") as caught:
        assert [usable_cache(kind) for kind in ("text", "programs", "text")] == [None, None, None]
    assert len(caught) == 1


def test_a_folder_that_can_be_written_is_created_and_left_empty(tmp_path):
    with warnings.catch_warnings(action="error"):
        assert usable_cache("text", tmp_path / "new") == tmp_path / "new/text"
    assert os.listdir(tmp_path / "new/text") == []


def test_a_file_in_the_way_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="GLA_JAX_CACHE"):
        assert usable_cache("text", tmp_path / "file") is None
