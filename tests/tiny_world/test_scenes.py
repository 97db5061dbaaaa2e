from functools import cache

import numpy as np
import pytest

from gla_jax.tiny_world.batches import NONE, SLOTS, BatchSpec, balanced_samples, make_batch, patch_slots
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.textures import mark_pattern
from gla_jax.tiny_world.vocabulary import CLASSES, COLOURS, GROUNDS, HELD_OUT, HELD_OUT_CLASSES, MARKS, TRAIN_CLASSES

SEEDS = range(24)


@cache
def scene_of(seed):
    return render(seed, split="test")


def pairs_of(split):
    scenes = [render(seed, 64, 64, split) for seed in range(60)]
    return {(thing.colour, thing.mark) for scene in scenes for thing in scene.objects if thing.colour}


def test_a_scene_is_a_function_of_seed_size_and_split():
    first, again = render(3), render(3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.objects == again.objects
    for other in (render(4), render(3, split="test")):
        assert not np.array_equal(first.image, other.image)


def test_the_test_split_holds_the_held_out_pairs_and_training_never_does():
    assert not pairs_of("train") & set(HELD_OUT)
    assert pairs_of("test") >= set(HELD_OUT)


def test_every_colour_and_every_mark_is_held_out_once():
    assert sorted(colour for colour, _ in HELD_OUT) == sorted(COLOURS)
    assert sorted(mark for _, mark in HELD_OUT) == sorted(MARKS)
    assert sorted((*HELD_OUT_CLASSES, *TRAIN_CLASSES)) == list(range(len(CLASSES)))


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_labels_are_the_classes_of_the_objects(seed):
    scene = scene_of(seed)
    assert scene.image.shape == (336, 448, 3)
    assert scene.image.dtype == scene.labels.dtype == np.uint8
    for index, thing in enumerate(scene.objects):
        assert set(np.unique(scene.labels[scene.instances == index])) <= {thing.label}
        if thing.colour is None:
            assert thing.phrase in GROUNDS
        else:
            assert thing.phrase == f"a {thing.colour} cloth with {thing.mark}"
    colours = [thing.colour for thing in scene.objects if thing.colour]
    assert len(set(colours)) == len(colours) >= 2


def test_cloths_are_large_and_their_marks_small():
    cloth_shares, mark_shares = [], []
    for seed in SEEDS:
        scene = scene_of(seed)
        for index, thing in enumerate(scene.objects):
            if thing.colour:
                inside = scene.instances == index
                assert 1 <= len(thing.mark_boxes) <= 2
                cloth_shares.append(inside.mean())
                mark_shares.append(sum(side**2 for _, _, side in thing.mark_boxes) / inside.sum())
    assert 0.15 < np.median(cloth_shares) < 0.35
    assert np.median(mark_shares) < 0.15
    assert max(mark_shares) < 0.5


def test_most_windows_that_see_part_of_a_cloth_miss_its_mark():
    seen = total = 0
    for seed in SEEDS:
        scene = scene_of(seed)
        for top in (0, 112):
            for left in (0, 112, 224):
                window = scene.instances[top : top + 224, left : left + 224]
                for index, thing in enumerate(scene.objects):
                    if thing.colour and (window == index).any():
                        total += 1
                        seen += any(
                            top <= y + side / 2 < top + 224 and left <= x + side / 2 < left + 224
                            for y, x, side in thing.mark_boxes
                        )
    assert seen / total < 0.6


@pytest.mark.parametrize("size", [(64, 64), (200, 1500), (337, 449)])
def test_any_size(size):
    assert render(0, *size).labels.shape == size


def test_what_cannot_be_drawn():
    with pytest.raises(ValueError, match="split is 'valid'"):
        render(0, split="valid")
    with pytest.raises(ValueError, match="no room for a mark"):
        render(0, 40, 400)
    with pytest.raises(ValueError, match="no mark is called 'plaid'"):
        mark_pattern("plaid", 44, 0.0)


def test_a_patch_belongs_to_the_object_that_fills_it():
    instances = np.zeros((32, 32), np.uint8)
    instances[:16, 8:] = 1  # half of the first patch, all of the second
    np.testing.assert_array_equal(patch_slots(instances, 16), [NONE, 1, 0, 0])


def test_samples_are_balanced():
    slots = np.array([0] * 90 + [1] * 8 + [NONE] * 2)
    marked = np.zeros(100, bool)
    marked[97] = True
    picked = balanced_samples(slots, marked, 60, np.random.default_rng(0))
    assert np.bincount(slots[picked]).tolist() == [30, 30]
    assert (picked == 97).sum() >= 10


def test_batches_are_fresh_and_repeatable():
    spec = BatchSpec(scenes=2, views=2, crop=112, patch=16, samples=24, mark_bias=1.0)
    batch = make_batch(5, spec)
    assert batch.pixels.shape == (2, 2, 112, 112, 3)
    assert batch.slots.shape == (2, 2, 49)
    assert batch.mark_seen.shape == (2, 2, SLOTS)
    assert batch.mark_seen.max(2).min() == 1.0
    assert not np.array_equal(make_batch(6, spec).pixels, batch.pixels)
