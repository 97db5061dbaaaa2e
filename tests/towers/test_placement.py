"""The tower batch fits every chip and model, and a model that is placed on an accelerator computes the same."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gla_jax import config as settings
from gla_jax.bench.parts import CLIP_BASE, DINO_BASE
from gla_jax.segmenter import Segmenter
from gla_jax.towers.dino import DinoV2Spec
from gla_jax.towers.placement import (
    device_memory,
    even_batch,
    padded_to_steps,
    platform_of,
    step_batch,
    tower_batch,
    window_bytes,
)
from tests.small_models import random_pair

GIANT = DinoV2Spec(518, 14, width=1536, depth=40, num_heads=24, mlp_width=4096, activation="swiglu")
V5E, H100 = 16 * 2**30, 80 * 10**9


@pytest.mark.parametrize(
    ("specs", "crop", "dtype", "memory", "batch"),
    [
        ((CLIP_BASE, DINO_BASE), 224, "bfloat16", H100, 32),
        ((CLIP_BASE, DINO_BASE), 224, "float32", V5E, 32),
        ((CLIP_BASE, DINO_BASE), 448, "bfloat16", V5E, 24),
        ((CLIP_BASE, DINO_BASE), 448, "float32", V5E, 12),
        ((CLIP_BASE,), 448, "float32", V5E, 32),  # patches of 16: a method without features takes more windows
        ((CLIP_BASE, GIANT), 448, "float32", V5E, 14),
        ((CLIP_BASE, DINO_BASE), 896, "float32", 2**30, 1),
    ],
)
def test_tower_batch(specs, crop, dtype, memory, batch):
    assert tower_batch(specs, crop, dtype, memory) == batch
    held = batch * max(window_bytes(spec, crop, dtype) for spec in specs)
    assert held <= memory / 16 or batch == 1


def test_a_batch_divides_the_windows_where_it_can():
    # (windows, limit) -> batch: one program, not one for a rest.
    expected = {(8, 32): 8, (36, 32): 18, (44, 16): 11, (64, 32): 32, (162, 32): 27, (9, 2): 2, (7, 10): 7, (5, 1): 1}
    assert {case: even_batch(*case) for case in expected} == expected


@pytest.mark.parametrize("limit", [1, 2, 3, 16, 21, 32])
def test_steps_of_a_large_image_are_equal_and_hold_little_padding(limit):
    for count in range(65, 400):
        size, padded = step_batch(count, limit), padded_to_steps(count, limit)
        assert size <= limit
        assert padded // size == -(-count // limit)  # no step more than the limit needs
        assert count <= padded <= 1.16 * count  # whole batches of 32 would add up to half
        assert step_batch(padded, limit) == size  # the padded image goes in the same steps
    # 162 windows (1024x2048) were padded to 192.
    assert (step_batch(162, 32), padded_to_steps(162, 32)) == (28, 168)
    assert len({step_batch(count, 32) for count in range(65, 400)}) <= 3  # programs


def device(platform, kind="", stats=None, **more):
    return SimpleNamespace(platform=platform, device_kind=kind, memory_stats=lambda: stats, **more)


def test_fused_attention_is_for_gpus_that_have_it():
    found = [platform_of(device("gpu", compute_capability=each)) for each in ("9.0", "12.0", "7.5", "gfx942")]
    assert found == ["cuda", "cuda", "gpu", "gpu"]
    assert [platform_of(device("tpu")), platform_of(jax.devices()[0])] == ["tpu", "cpu"]


def test_memory_is_the_device_s_own_word_before_its_name():
    assert device_memory(device("tpu", "TPU v5 lite", {"bytes_limit": 5})) == 5
    assert device_memory(device("tpu", "TPU v5 lite")) == V5E
    assert device_memory(device("tpu", "TPU v5p")) == 95 * 2**30
    assert device_memory(device("gpu", "NVIDIA H100 80GB HBM3")) == H100
    assert device_memory(device("tpu", "TPU of tomorrow")) == V5E


def test_a_model_on_an_accelerator_computes_the_same(tmp_path, monkeypatch):
    folder, image = random_pair(tmp_path), np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    plain = Segmenter.from_pretrained(folder, crop=32, stride=16, short_side=None)
    monkeypatch.setitem(settings.PLATFORMS, "cpu", settings.ACCELERATOR._replace(block_size=512))
    placed = Segmenter.from_pretrained(folder, crop=32, stride=16, short_side=None)
    assert (placed.config.tower_attention, placed.config.tower_batch) == ("chunked", 32)
    assert placed.with_settings(crop=448, dtype="bfloat16", short_side=448).model.settings.tower_batch is None
    assert "blocks" in placed.model.params.vfm
    jax.tree.map(np.testing.assert_array_equal, dict(placed.params.vfm), dict(plain.params.vfm))
    ours, expected = (each.window_features(image)[0] for each in (placed, plain))
    np.testing.assert_allclose(ours, expected, atol=2e-5)
