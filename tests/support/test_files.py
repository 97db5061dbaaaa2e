"""Small files: whole or not there, and what killed runs left of them goes."""

import errno
import os
import time

import pytest

from gla_jax.support.errors import ModelError, UserError, about_files
from gla_jax.support.files import (
    folder_lock,
    read_json,
    remove_leftovers,
    unfinished,
    write_beside,
    write_json,
    write_text,
)


def test_a_file_that_is_not_written_to_its_end_leaves_the_old_one(tmp_path):
    path = tmp_path / "results.json"
    write_text(path, "old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_beside(path, fail)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, [float("nan")])
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("filename", [None, ".note.json-0123abcd.unfinished"])
def test_a_full_disk_names_the_file(tmp_path, filename):
    """The system's own error names no file where a write fails, and a hidden one where opening does."""

    def fill(file):
        raise OSError(errno.ENOSPC, "No space left on device", filename)

    with pytest.raises(OSError, match="No space left") as caught:
        write_beside(tmp_path / "note.json", fill)
    assert about_files(caught.value).startswith(f"{tmp_path / 'note.json'} cannot be read or written (No space left")
    assert not any(tmp_path.iterdir())


def test_leftovers_of_names_go_and_nothing_else(tmp_path):
    left = [unfinished(tmp_path / name) for name in ("a.png", "results.json", "b.png")]
    for path in left:
        path.write_text("half")
    (tmp_path / ".a.png-backup").write_text("of the user")
    young = unfinished(tmp_path / "c.png")
    for path in tmp_path.iterdir():
        os.utime(path, (time.time() - 90,) * 2)
    young.write_text("being written")
    remove_leftovers(tmp_path, "*.png")
    assert {path.name for path in tmp_path.iterdir()} == {left[1].name, ".a.png-backup", young.name}
    remove_leftovers(tmp_path, min_age=0)  # under a lock on the folder nobody else writes
    assert {path.name for path in tmp_path.iterdir()} == {".a.png-backup"}


def test_a_folder_that_is_being_written_stays(tmp_path):
    running = unfinished(tmp_path / "model")
    with folder_lock(running, "taken"):
        remove_leftovers(tmp_path, "model", min_age=0)
        assert running.exists()
    remove_leftovers(tmp_path, "model", min_age=0)
    assert not running.exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deep"),
        ('{"a": NaN}', "NaN"),
        ("\xff", "is not JSON"),
        ("{", "is not JSON"),
        (None, "No such file"),
    ],
)
def test_json_that_cannot_be_read_is_one_sentence(content, reason, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match=rf"the config .*config.json .*{reason}.*; convert again\.$") as caught:
        read_json(path, "the config", "convert again", ModelError)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            read_json(path, "the preset", "write it again")


def test_json_that_names_a_key_twice_is_refused(tmp_path):
    """Of two values the last would count without a word."""
    for index, text in enumerate(('{"crop": 1, "crop": 1}', '[{"a": {"crop": 1, "b": 2, "crop": 3}}]')):
        path = tmp_path / f"{index}.json"
        path.write_text(text)
        with pytest.raises(UserError, match="is not JSON \\(it names 'crop' twice\\); write it again"):
            read_json(path, "the preset", "write it again")


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"crop": 1}')
    assert read_json(tmp_path / "a.json", "the preset", "write it again") == {"crop": 1}
