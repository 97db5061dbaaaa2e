"""The command line from a shell's point of view: files, exit status, and one sentence for every mistake."""

import errno
import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gla_jax.cli import main
from gla_jax.outputs import run as outputs
from gla_jax.outputs.files import output_names
from gla_jax.segmenter import Segmenter
from tests.small_models import random_pair

SIZES = ["--short-side", "48", "--crop", "32", "--stride", "16"]
CLASSES = ["--classes", "sand; gravel", "--classes", "water"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(random_pair(tmp_path_factory.mktemp("model")))


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return path


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_segment_writes_three_pictures_and_a_record(tmp_path, photo, model, capsys):
    out = tmp_path / "out"
    assert call("segment", photo, *CLASSES, "--model", model, *SIZES, "--out", out, "--json") == 0
    written = {path.name for path in out.iterdir()}
    pictures = {"photo.index.png", "photo.palette.png", "photo.overlay.png"}
    # What lets the next run go on: its settings, a line an image, and the lock that keeps other runs away.
    assert written == pictures | {"results.json", "run.json", "results.jsonl", ".gla-jax.lock"}
    document = json.loads((out / "results.json").read_text())
    printed, said = capsys.readouterr()
    assert json.loads(printed) == document
    assert "1 of 1 images segmented" in said
    labels = np.asarray(Image.open(out / "photo.index.png"))
    assert labels.shape == (50, 70)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "photo.palette.png")), labels)
    (image,) = document["images"]
    assert image["size"] == [50, 70]
    for index, name in enumerate(document["classes"]):
        assert image["shares"].get(name, 0) == pytest.approx((labels == index).mean(), abs=1e-6)
    assert document["queries"] == ["sand", "gravel", "water"]
    assert document["settings"]["windows"]["crop"] == 32
    assert len(document["model_hash"]) == 64
    assert document["complete"] is True


def test_a_bad_image_is_named_and_the_rest_is_done(tmp_path, photo, model, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff garbage")
    out = tmp_path / "out"
    assert call("segment", tmp_path, *CLASSES, "--model", model, *SIZES, "--out", out) == 1
    assert "broken.jpg" in capsys.readouterr().err
    document = json.loads((out / "results.json").read_text())
    assert [image["name"] for image in document["images"]] == ["photo"]
    assert [image["image"] for image in document["failed"]] == [str(tmp_path / "broken.jpg")]
    assert (out / "photo.index.png").exists()
    assert not list(out.glob("broken*"))


@pytest.mark.parametrize(("threshold", "idle"), [("0.33", True), ("0.34", False)])
def test_a_threshold_that_no_pixel_falls_below_is_named(threshold, idle, tmp_path, photo, model, capsys):
    """With three prompts the best probability is at least a third: the background would stay empty without a word."""
    background = ("--background", "rest", "--threshold", threshold)
    assert call("segment", photo, *CLASSES, *background, "--model", model, *SIZES, "--out", tmp_path / "out") == 0
    said = f"threshold {threshold} makes no pixel background: the best of 3 prompts has a probability of at least 0.33"
    assert (said in capsys.readouterr().err) == idle


def test_classes_file_background_templates_and_scores(tmp_path, photo, model):
    (tmp_path / "classes.txt").write_text("sand; gravel\nwater\n")
    (tmp_path / "templates.txt").write_text("a photo of {}.\n")
    out = tmp_path / "out"
    given = ("--classes-file", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt")
    background = ("--background", "rest", "--threshold", "0.4", "--scores")
    assert call("segment", photo, *given, *background, "--model", model, *SIZES, "--out", out) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["classes"] == ["rest", "sand", "water"]
    labels = np.asarray(Image.open(out / "photo.index.png"))
    for index, name in enumerate(document["classes"]):
        share = document["images"][0]["shares"].get(name, 0)
        assert share == pytest.approx((labels == index).mean(), abs=1e-6)
    assert (document["settings"]["background"], document["settings"]["threshold"]) == ("rest", 0.4)
    with np.load(out / "photo.scores.npz") as arrays:
        assert arrays["classes"].tolist() == ["rest", "sand", "water"]
        assert arrays["scores"].shape == (3, 50, 70)


class Stop:
    """Lets some images through the loop, then raises."""

    def __init__(self, monkeypatch, after, error):
        self.after, self.error, self.label_images = after, error, outputs.label_images
        monkeypatch.setattr(outputs, "label_images", self)

    def __call__(self, *arguments, **options):
        yield from islice(self.label_images(*arguments, **options), self.after)
        raise self.error


def test_ctrl_c_leaves_the_records_of_what_is_done(tmp_path, photo, model, monkeypatch, capsys):
    """After 9,999 images of 10,000 their records must be there, and not look like all."""
    (tmp_path / "photo2.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    Stop(monkeypatch, 1, KeyboardInterrupt())
    assert call("segment", tmp_path, *CLASSES, "--model", model, *SIZES, "--out", out) == 130
    assert "stopped; nothing half-written is left" in capsys.readouterr().err
    document = json.loads((out / "results.json").read_text())
    assert document["complete"] is False
    assert [image["name"] for image in document["images"]] == ["photo"]
    assert {path.name.split(".")[0] for path in out.glob("[!.]*")} == {"photo", "results", "run"}
    assert not list(out.glob("*.unfinished"))


def test_records_are_kept_while_it_runs(tmp_path, photo, model, monkeypatch):
    """A run that is killed outright leaves records too, and those of an earlier run do not pass for its own."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "results.json").write_text('{"complete": true}')
    (tmp_path / "photo2.png").write_bytes(photo.read_bytes())
    monkeypatch.setattr(outputs, "SECONDS_BETWEEN_RECORDS", 0.0)
    seen = []
    write = outputs.Segmentation.save

    def look(*arguments):
        document = json.loads((out / "results.json").read_text())
        seen.append((document["complete"], len(document["images"])))
        write(*arguments)

    monkeypatch.setattr(outputs.Segmentation, "save", look)
    assert call("segment", tmp_path, *CLASSES, "--model", model, *SIZES, "--out", out) == 0
    assert seen == [(False, 0), (False, 1)]


def test_a_full_disk_is_one_sentence(tmp_path, photo, model, monkeypatch, capsys):
    Stop(monkeypatch, 0, OSError(errno.ENOSPC, "No space left on device", "photo.index.png"))
    assert call("segment", photo, *CLASSES, "--model", model, *SIZES, "--out", tmp_path / "out") == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "photo.index.png cannot be read or written (No space left on device)" in said


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a.png", "b.jpg"], ["a", "b"]),
        (["a.png", "a.jpg"], ["a_png", "a_jpg"]),
        (["x/a.png", "y/a.png", "b.png"], ["x_a", "y_a", "b"]),
        (["long/way/x/a.png", "long/way/y/a.png"], ["x_a", "y_a"]),
        (["a_b/c.png", "a/b/c.png"], ["a_b_c_png", "a_b_c_png_2"]),
        (["a.png", "A.png"], ["a_png", "A_png_2"]),
        (["a_b/c.png", "a/b/c.png", "a_b_c_png_2.png"], ["a_b_c_png", "a_b_c_png_3", "a_b_c_png_2"]),
        (["a.png", "a.jpg", "a_png.png", "x/a.png"], None),
        ([f"{'ü' * 120}{end}.png" for end in ("", "x", "y")], None),
        (["x" * 120 + f"/{folder}/" + "y" * 120 + "/a.png" for folder in "pq"], None),
    ],
)
def test_results_of_different_images_have_different_names(tmp_path, paths, names):
    """Two images under one name would overwrite each other in silence; a name too long could not be written at all."""
    found = output_names([tmp_path / path for path in paths])
    assert names is None or found == names
    assert len({name.casefold() for name in found}) == len(paths)
    assert max(len(name.encode()) for name in found) <= 210


def test_a_long_or_undecodable_name_gets_results(tmp_path, photo, model):
    long, odd = tmp_path / ("x" * 240 + ".png"), Path(f"{tmp_path}/caf\udce9.png")
    for path in (long, odd):
        path.write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    assert call("segment", long, odd, *CLASSES, "--model", model, *SIZES, "--out", out) == 0
    images = json.loads((out / "results.json").read_text("utf-8"))["images"]
    assert [image["image"] for image in images] == [str(long), str(odd)]
    assert all((out / f"{image['name']}.overlay.png").exists() for image in images)


def test_images_of_one_name_do_not_overwrite_each_other(tmp_path, photo, model):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.png").write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    both = (tmp_path / "a/photo.png", tmp_path / "b/photo.png")
    assert call("segment", *both, *CLASSES, "--model", model, *SIZES, "--out", out) == 0
    assert len(list(out.glob("*.index.png"))) == 2


MISTAKES = {
    "no classes": ([], "there are no classes; name some"),
    "one class": (["--classes", "sand"], "alone would take every pixel"),
    "name too long": (["NONE.png" * 40, *CLASSES], "does not exist"),
    "missing image": (["NONE.png", *CLASSES], "NONE.png does not exist"),
    "unknown model": ([*CLASSES, "--model", "clip-b"], "neither a model folder nor a named model"),
    "misspelt model": ([*CLASSES, "--model", "clip-vit-base-patch61"], "did you mean clip-vit-base-patch16"),
    "unknown method": ([*CLASSES, "--method", "glaa"], "'glaa' is not a method; did you mean gla?"),
    "unknown preset": ([*CLASSES, "--preset", "mine"], "'mine' is not a preset"),
    "unknown dtype": ([*CLASSES, "--dtype", "float16"], "dtype 'float16' is not one of float32, bfloat16"),
    "short side": ([*CLASSES, "--short-side", "large"], "'large' is not a number of pixels"),
    "stride": ([*CLASSES, "--crop", "32", "--stride", "64"], "stride 64 is larger than crop 32"),
    "threshold alone": ([*CLASSES, "--threshold", "0.5"], "needs a class for the pixels below it"),
    "background alone": ([*CLASSES, "--background", "rest"], "only a threshold could reach it, and that is 0"),
    "classes file": (["--classes-file", "none.txt"], "none.txt cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_writes_nothing(name, tmp_path, photo, capsys):
    arguments, sentence = MISTAKES[name]
    images = [] if "NONE.png" in arguments else [photo]
    out = tmp_path / "out"
    assert call("segment", *images, *arguments, "--out", out, "--offline") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_offline_names_the_way_by_hand(tmp_path, photo, capsys):
    assert call("segment", photo, *CLASSES, "--offline", "--out", tmp_path / "new" / "out") == 2
    assert not (tmp_path / "new").exists()
    said = capsys.readouterr().err
    assert "openai/clip-vit-base-patch16" in said
    assert "gla-jax convert clip FOLDER OUT" in said


def test_a_damaged_model_is_one_sentence(tmp_path, photo, capsys):
    folder = random_pair(tmp_path / "model")
    (folder / "vfm" / "config.json").write_text("{")
    assert call("segment", photo, *CLASSES, "--model", folder, "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_out_that_is_a_file_is_refused(photo, model, capsys):
    assert call("segment", photo, *CLASSES, "--model", model, "--out", photo) == 2
    assert "choose another with --out" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["segment", "demo"])
def test_an_out_that_cannot_be_written_to_is_refused_before_the_work(command, tmp_path, photo, monkeypatch, capsys):
    def refuse(dir):
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))
    arguments = [photo, *CLASSES] if command == "segment" else []
    assert call(command, *arguments, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "out cannot be written to (Permission denied); choose another with --out." in said
    assert said.count("\n") == 1


def test_convert_refuses_what_holds_no_weights(tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    assert call("convert", "clip", tmp_path / "text.pt", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "text.pt" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_models_are_listed_with_their_licences(capsys):
    assert call("models") == 0
    printed = capsys.readouterr().out
    for word in ("tiny-world", "openai/clip-vit-base-patch16", "facebook/dino-vitb8", "Apache-2.0", "MIT"):
        assert word in printed


def test_usage_mistakes_have_their_own_status(capsys):
    assert call("segment") == 2
    assert call("--version") == 0
    assert capsys.readouterr().out.startswith("gla-jax ")
