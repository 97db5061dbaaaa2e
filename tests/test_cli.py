"""The command line from a shell's point of view: files, exit status, and one sentence for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from gla_jax.cli import main
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
    assert written == {"photo.index.png", "photo.palette.png", "photo.overlay.png", "results.json"}
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


def test_classes_file_background_templates_and_scores(tmp_path, photo, model):
    (tmp_path / "classes.txt").write_text("sand; gravel\nwater\n")
    (tmp_path / "templates.txt").write_text("a photo of {}.\n")
    out = tmp_path / "out"
    given = ("--classes-file", tmp_path / "classes.txt", "--templates", tmp_path / "templates.txt")
    background = ("--background", "rest", "--threshold", "0.4", "--scores")
    assert call("segment", photo, *given, *background, "--model", model, *SIZES, "--out", out) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["classes"] == ["sand", "water"]
    assert (document["settings"]["background"], document["settings"]["threshold"]) == ("rest", 0.4)
    with np.load(out / "photo.scores.npz") as arrays:
        assert arrays["classes"].tolist() == ["rest", "sand", "water"]
        assert arrays["scores"].shape == (3, 50, 70)


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
    "missing image": (["NONE.png", *CLASSES], "NONE.png does not exist"),
    "unknown model": ([*CLASSES, "--model", "clip-b"], "neither a model folder nor a named model"),
    "misspelt model": ([*CLASSES, "--model", "clip-vit-base-patch61"], "did you mean clip-vit-base-patch16"),
    "unknown method": ([*CLASSES, "--method", "glaa"], "'glaa' is not a method; did you mean gla?"),
    "unknown preset": ([*CLASSES, "--preset", "mine"], "'mine' is not a preset"),
    "unknown dtype": ([*CLASSES, "--dtype", "float16"], "is not a dtype"),
    "short side": ([*CLASSES, "--short-side", "large"], "'large' is not a number of pixels"),
    "stride": ([*CLASSES, "--crop", "32", "--stride", "64"], "stride 64 is larger than crop 32"),
    "threshold alone": ([*CLASSES, "--threshold", "0.5"], "needs a class for the pixels below it"),
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
    assert call("segment", photo, *CLASSES, "--offline", "--out", tmp_path / "out") == 2
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
