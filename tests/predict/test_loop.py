"""The loop of every command: few programs, one image in flight, results in order, little in memory."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.pipeline import Counted
from gla_jax.predict import model as module
from gla_jax.predict import predict as loop
from gla_jax.predict.predict import Ready, label_images
from gla_jax.segmenter import Segmenter
from gla_jax.support.batches import Stopwatch
from gla_jax.text.prompts import parse_classes
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
CLASSES = ["sand", "water"]


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


def pictures(sizes):
    return [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i, size in enumerate(sizes)]


def run(segmenter, images, **options):
    _, question = segmenter.question(parse_classes(CLASSES))
    ready = (Ready(index, segmenter.prepare(image)) for index, image in enumerate(images))
    return label_images(segmenter.model, ready, question, Stopwatch(), **options)


def test_a_stream_of_three_sizes_compiles_three_tower_programs(segmenter):
    """45 images took six programs at a batch of 8: a group that was not full had its own."""
    sizes = [[(48, 48), (48, 64), (48, 96)][index] for index in np.random.default_rng(0).integers(0, 3, 45)]
    images = pictures(sizes)
    programs = module._batch_features, module._segment_features
    before = [program._cache_size() for program in programs]
    found = dict(run(segmenter, images, batch=8))
    compiled = [program._cache_size() - then for program, then in zip(programs, before, strict=True)]
    assert sum(compiled) <= 3
    assert sorted(found) == list(range(45))
    for index in (0, 7, 44):
        np.testing.assert_array_equal(found[index].labels, segmenter(images[index], CLASSES).labels)


def test_a_list_of_equal_photos_streams_through_in_batches(segmenter, monkeypatch):
    """One program of all would need the memory of all; what is on the device must not grow with the list."""
    many = segmenter.with_config(replace(CONFIG, tower_batch=16))
    images = pictures([(48, 48)] * 20)  # of four windows, so four go through the towers together
    taken, done = [], []
    start, prediction = loop.start, loop.Started.prediction

    def counted(model, group, *arguments, **options):
        taken.append(len(group))
        assert sum(taken) - len(done) <= 8
        return start(model, group, *arguments, **options)

    monkeypatch.setattr(loop, "start", counted)
    monkeypatch.setattr(loop.Started, "prediction", lambda *given: done.append(0) or prediction(*given))
    before = module._batch_features._cache_size()
    found = many.batch(images, CLASSES)
    assert taken == [4] * 5
    assert module._batch_features._cache_size() == before + 1
    for index in (0, 19):
        assert (found[index].labels == segmenter(images[index], CLASSES).labels).mean() > 0.99


def test_the_device_has_the_next_image_before_the_caller_has_this_one(segmenter, monkeypatch):
    """Else the device waits while results are written and images are read."""
    order, start = [], loop.start

    def counted(*arguments, **options):
        order.append("start")
        return start(*arguments, **options)

    monkeypatch.setattr(loop, "start", counted)
    for index, _ in run(segmenter, pictures([(48, 48), (48, 64), (48, 48)]), batch=1):
        order.append(index)
    assert order == ["start", "start", 0, "start", 1, 2]


def test_an_image_that_goes_in_steps_is_alone(segmenter, monkeypatch):
    """Its progress and cost are shown while nothing else is on the device."""
    monkeypatch.setattr(module, "MAX_PROGRAM_WINDOWS", 5)
    monkeypatch.setattr(loop, "MAX_PROGRAM_WINDOWS", 5)
    order = []

    class Watched:
        def __init__(self, group):
            self.items = [image.item for image in group]

        def __enter__(self):
            order.append(("alone", *self.items))

        def __exit__(self, *error):
            pass

    def around(group):
        large = segmenter.model.steps_through(group[0].prepared.size)
        return Watched(group) if large else None

    images = pictures([(48, 48), (48, 144), (48, 144), (48, 48)])
    for index, _ in run(segmenter, images, batch=2, around=around):
        order.append(index)
    assert order.index(1) > order.index(("alone", 1))
    assert order.index(1) < order.index(("alone", 2))
    assert sorted(item for item in order if not isinstance(item, tuple)) == [0, 1, 2, 3]


def test_sizes_share_the_program_of_their_number_of_windows(segmenter):
    before = module._segment_features._cache_size()
    sizes = [(48, 70), (48, 80), (50, 76), (80, 48), (76, 49)]
    counts = {segmenter.prepare(image).count for image in pictures(sizes)}
    for image in pictures(sizes):
        segmenter(image, CLASSES)
    assert module._segment_features._cache_size() - before <= len(counts) < len(sizes)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_gpu_labels_a_group_in_few_programs(segmenter, monkeypatch, threshold):
    """With two programs an image the host waited for the device before it could hand it the next group."""
    from gla_jax.distributed import labels as together

    model = segmenter.model.with_config(replace(CONFIG, threshold=threshold))
    rng, width = np.random.default_rng(1), model.params.joint_width
    texts = rng.standard_normal((6, width), np.float32)
    question = loop.Question(texts / np.linalg.norm(texts, axis=1, keepdims=True), np.array([0, 1, 1, 2, 3, 3]), 4)
    images = [model.prepare(image) for image in pictures([(400, 600), (700, 1100), (400, 600)])]
    features = rng.standard_normal((3, images[0].count, 16, width), np.float32)  # a random model's are all alike
    monkeypatch.setattr(
        module.Model, "counted", lambda model, group, *_: list(map(Counted, jnp.asarray(features[: len(group)])))
    )
    monkeypatch.setattr(module.Model, "features_together", lambda *given: Counted(jnp.asarray(features)))
    expected = [found.labels for found in loop.predict(model, images, question)]
    calls, label_tiles = [], together.label_tiles
    monkeypatch.setattr(module.Model, "labels_together", True)
    monkeypatch.setattr(together, "array_platform", lambda logits: "gpu")
    monkeypatch.setattr(together, "label_tiles", lambda *given, **own: calls.append(0) or label_tiles(*given, **own))
    for found, labels in zip(loop.predict(model, images, question), expected, strict=True):
        assert len(np.unique(labels)) == 4
        assert (found.labels == labels).mean() > 0.9999
    assert len(calls) == 2  # the largest has 2 x 5 tiles, at most 8 of which go together


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_every_device_labels_its_own_image(segmenter, shape, monkeypatch):
    """On one device eight images' labels took eight times as long, and all logits had to go there."""
    from gla_jax.distributed import labels as split
    from gla_jax.distributed.mesh import read_mesh

    mesh = read_mesh(f"{shape[0]}x{shape[1]}", spanning=False)
    model = Segmenter(segmenter.clip, segmenter.vfm, CONFIG, mesh=mesh)
    seen = []

    def watched(name):
        function = getattr(split, name)

        def call(*arguments, **options):
            seen.append((name, arguments[0], function(*arguments, **options)))
            return seen[-1][2]

        return call

    monkeypatch.setattr(loop, "split_logits", watched("split_logits"))
    monkeypatch.setattr(split, "label_tiles", watched("label_tiles"))
    images = pictures([(48, 64)] * 7 + [(600, 800)])
    found = dict(run(model, images, batch=8))
    towers = seen[0][1]
    holders = {image: set() for image in range(8)}
    for shard in towers.addressable_shards:
        for image in range(8)[shard.index[0]]:
            holders[image].add(shard.device)
    tiles = [out for name, _, out in seen if name == "label_tiles"]
    assert len(tiles) == -(-8 // shape[1])
    for out in tiles:
        assert out.dtype == np.uint8
        for shard in out.addressable_shards:
            for image in range(8)[shard.index[0]]:
                assert shard.device in holders[image]
    for index, image in enumerate(images):
        assert (found[index].labels == segmenter(image, CLASSES).labels).mean() > 0.999
