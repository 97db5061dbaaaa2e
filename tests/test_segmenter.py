"""The segmenter as a Python user meets it: labels, scores, background, segments, and what changing classes costs."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.predict import model as module
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import ClassesError, ImageError, ModelError, UserError
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
CLASSES = ["sand; gravel", "water", "a red cloth with dots"]
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def segmenter(folder):
    return Segmenter.from_pretrained(folder, CONFIG)


@pytest.fixture(scope="module")
def result(segmenter):
    return segmenter(IMAGE, CLASSES, scores=True)


def test_labels_are_the_best_class_of_every_pixel(result):
    assert result.labels.shape == (60, 90)
    assert result.labels.dtype == np.uint8
    assert result.classes == ("sand", "water", "a red cloth with dots")
    assert result.scores.shape == (3, 60, 90)
    np.testing.assert_array_equal(result.labels, result.scores.argmax(0))
    assert sum(result.shares().values()) == pytest.approx(1)


def test_segments_are_those_of_hugging_face(result):
    segments = result.segments()
    masks = np.stack([np.asarray(segment["mask"]) == 255 for segment in segments])
    np.testing.assert_array_equal(masks.sum(0), 1)
    shares = result.shares()
    assert [segment["label"] for segment in segments] == sorted(
        (name for name in shares if shares[name]), key=lambda name: -shares[name]
    )
    assert all(0 < segment["score"] <= 1 for segment in segments)


def test_paths_pil_images_and_arrays_are_the_same(segmenter, result, tmp_path):
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(IMAGE)):
        np.testing.assert_array_equal(segmenter(image, CLASSES).labels, result.labels)
    assert result.overlay().width >= 90
    with pytest.raises(ImageError):
        segmenter(IMAGE / 255, CLASSES)


def test_the_threshold_gives_pixels_to_the_background(segmenter, result):
    best = result.scores.max(0)
    threshold = float(np.median(best))
    found = segmenter(IMAGE, CLASSES, background="none of these", threshold=threshold)
    assert found.classes == ("none of these", *result.classes)
    clear = np.abs(best - threshold) > 1e-5
    np.testing.assert_array_equal(found.labels[clear], np.where(best < threshold, 0, result.labels + 1)[clear])
    own = segmenter(IMAGE, CLASSES, background="water", threshold=threshold)
    np.testing.assert_array_equal(own.labels[clear], np.where(best < threshold, 1, result.labels)[clear])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threshold": 0.5}, "needs a class for the pixels below it"),
        ({"background": "sky"}, "only a threshold could reach it"),
        ({"background": "sky", "threshold": 1.5}, "is not a probability"),
        ({"background": "sky", "threshold": [0.5]}, "is not a probability"),
        ({"background": 3, "threshold": 0.5}, "the class name 3 is not a text"),
        ({"background": "", "threshold": 0.5}, "the background has an empty name"),
        ({"templates": "a {}"}, "the prompt templates are 'a {}'; give a list"),
        ({"templates": [3]}, "the prompt template 3 does not hold"),
        ({"background": "sand; dune", "threshold": 0.5}, "the background 'sand; dune' has no synonyms; give its name"),
    ],
)
def test_background_and_threshold_go_together(segmenter, options, reason):
    with pytest.raises(ClassesError, match=reason):
        segmenter(IMAGE, CLASSES, **options)


def test_a_lone_text_is_not_read_letter_by_letter(segmenter):
    with pytest.raises(ClassesError, match="the classes are one text, 'cat'; put each class into a list"):
        segmenter(IMAGE, "cat")


def test_one_class_for_every_pixel_is_refused(segmenter):
    for classes, options in ((["grass"], {}), (["grass"], {"background": "sky", "threshold": 0.5})):
        with pytest.raises(ClassesError, match="the class 'grass' alone would take every pixel"):
            segmenter(IMAGE, classes, **options)


@pytest.mark.parametrize("images", [IMAGE, "photo.png", None, b"photo.png"])
def test_one_image_is_not_a_list_of_its_rows(segmenter, images):
    with pytest.raises(ImageError, match="give a list of images"):
        segmenter.batch(images, CLASSES)


def test_it_runs_without_jit_too(segmenter):
    """What a jitted function gets from the host is still NumPy's then."""
    small, options = IMAGE[:40, :60], {"scores": True, "background": "sky", "threshold": 0.4}
    expected = segmenter(small, CLASSES, **options)
    with jax.disable_jit():
        plain = segmenter(small, CLASSES, **options)
        thresholds = {"anchor_threshold": np.float32(0.55), "logit_scale": np.float32(40)}
        segmenter.with_settings(**thresholds)(small, CLASSES)
    np.testing.assert_allclose(plain.scores, expected.scores, atol=1e-5)
    assert (plain.labels == expected.labels).mean() > 0.99


def test_loading_without_a_name_lists_the_names():
    for name in (None, "", " ", 3):
        with pytest.raises(ModelError, match="names no model; give a folder, or one or two of tiny-world, clip-vit"):
            Segmenter.from_pretrained(name) if name is not None else Segmenter.from_pretrained()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"config": {}}, "give a SegmenterConfig"),
        ({"config": "gla"}, "give a SegmenterConfig"),
        ({"preset": 3}, "'3' is not a preset"),
        ({"preset": Path("missing.json")}, "missing.json cannot be read"),
        ({"method": ["gla"]}, "is not a method"),
        ({"alpha_beta": "x"}, "dynamic_shift is 'x'; give a number"),
        ({"rho": None}, "anchor_threshold is None; give a number"),
        ({"attention": "ring"}, "give a mesh, or take blockwise attention"),
        ({"mesh": 3}, "mesh is 3; give a mesh of gla_jax.make_mesh"),
        ({"nope": 1}, "'nope' is not a setting"),
    ],
)
def test_wrong_settings_are_one_sentence(folder, fields, reason):
    with pytest.raises(UserError, match=reason):
        Segmenter.from_pretrained(folder, **fields)


def test_other_classes_neither_reload_nor_recompile_the_towers(segmenter, monkeypatch):
    segmenter(IMAGE, CLASSES)
    compiled = module._segment_features._cache_size()
    params = segmenter.params
    with monkeypatch.context() as patch:
        patch.setattr(
            "gla_jax.models.pretrained.read_checkpoint", lambda *_: pytest.fail("the weights were loaded again")
        )
        segmenter(IMAGE, ["brick", "wood", "grass", "water", "sand"])
        segmenter(IMAGE[:50, :70], ["brick", "sand"])
    assert module._segment_features._cache_size() == compiled
    assert segmenter.params is params


def test_settings_change_without_loading(segmenter, result):
    other = segmenter.with_config(replace(CONFIG, method=METHODS["proxyclip"]))
    assert other.params is segmenter.params
    assert other.model_hash == segmenter.model_hash
    assert np.abs(other(IMAGE, CLASSES, scores=True).scores - result.scores).max() > 1e-3


def test_bfloat16_towers_stay_near_float32(segmenter, result):
    half = segmenter.with_config(replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    scores = half(IMAGE, CLASSES, scores=True).scores
    assert scores.dtype == np.float32
    assert np.abs(scores - result.scores).mean() < 0.05


def test_more_than_256_classes_take_16_bits(segmenter):
    with pytest.warns(UserWarning, match="does not know"):
        found = segmenter(IMAGE, [f"thing {index}" for index in range(300)])
    assert found.labels.dtype == np.uint16
    assert found.labels.max() < 300


def test_a_clip_alone_needs_a_method_without_features(folder):
    with pytest.raises(UserError, match="is a CLIP alone; name a pair"):
        Segmenter.from_pretrained(folder / "clip", CONFIG)
    alone = Segmenter.from_pretrained(folder / "clip", replace(CONFIG, method=METHODS["maskclip"]))
    assert alone(IMAGE, CLASSES).labels.shape == (60, 90)


def test_a_crop_that_patches_do_not_divide_is_refused(folder):
    with pytest.raises(UserError, match=r"crop 40 does not divide into the patches of 16 pixels.*multiple of 16"):
        Segmenter.from_pretrained(folder, replace(CONFIG, windows=WindowConfig(48, crop=40, stride=16)))


@pytest.mark.parametrize("size", [(1, 1), (7, 200), (31, 33)])
def test_images_of_any_size_get_labels_of_their_size(segmenter, size):
    assert segmenter(np.zeros((*size, 3), np.uint8), CLASSES).labels.shape == size


def test_what_surrounds_a_small_image_is_the_mean_of_its_own_clip(segmenter):
    """Padding of OpenAI's mean would not be zero after another CLIP's normalisation, and towers would see a frame."""
    spec = segmenter.clip.spec
    image = replace(spec.image, pixel_mean=(0.5, 0.25, 0.5))
    clip = replace(segmenter.clip, spec=replace(spec, image=image))
    smaller = replace(CONFIG, windows=WindowConfig(short_side=16, crop=32, stride=16))
    windows = Segmenter(clip, segmenter.vfm, smaller).prepare(IMAGE).windows
    np.testing.assert_array_equal(windows.pixels[0, :, 0, 0], image.pixel_mean)


def test_a_batch_gives_every_image_its_own_result(segmenter):
    """Images of one bucket go through together; results must stay in the order of the images."""
    sizes = [(60, 90), (90, 60), (48, 48), (66, 99)]
    images = [
        np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8) for seed, size in enumerate(sizes)
    ]
    assert segmenter.prepare(images[0]).count == segmenter.prepare(images[3]).count
    for image, found in zip(images, segmenter.batch(images, CLASSES, scores=True), strict=True):
        alone = segmenter(image, CLASSES, scores=True)
        np.testing.assert_array_equal(found.image, image)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-5)


@pytest.mark.parametrize("factor", [0, 1e-30, 1e25, 3e37])
def test_features_without_directions_are_no_labels(segmenter, factor):
    """Weights that are finite numbers: all pixels would get one class, and nothing would say so."""
    projection = jax.tree.map(lambda leaf: leaf * np.float32(factor), segmenter.clip.params["image"]["projection"])
    image = {**segmenter.clip.params["image"], "projection": projection}
    assert np.isfinite(projection["kernel"]).all()
    broken = Segmenter(replace(segmenter.clip, params={**segmenter.clip.params, "image": image}), segmenter.vfm, CONFIG)
    with pytest.raises(UserError, match=r"are zero, not finite or too large in float32: .*; convert them again\.$"):
        broken(IMAGE, CLASSES)
