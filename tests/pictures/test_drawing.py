"""Pictures: index and palette PNGs carry the labels exactly, an overlay shows every class that occurs."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from gla_jax.images.windows import WindowConfig, window_grid
from gla_jax.pictures.drawing import (
    PAPER,
    Entry,
    blend,
    clip_text,
    font,
    index_image,
    legend,
    legend_entries,
    outlines,
    overlay,
    palette,
    palette_image,
    with_window_grid,
)
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES


def through_a_file(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return Image.open(file)


@pytest.mark.parametrize("classes", [2, 256, 257, 1000])
def test_index_pngs_hold_the_labels(classes):
    labels = np.arange(30 * 40).reshape(30, 40) % classes
    # Also where only low classes occur: the pictures of one run are of one kind.
    for shown in (labels, labels.clip(max=1)):
        read = through_a_file(index_image(shown, classes))
        assert read.mode == ("L" if classes <= 256 else "I;16")
        np.testing.assert_array_equal(np.asarray(read), shown)


NAMES = [f"class {index}" for index in range(171)]


def test_palette_pngs_hold_labels_and_colours():
    labels = np.arange(20 * 30).reshape(20, 30) % 150
    read = through_a_file(palette_image(labels, NAMES))
    assert read.mode == "P"
    np.testing.assert_array_equal(np.asarray(read), labels)
    np.testing.assert_array_equal(np.asarray(read.convert("RGB")), palette(NAMES)[labels])


def test_colours_differ_and_do_not_depend_on_the_number_of_classes():
    colours = palette(NAMES)
    assert len({tuple(colour) for colour in colours}) == 171
    np.testing.assert_array_equal(palette(NAMES[:21]), colours[:21])
    first = colours[:16].astype(int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(16, dtype=int)
    assert apart.min() >= 45


def test_classes_of_tiny_world_have_the_colours_they_are_drawn_in():
    """A blue cloth in red would mislead; the classes of one colour must still differ."""
    scene, colours = render(9, 96, 128, "test"), palette(CLASSES).astype(int)
    for label in np.unique(scene.labels):
        drawn = np.median(scene.image[scene.labels == label], axis=0)
        assert colours[label].argmax() == drawn.argmax()
        assert np.corrcoef(colours[label], drawn)[0, 1] > 0.95
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(len(CLASSES), dtype=int)
    assert apart.min() >= 35
    np.testing.assert_array_equal(palette(["sand", "sky"]), palette(["cat", "dog"]))


def test_the_background_keeps_the_photo():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 20:] = 1
    shown = blend(image, labels, palette(["other", "cat"]), plain=0)
    np.testing.assert_array_equal(shown[:, :20], image[:, :20])
    assert (shown[:, 20:] != image[:, 20:]).any()
    assert [entry.colour == PAPER for entry in legend_entries(labels, ["other", "cat"], 0)] == [True, False]


def test_the_legend_names_what_occurs_largest_first():
    labels = np.array([[2, 2, 2, 0]])
    entries = legend_entries(labels, ["cat", "dog", "sky"])
    assert [(entry.name, entry.note) for entry in entries] == [("sky", "75.0%"), ("cat", "25.0%")]
    assert entries[0].colour == tuple(palette(["cat", "dog", "sky"])[2])


def test_outlines_mark_the_first_pixel_of_a_region():
    edge = outlines(np.array([[0, 0, 1], [0, 0, 1]]))
    np.testing.assert_array_equal(edge, [[False, False, True]] * 2)


@pytest.mark.parametrize("size", [(200, 300), (20, 15)])
def test_an_overlay_has_a_legend_below_the_image(size):
    image = np.full((*size, 3), 128, np.uint8)
    labels = np.zeros(size, int)
    labels[:, size[1] // 2 :] = 1
    shown = np.asarray(overlay(image, labels, ["cat", "a class of a name that is much too long for any legend " * 3]))
    assert shown.shape[0] > size[0]
    assert shown.shape[1] >= size[1]
    assert (shown[size[0] :] != 255).any()


def test_the_window_grid_lies_where_windows_end():
    grid = window_grid(48, 64, WindowConfig(None, crop=32, stride=16))
    shown = with_window_grid(np.full((48, 64, 3), 100, np.uint8), grid)
    changed = np.flatnonzero((shown != 100).any(-1).sum(0) > 20)
    assert changed.tolist() == [16, 32, 48]


def test_a_text_is_cut_to_the_most_letters_that_fit():
    letters = font(14)
    for text in ("short", "a class of a name that is too long", "iiiiiiiiiiiiiiiiiiii", "WWWWWWWWWWWWWWWW"):
        for width in (0, 10, 47, 100, 400):
            cut = clip_text(text, letters, width)
            if letters.getlength(text) <= width:
                assert cut == text
            else:
                kept = len(cut) - 3
                assert cut == f"{text[:kept]}..."
                assert kept == 0 or letters.getlength(cut) <= width < letters.getlength(f"{text[: kept + 1]}...")
    assert clip_text("two\nlines", letters, 400) == "two lines"


def test_a_legend_of_endless_names_takes_no_time():
    """A name of 10,000 characters once took minutes."""
    started = time.perf_counter()
    shown = legend([Entry("long " * 20_000, (1, 2, 3), "12.3%")] * 20, 400, 14)
    assert time.perf_counter() - started < 2
    assert shown.width == 400
    # The share stands to the right of the cut name.
    assert (np.asarray(shown)[:, 340:] < 200).any()
