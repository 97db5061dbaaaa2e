"""Classes by example: what a folder of labelled images says, against means in float64, with a CLIP and without."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import gla_jax
from gla_jax.cli import main
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.labels.targets import token_targets
from gla_jax.predict.examples import check_present, sums_of_images
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import ClassesError, DataError, ModelError, UserError
from tests.small_models import random_pair

RNG = np.random.default_rng(3)
NAMES = "left", "right", "below"
CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images of three regions in colours of their own, some pixels without a class."""
    root = tmp_path_factory.mktemp("examples")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for number in range(2):
        label = np.zeros((48, 64), np.uint8)
        label[:, 32:], label[32:], label[:4] = 1, 2, 255
        colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])[label % 253 % 3]
        image = np.clip(colours + RNG.integers(-30, 30, (48, 64, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray(label).save(root / "labels" / f"{number}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def loaded(pair, model, method="gla"):
    return Segmenter.from_pretrained(pair if model == "pair" else pair / "vfm", replace(CONFIG, method=METHODS[method]))


@pytest.mark.parametrize(
    ("model", "method"), [("pair", "gla"), ("pair", "maskclip"), ("vfm", "gla"), ("vfm", "maskclip")]
)
def test_a_class_is_the_mean_unit_feature_of_its_tokens(pair, folder, model, method):
    segmenter, classes = loaded(pair, model, method), gla_jax.classes_from(folder)
    assert classes.names == NAMES
    sums = np.zeros((3, segmenter.params.joint_width))
    for index in range(2):
        image, label = classes.read(index)
        features, grid = segmenter.window_features(image)
        features = np.asarray(features, np.float64)[: grid.count]
        features /= np.linalg.norm(features, axis=-1, keepdims=True)
        targets = token_targets(label, grid, features.shape[:2], 255)
        for token in np.argwhere(targets >= 0):
            sums[targets[*token]] += features[*token]
    rows, of_row = segmenter.embeddings(classes)
    np.testing.assert_allclose(rows, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=2e-6)
    assert of_row.tolist() == [0, 1, 2]


def test_a_foundation_model_alone_weighs_its_own_features(pair, folder):
    """Its values are its features, its joint space theirs: `maskclip` is each token by itself."""
    image = np.asarray(Image.open(folder / "images" / "0.png"))
    alone = loaded(pair, "vfm", "maskclip")
    features, _ = alone.window_features(image)
    expected = loaded(pair, "pair").model
    tokens = gla_jax.pipeline.encode_windows(expected.params, expected.prepare(image).windows, expected.config)
    np.testing.assert_allclose(features, tokens.features, atol=1e-5)
    assert np.abs(np.asarray(loaded(pair, "vfm").window_features(image)[0]) - np.asarray(features)).max() > 1e-3


@pytest.mark.parametrize("model", ["pair", "vfm"])
def test_regions_that_look_like_the_examples_get_their_class(pair, folder, model):
    """Tokens of small random towers follow the colours, so the labels of an example are nearly its own."""
    segmenter, classes = loaded(pair, model, "maskclip"), gla_jax.classes_from(folder)
    image, label = classes.read(0)
    result = segmenter(image, classes)
    assert result.classes == NAMES
    assert (result.labels == label)[label != 255].mean() > 0.8
    below = segmenter(image, classes, background="sky", threshold=0.99)
    assert below.classes == ("sky", *NAMES)
    np.testing.assert_array_equal(below.labels[below.labels > 0] - 1, result.labels[below.labels > 0])


def test_classes_json_names_some_indices(pair, folder, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "classes.json").write_text(json.dumps({"2": "below", "0": "left"}))
    classes = gla_jax.classes_from(tmp_path)
    assert classes.names == ("left", "below")
    assert np.unique(classes.read(0)[1]).tolist() == [0, 1, 255]
    segmenter = loaded(pair, "vfm")
    whole, _ = segmenter.embeddings(gla_jax.classes_from(folder))
    np.testing.assert_allclose(segmenter.embeddings(classes)[0], np.asarray(whole)[[0, 2]], atol=1e-6)
    for text in (
        '["left"]',
        '{"left": 0}',
        '{"255": "left"}',
        '{"1": "a", "01": "b"}',
        '{"0": "a", "1": "a", "2": "b"}',
    ):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(DataError, match=r"ind(ex|ices)\b"):
            gla_jax.classes_from(tmp_path)
    (tmp_path / "classes.txt").write_text("left\nright\nbelow")
    with pytest.raises(DataError, match=r"has both classes\.txt and classes\.json; leave the one"):
        gla_jax.classes_from(tmp_path)


def test_a_class_without_a_token_is_named_and_takes_no_pixel(pair, folder, tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "classes.txt").write_text("\n".join((*NAMES, "above")))
    segmenter, classes = loaded(pair, "vfm"), gla_jax.classes_from(tmp_path)
    with pytest.warns(UserWarning, match="no labelled token of 'above'"):
        result = segmenter(classes.read(0)[0], classes)
    assert result.classes == (*NAMES, "above")
    assert result.labels.max() < 3
    with pytest.raises(ClassesError, match="label two at least"):
        check_present(sums_of_images(segmenter.model, [], 4, 255), classes.names, classes.origin)


def test_what_cannot_be_is_one_sentence(pair, folder, capsys):
    alone = loaded(pair, "vfm")
    with pytest.raises(ModelError, match="--classes-from"):
        alone(np.zeros((32, 32, 3), np.uint8), ["left", "right"])
    with pytest.raises(ClassesError, match="templates"):
        alone(np.zeros((32, 32, 3), np.uint8), gla_jax.classes_from(folder), templates=["a {}"])
    with pytest.raises(UserError, match="foundation model alone"):
        loaded(pair, "vfm", "sclip")
    picture = str(folder / "images" / "0.png")
    assert main(["segment", picture, "--classes-from", str(folder), "--classes", "left"]) == 2
    assert "leave out --classes" in capsys.readouterr().err


def test_what_the_images_show_is_known_by_their_pixels_and_classes(folder, tmp_path):
    """An image may change and keep its size, and a name may get another index: a run would go on with old classes."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    label = np.array(Image.open(folder / "labels" / "0.png"))
    image = np.array(Image.open(folder / "images" / "0.png"))

    def digest(image, **names):
        (tmp_path / "classes.json").write_text(json.dumps({index: name for name, index in names.items()}))
        Image.fromarray(image).save(tmp_path / "images" / "0.png", compress_level=0)
        Image.fromarray(label).save(tmp_path / "labels" / "0.png")
        return gla_jax.classes_from(tmp_path).sha256, (tmp_path / "images" / "0.png").stat().st_size

    first, size = digest(image, left=0, below=2)
    assert digest(image, left=0, below=2)[0] == first
    changed, same_size = digest(255 - image, left=0, below=2)
    assert (changed != first, same_size) == (True, size)
    assert digest(image, left=0, below=1)[0] != first
    with pytest.raises(DataError, match="nowhere is not a folder of labelled images"):
        gla_jax.classes_from(tmp_path / "nowhere")
    with pytest.raises(DataError, match="takes the path of a folder, not a value of type ndarray"):
        gla_jax.classes_from(image)


def test_segment_by_example_and_other_examples_are_another_run(pair, folder, tmp_path, capsys):
    sizes = ["--short-side", "native", "--crop", "32", "--stride", "16", "--out", str(tmp_path / "out")]
    command = ["segment", str(folder / "images"), "--model", str(pair / "vfm"), *sizes]
    assert main([*command, "--classes-from", str(folder)]) == 0
    classes = gla_jax.classes_from(folder)
    expected = loaded(pair, "vfm")(classes.read(1)[0], classes)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "1.index.png")), expected.labels)
    others = tmp_path / "others"
    for name in ("images", "labels"):
        (others / name).mkdir(parents=True)
        (others / name / "0.png").write_bytes((folder / name / "0.png").read_bytes())
    (others / "classes.txt").write_text("\n".join(NAMES))
    capsys.readouterr()
    assert main([*command, "--classes-from", str(others)]) == 2
    assert "other settings (examples" in capsys.readouterr().err


def test_classes_that_cannot_be_used_leave_no_folder(pair, folder, tmp_path, capsys):
    """Else the same command, after the labels are mended, would be refused for other settings than its own."""
    shown, out = tmp_path / "shown", tmp_path / "new" / "out"
    for name in ("images", "labels"):
        (shown / name).mkdir(parents=True)
        (shown / name / "0.png").write_bytes((folder / name / "0.png").read_bytes())
    (shown / "classes.txt").write_text("\n".join(NAMES))
    label = np.array(Image.open(shown / "labels" / "0.png"))
    Image.fromarray(np.where(label == 0, label, 255).astype(np.uint8)).save(shown / "labels" / "0.png")
    sizes = ["--short-side", "native", "--crop", "32", "--stride", "16", "--classes-from", str(shown)]
    command = ["segment", str(folder / "images"), "--model", str(pair / "vfm"), *sizes, "--out", str(out)]
    assert main(command) == 2
    assert "label two at least" in capsys.readouterr().err
    assert not out.parent.exists()
    Image.fromarray(label).save(shown / "labels" / "0.png")
    assert main(command) == 0
