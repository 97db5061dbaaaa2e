"""`gla-jax segment` goes on where it was stopped, alone in its folder, and never mixes settings."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gla_jax.cli import main
from gla_jax.outputs import run as outputs
from gla_jax.outputs.files import checked_line, parse_line
from gla_jax.support.files import folder_lock
from tests.small_models import random_pair

SIZES = ["--short-side", "32", "--crop", "32", "--stride", "32"]
CLASSES = ["--classes", "sand; gravel", "--classes", "water"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(random_pair(tmp_path_factory.mktemp("model")))


def save(path, seed):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def segment(tmp_path, model, monkeypatch):
    """Runs the command on the folder `photos` (a, b, c); returns the status and the images that were segmented."""
    for seed, name in enumerate("abc"):
        save(tmp_path / "photos" / f"{name}.png", seed)
    done = []
    write = outputs.Segmentation.save

    def note(result, folder, name):
        done.append(name)
        write(result, folder, name)

    monkeypatch.setattr(outputs.Segmentation, "save", note)

    def call(*more, images=("photos",), classes=CLASSES):
        done.clear()
        places = [str(tmp_path / image) for image in images]
        words = [*places, *classes, "--model", model, *SIZES, "--out", str(tmp_path / "out"), *map(str, more)]
        return main(["segment", *words]), list(done)

    return call


def document(tmp_path):
    return json.loads((tmp_path / "out" / "results.json").read_text())


def test_a_second_run_does_what_is_missing(tmp_path, segment, capsys):
    assert segment() == (0, ["a", "b", "c"])
    first = document(tmp_path)
    assert segment() == (0, [])
    assert "3 of 3 images were done before" in capsys.readouterr().err
    assert document(tmp_path) == first
    save(tmp_path / "photos" / "d.png", 3)
    assert segment() == (0, ["d"])
    assert [image["name"] for image in document(tmp_path)["images"]] == ["a", "b", "c", "d"]
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 4


def test_lines_are_json(tmp_path, segment):
    segment()
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["name"], row["size"]) for row in rows] == [("a", [40, 40]), ("b", [40, 40]), ("c", [40, 40])]


def test_a_changed_image_is_done_again_and_so_is_one_whose_pictures_are_gone(tmp_path, segment):
    segment()
    before = (tmp_path / "out" / "b.overlay.png").read_bytes()
    save(tmp_path / "photos" / "b.png", 17)
    (tmp_path / "out" / "c.overlay.png").unlink()
    assert segment() == (0, ["b", "c"])
    assert (tmp_path / "out" / "b.overlay.png").read_bytes() != before
    assert segment() == (0, [])


def test_pictures_that_another_image_replaced_are_made_again(tmp_path, segment):
    """Both images are called a: a record that outlived its pictures would vouch for those of the other."""
    save(tmp_path / "more" / "a.png", 9)
    assert segment(images=["photos/a.png"]) == (0, ["a"])
    assert segment(images=["more/a.png"]) == (0, ["a"])
    assert segment(images=["photos/a.png"]) == (0, ["a"])


def test_a_bad_image_is_tried_again(tmp_path, segment, capsys):
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    assert segment() == (1, ["a", "c"])
    assert [image["image"] for image in document(tmp_path)["failed"]] == [str(tmp_path / "photos" / "b.png")]
    save(tmp_path / "photos" / "b.png", 1)
    assert segment() == (0, ["b"])
    assert document(tmp_path)["failed"] == []


@pytest.mark.parametrize(
    ("more", "classes", "name"),
    [
        ((), ["--classes", "sand", "--classes", "water"], "classes was"),
        (("--background", "sand"), CLASSES, "background was null"),
        (("--background", "rest", "--threshold", "0.4"), CLASSES, "settings.threshold was 0.0 and is 0.4"),
        (("--scores",), CLASSES, "scores was false and is true"),
        (("--method", "proxyclip"), CLASSES, "settings.method."),
        (("--stride", "16"), CLASSES, "settings.windows.stride was 32 and is 16"),
        (("--precision", "fast"), CLASSES, 'settings.method.precision was "highest"'),
    ],
)
def test_other_settings_are_refused(tmp_path, segment, capsys, more, classes, name):
    assert segment(images=["photos/a.png"])[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    capsys.readouterr()
    assert segment(*more, images=["photos/a.png"], classes=classes) == (2, [])
    said = capsys.readouterr().err
    assert "holds a run with other settings" in said
    assert name in said
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_second_run_at_once_is_refused(tmp_path, segment, capsys):
    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out", "unused"):
        assert segment() == (2, [])
    assert "another run is writing to" in capsys.readouterr().err
    assert segment() == (0, ["a", "b", "c"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_sentence_and_nothing_half_written(tmp_path, segment, monkeypatch, capsys, number):
    write = outputs.Segmentation.save

    def stop(result, folder, name):
        write(result, folder, name)
        if name == "b":
            # A context of its own: to undo the fixture's patches here would leave a later one in place for good.
            with monkeypatch.context() as patch:
                patch.setattr("gla_jax.support.files.os.replace", lambda *_: os.kill(os.getpid(), number))
                write(result, folder, "half")

    with monkeypatch.context() as patch:
        patch.setattr(outputs.Segmentation, "save", stop)
        assert segment()[0] == 128 + number
    assert "stopped; nothing half-written is left" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob(".*.unfinished"))
    assert not list((tmp_path / "out").glob("half*"))
    assert document(tmp_path)["complete"] is False
    assert [image["name"] for image in document(tmp_path)["images"]] == ["a"]


def test_leftovers_of_a_killed_run_go_and_its_half_line_too(tmp_path, segment):
    segment(images=["photos/a.png"])
    out = tmp_path / "out"
    (out / ".b.index.png-0123abcd.unfinished").write_bytes(b"half")
    line = checked_line({"image": str(tmp_path / "photos" / "b.png"), "name": "b"})
    with (out / "results.jsonl").open("a") as lines:
        lines.write(line.replace('"b"', '"B"') + line[:20])
    assert segment() == (0, ["b", "c"])
    assert not list(out.glob(".*.unfinished"))
    assert [image["name"] for image in document(tmp_path)["images"]] == ["a", "b", "c"]
    assert segment() == (0, [])


@pytest.mark.parametrize(
    "line",
    ["", "\n", "{}\n", "null\n", '{"name": "a", "crc32": "00000000"}\n', "\0\n", checked_line({"name": 3})],
)
def test_damaged_lines_are_as_if_they_were_not_there(line):
    assert parse_line(line) is None


def test_a_line_survives_odd_names():
    row = {"image": "caf\udce9.png", "name": 'a", "crc32": "', "size": [1, 2]}
    assert parse_line(checked_line(row)) == row


def test_recursive_takes_subfolders_and_their_absence_is_mentioned(tmp_path, segment, capsys):
    save(tmp_path / "photos" / "deep" / "d.png", 4)
    assert segment() == (0, ["a", "b", "c"])
    assert "add --recursive" in capsys.readouterr().err
    assert segment("--recursive")[1] == ["d"]


def test_results_are_never_taken_for_images(tmp_path, segment):
    words = ("--out", tmp_path / "photos", "--recursive")
    assert segment(*words) == (0, ["a", "b", "c"])
    assert segment(*words) == (0, [])
    # Nor those of another run that lies among the images.
    assert segment("--out", tmp_path / "photos" / "second", "--recursive") == (0, ["a", "b", "c"])
    assert segment("--out", tmp_path / "third", images=["photos/a.overlay.png"]) == (0, ["a.overlay"])  # by its name


def test_words_after_the_first_class_get_the_sentence_that_helps(tmp_path, segment, capsys):
    assert segment("grass", "more water") == (2, [])
    said = capsys.readouterr().err
    assert "there is no image 'grass'" in said
    assert "--classes grass --classes 'more water'" in said
    assert segment("grass", "water", classes=["--classes", "sand"]) == (2, [])  # as most people write it first
    assert "if it is a class, write --classes before each: --classes sand --classes grass" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("home", ["/proc/nohome", "/", None])
def test_without_a_home_there_is_one_warning_and_the_results(request, home):
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    request.addfinalizer(lambda: shutil.rmtree(folder))
    folder.chmod(0o777)
    save(folder / "photo.png", 0)
    gone = ("HOME", "GLA_JAX_CACHE", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in gone}
    words = ["segment", "photo.png", "--model", "tiny-world", "--classes", "sand", "--classes", "water"]
    user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = subprocess.run(
        [*user, sys.executable, "-c", "from gla_jax.cli import script; script()", *words, *SIZES, "--out", "out"],
        cwd=folder,
        env=environment | ({"HOME": home} if home else {}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning:")]
    assert len(warned) == 1, done.stderr
    assert "GLA_JAX_CACHE" in warned[0]
    assert "gla-jax" in warned[0]
    assert json.loads((folder / "out" / "results.json").read_text())["complete"] is True


@pytest.mark.parametrize(("status", "left"), [(143, 143), (130, 130), (0, 7)])
def test_a_stopped_command_ends_without_tearing_jax_down(status, left):
    """A compilation that goes on in a thread of JAX crashed it there: exit status 139, and a core file."""
    code = (
        "import atexit, os, sys, gla_jax.cli; module = sys.modules['gla_jax.cli.app']; atexit.register(os._exit, 7); "
        f"module.main = lambda: print('said') or {status}; module.script()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (left, "said\n"), done.stderr


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
def test_closed_streams_are_no_error_and_their_numbers_go_to_no_file(tmp_path):
    code = (
        "import sys, gla_jax.cli; module = sys.modules['gla_jax.cli.app']; "
        f"module.main = lambda: 0 if open({str(tmp_path / 'x')!r}, 'x').fileno() > 2 else 9; module.script()"
    )
    assert subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code]).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
def test_an_error_is_no_output_where_the_stream_of_errors_is_closed():
    code = "from gla_jax.cli import script; script()"
    words = ["sh", "-c", 'exec "$0" -c "$1" nosuch 2>&-', sys.executable, code]
    done = subprocess.run(words, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")
