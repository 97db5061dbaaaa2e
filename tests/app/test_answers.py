"""What the page answers, without a browser."""

import json

import numpy as np
import pytest
from PIL import Image

from gla_jax import Segmenter, classes_from
from gla_jax.app.answers import Answers, Request, read_classes
from gla_jax.pictures.drawing import letter_size
from gla_jax.predict.model import Model
from gla_jax.support.errors import UserError
from gla_jax.tiny_world.scenes import render

CLASSES = "wood, a blue cloth with crosses; a blue cloth\na yellow cloth with rings"


@pytest.fixture(scope="module")
def answers():
    return Answers(["tiny-world"])


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("upload") / "scene.png"
    Image.fromarray(render(9, 336, 448, "test").image).save(path)
    return str(path)


def test_classes_are_read_as_people_type_them():
    parsed = read_classes(" cat; tabby , grass\n\n sky ,")
    assert parsed.names == ("cat", "grass", "sky")
    assert parsed.prompts == ("cat", "tabby", "grass", "sky")


def test_the_page_gives_the_labels_of_the_command_line(answers, photo):
    result = answers.segment(photo, CLASSES, "tiny-world", "gla")
    names = ["wood", "a blue cloth with crosses; a blue cloth", "a yellow cloth with rings"]
    assert (result.labels == Segmenter.from_pretrained("tiny-world")(photo, names).labels).all()


def test_a_second_question_answers_without_the_towers(answers, photo, monkeypatch):
    answers.segment(photo, CLASSES, "tiny-world", "gla")
    monkeypatch.setattr(Model, "features", None)  # calling it would fail
    result = answers.segment(photo, "sand, wood", "tiny-world", "gla", "nothing", 0.5)
    assert result.classes == ("nothing", "sand", "wood")


def test_pictures_of_a_comparison_and_a_point(answers, photo):
    assert [picture.width >= 448 for picture in answers.compare(photo, CLASSES, "tiny-world")] == [True] * 2
    assert np.asarray(answers.attention(photo, (230, 236), "tiny-world")).std() > 10


def test_a_comparison_follows_the_background(answers, photo):
    """Its pixels keep the photo, as they do in the answer beside it."""
    asked, top = (photo, "sand, brick, wood", "tiny-world"), round(1.9 * letter_size(2 * 448))
    for method, picture in zip(("proxyclip", "gla"), answers.compare(*asked, "nothing", 0.9), strict=True):
        result = answers.segment(*asked, method, "nothing", 0.9)
        kept = (np.asarray(picture)[top : top + 336, 14 : 14 + 448] == result.image).all(-1)
        background = result.labels == result.plain
        assert 0.1 < background.mean() < 0.9
        assert kept[background].mean() > 0.8  # all but outlines and the grid of windows
        assert kept[~background].mean() < 0.1


def test_labelled_images_show_the_classes_that_nobody_types(answers, photo, tmp_path):
    scene = render(9, 336, 448, "test")
    for name, pixels in (("images", scene.image), ("labels", scene.labels.astype(np.uint8))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    present = np.unique(scene.labels).tolist()
    (tmp_path / "classes.json").write_text(json.dumps({str(value): f"class {value}" for value in present}))
    examples = Answers(["tiny-world"], examples=classes_from(tmp_path))
    result = examples.segment(photo, " \n", "tiny-world", "gla")
    assert result.classes == tuple(f"class {value}" for value in present)
    assert (np.array(present)[result.labels] == scene.labels).mean() > 0.9
    typed = examples.segment(photo, CLASSES, "tiny-world", "gla")
    assert (typed.labels == answers.segment(photo, CLASSES, "tiny-world", "gla").labels).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"path": None}, "there is no image"),
        ({"path": __file__}, "test_answers.py"),
        ({"classes": " , \n"}, "class"),
        ({"classes": "cat"}, "class"),
        ({"model": "/etc"}, "is not offered here"),
        ({"method": "nope"}, "is not a method"),
        ({"background": "x", "threshold": 2.0}, "give a number from 0 to 1"),
    ],
)
def test_mistakes_get_a_sentence(answers, photo, change, sentence):
    words = {"path": photo, "classes": CLASSES, "model": "tiny-world", "method": "gla"} | change
    with pytest.raises(UserError, match=sentence):
        answers.segment(**words)


def test_uploads_are_bounded(answers, tmp_path, monkeypatch):
    monkeypatch.setattr("gla_jax.app.answers.MAX_PIXELS", 99)
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="the page takes up to"):
        answers.segment(str(tmp_path / "x.png"), CLASSES, "tiny-world", "gla")
    monkeypatch.setattr("gla_jax.app.answers.MAX_UPLOAD_BYTES", 9)
    with pytest.raises(UserError, match="MiB; the page takes up to"):
        answers.segment(str(tmp_path / "x.png"), CLASSES, "tiny-world", "gla")


def test_features_without_directions_are_refused(photo, monkeypatch):
    """Damaged weights would give every pixel the same class, as on the command line."""
    answers = Answers(["tiny-world"])
    features = Model.features
    monkeypatch.setattr(Model, "features", lambda *words: [0 * one for one in features(*words)])
    for _ in range(2):  # nothing of the first answer is kept
        with pytest.raises(UserError, match="the image features are zero"):
            answers.segment(photo, CLASSES, "tiny-world", "gla")


def test_what_waits_together_goes_as_one_batch(answers, photo, tmp_path, monkeypatch):
    """And a bad request of a batch leaves the others alone."""
    Image.fromarray(render(3, 200, 260, "test").image).save(tmp_path / "other.png")
    sizes, batch = [], Segmenter.batch
    monkeypatch.setattr(Segmenter, "batch", lambda *words: sizes.append(len(words[1])) or batch(*words))
    of_scenes = [Request(path, CLASSES, "tiny-world", "gla") for path in (photo, str(tmp_path / "other.png"))]
    of_others = [Request(photo, "sand, water", "tiny-world", method) for method in ("gla", "gla", "sclip")]
    results = answers.segment_together([*of_scenes, *of_others])
    assert sizes == [2, 2]
    for request, result in zip([*of_scenes, *of_others], results, strict=True):
        assert (result.labels == answers.segment(*request).labels).all()
    good, bad = answers.segment_together([of_scenes[0], of_scenes[0]._replace(path=__file__)])
    assert (good.labels == results[0].labels).all()
    assert "test_answers.py" in str(bad)
