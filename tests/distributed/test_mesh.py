"""One image over several devices: the same labels, and less on every device."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.attention import ring
from gla_jax.config import METHODS, MethodConfig, SegmenterConfig, WindowConfig
from gla_jax.distributed import labels
from gla_jax.distributed.mesh import (
    BY_WINDOW,
    make_mesh,
    padded_windows,
    place_params,
    place_parts,
    read_mesh,
    ring_features,
)
from gla_jax.images.windows import bucket
from gla_jax.labels import label_map
from gla_jax.labels.label_map import LabelRule, layout
from gla_jax.pipeline import segment_features
from gla_jax.predict.model import image_grid, prepare_image
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from tests.small_models import random_pair

CONFIG = SegmenterConfig(
    method=MethodConfig(block_size=10), windows=WindowConfig(short_side=None, crop=32, stride=16), tower_batch=2
)
CLASSES = ["sand", "water", "a red cloth with dots"]
IMAGES = [np.random.default_rng(seed).integers(0, 256, (60, 90, 3), dtype=np.uint8) for seed in range(2)]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


@pytest.mark.parametrize("method", ["gla", "gla-clearclip", "proxyclip", "naclip"])
def test_eight_devices_give_the_scores_of_one(segmenter, method):
    config = replace(CONFIG, method=replace(METHODS[method], block_size=10))
    alone = segmenter.with_config(config)(IMAGES[0], CLASSES, scores=True)
    split = Segmenter(segmenter.clip, segmenter.vfm, config, mesh=make_mesh())
    found = split(IMAGES[0], CLASSES, scores=True)
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
    clear = np.sort(alone.scores, 0)[-1] - np.sort(alone.scores, 0)[-2] > 1e-3
    np.testing.assert_array_equal(found.labels[clear], alone.labels[clear])


def test_windows_alone_share_a_device(segmenter):
    """A device with several windows takes them together, also where its blocks of keys may be skipped."""
    own = segmenter.with_config(replace(CONFIG, method=METHODS["proxyclip"]))
    split = Segmenter(own.clip, own.vfm, own.model.settings, mesh=make_mesh(8))
    np.testing.assert_array_equal(split(IMAGES[0], CLASSES).labels, own(IMAGES[0], CLASSES).labels)


def test_images_go_over_the_data_axis(segmenter):
    mesh = make_mesh(data=2)
    assert mesh.shape == {"data": 2, "window": 4}
    made = [prepare_image(image, CONFIG.windows, lambda count: padded_windows(count, mesh)).windows for image in IMAGES]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *made)
    placed = place_parts(batch, mesh)
    features = ring_features(place_params(segmenter.params, mesh), placed, CONFIG, mesh).rows
    assert features.sharding.spec == jax.sharding.PartitionSpec("data", "window")
    for index, windows in enumerate(made):
        expected = jax.jit(segment_features)(segmenter.params, jax.tree.map(jnp.asarray, windows), CONFIG)
        valid = windows.valid
        np.testing.assert_allclose(features[index][valid], expected[valid], atol=2e-5)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_what_a_device_holds_shrinks_with_the_mesh(segmenter, devices):
    """Keys, values and queries of an image are what grows with it: each device must hold its part alone."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    windows = prepare_image(np.zeros((32, 32 + 16 * 15, 3), np.uint8), CONFIG.windows).windows
    assert len(windows.valid) == 16
    batch = place_parts(jax.tree.map(lambda leaf: leaf[None], windows), mesh)
    assert batch.pixels.addressable_shards[0].data.shape[1] == 16 // devices
    program = ring_features.lower(place_params(segmenter.params, mesh), batch, CONFIG, mesh).compile()
    out = program(place_params(segmenter.params, mesh), batch, CONFIG).rows
    assert [shard.data.shape[1] for shard in out.addressable_shards] == [16 // devices] * devices
    weights = {leaf.shape[0] for leaf in jax.tree.leaves(segmenter.params) if leaf.ndim == 2}
    buffers = row_counts(program.as_text(), width=8) - weights
    assert 16 * 16 // devices <= max(buffers) <= 16 * 16 // devices + CONFIG.method.block_size  # a last block is padded


def row_counts(program, width):
    """Row counts of all arrays [rows width] that a compiled program holds on a device."""
    return {int(rows) for rows in re.findall(rf"f32\[(\d+),{width}\]", program)}


def test_a_mesh_of_uneven_groups_is_refused(segmenter):
    with pytest.raises(UserError, match="8 devices cannot be divided into 3 equal groups"):
        make_mesh(data=3)
    for wrong, reason in (
        ({"devices": []}, "0 devices cannot"),
        ({"data": 2.0}, "2.0 equal"),
        ({"devices": 2}, "is 2"),
    ):
        with pytest.raises(UserError, match=reason):
            make_mesh(**wrong)
    for text in ("2 by 4", "", "0x8", "8", "1x8x1", "-1x8", "\u0661x8", "1x" + "9" * 5000):
        with pytest.raises(UserError, match=r"^mesh .{2,42} is not DATAxWINDOW; write it as in 1x8\.$"):
            read_mesh(text, spanning=True)
    with pytest.raises(UserError, match="the mesh 4x4 needs 16 devices, but there are 8; make it smaller"):
        read_mesh("4x4", spanning=True)


def test_a_batch_on_a_mesh_gives_the_labels_of_its_images(segmenter):
    """Three images of two sizes on groups of devices that take two at a time: none lost, none in another's place."""
    images = [*IMAGES, np.random.default_rng(9).integers(0, 256, (40, 30, 3), dtype=np.uint8)]
    split = Segmenter(segmenter.clip, segmenter.vfm, CONFIG, mesh=read_mesh("2x4", spanning=False))
    for found, image in zip(split.batch(images, CLASSES, scores=True), images, strict=True):
        np.testing.assert_allclose(found.scores, segmenter(image, CLASSES, scores=True).scores, atol=1e-4)


def work(program):
    """What a device does in a program: XLA's operations and bytes, a loop's body counted once."""
    cost = program.cost_analysis()
    return np.array([cost["flops"], cost["bytes accessed"], cost["transcendentals"]])


def test_eight_images_cost_a_device_the_labels_of_one(monkeypatch):
    """--mesh 8x1: two cores cannot show by the clock that eight images are labelled at once, so the work is counted."""
    grid = image_grid((300, 700), CONFIG.windows)
    where, rule = layout(grid, 16, (300, 700)), LabelRule(np.arange(9, dtype=np.int32), 40.0, 0.1, dtype=np.uint8)
    tiles, mesh = len(list(where.tiles())), make_mesh(data=8)
    assert tiles > 1
    rng = np.random.default_rng(0)
    features, text = rng.random((8, grid.count, 16, 24), np.float32), rng.random((9, 24), np.float32)
    counted = []

    def counting(function):
        def call(*arguments, **static):
            counted.append(work(function.lower(*arguments, **static).compile()))
            return function(*arguments, **static)

        return call

    monkeypatch.setattr(label_map, "_token_logits", counting(label_map._token_logits))
    monkeypatch.setattr(label_map, "_label_tile", counting(label_map._label_tile))
    monkeypatch.setattr(labels, "label_tiles", counting(labels.label_tiles))
    alone = [label_map.label_map(label_map.whole_logits(jnp.asarray(own), text), where, rule)() for own in features]
    one, counted = sum(counted) / 8, []
    placed = jax.device_put(features, jax.sharding.NamedSharding(mesh, BY_WINDOW))
    logits, _ = counting(labels.split_logits)(placed, text, mesh, "highest")
    assert [shard.data.shape[0] for shard in logits.addressable_shards] == [1] * 8
    together = labels.start_labels(logits, [where] * 8, rule, mesh, "highest")
    assert len(counted) == 1 + tiles
    assert (sum(counted) <= 1.3 * one).all()
    for own, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(own(), expected)


def test_windows_are_padded_to_whole_devices():
    mesh = make_mesh()
    for count in range(1, 100):
        padded = padded_windows(count, mesh)
        assert padded % 8 == 0
        assert bucket(count) <= padded < bucket(count) + 8


def test_the_ring_passes_every_part_to_every_device():
    mesh = make_mesh()
    spec = jax.sharding.PartitionSpec(ring.WINDOW_AXIS)

    def total(part):
        return ring.fold_shards(part, lambda x: x.sum(keepdims=True), jnp.add)

    found = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(16.0))
    np.testing.assert_allclose(found, np.full(8, 120.0))
