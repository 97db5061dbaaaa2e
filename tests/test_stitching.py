"""OV-Stitcher's stitching against float64: the last block of the foundation model over all windows of an image."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax import Segmenter, make_mesh
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.images.windows import cut_windows, window_grid
from gla_jax.pipeline import segment_features, segment_images, segment_in_steps
from gla_jax.support.errors import UserError
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.window_tokens import SegmenterParams, encode_alone, encode_windows
from tests import oracle
from tests.small_models import IMAGE, random_pair, random_params, small_clip

SPECS = {
    "dino": DinoSpec(32, 8, width=8, depth=3, num_heads=2, mlp_width=12),
    "dinov2": DinoV2Spec(32, 8, width=8, depth=2, num_heads=2, mlp_width=12, registers=2),
}
SIZES = WindowConfig(None, crop=32, stride=16)
STITCHED = SegmenterConfig(METHODS["ov-stitcher"], SIZES)


def windows_of(height, width, padded=None):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return jax.tree.map(jnp.asarray, cut_windows(image, window_grid(height, width, SIZES), padded))


def params_of(name):
    clip = random_params(small_clip(), 0)["image"]
    return jax.tree.map(jnp.asarray, SegmenterParams(clip, IMAGE, random_params(SPECS[name], 1), SPECS[name]))


def norm(x, leaves):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * leaves["scale"] + leaves["bias"]


def linear(x, leaves):
    return x @ leaves["kernel"] + leaves["bias"]


def expected(tokens, origins, vfm, spec):
    """[W S D]: the last block in float64, queries, keys, values and residual averaged in cells of a patch."""
    vfm = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), vfm)
    block, count = vfm[f"blocks_{spec.depth - 1}"], tokens.shape[1] - spec.prefix_tokens
    side, cells, place = round(count**0.5), {}, []
    for window, (top, left) in enumerate(origins):
        for token in range(count):
            row, column = (
                edge + (index + 0.5) * 8 for edge, index in zip((top, left), divmod(token, side), strict=True)
            )
            cell = (math.floor(row / 8), math.floor(column / 8))
            cells.setdefault(cell, []).append((window, token))
            place.append(cell)
    index = {cell: number for number, cell in enumerate(cells)}

    def onto(each):
        first = each[:, : spec.prefix_tokens].mean(0)
        rest = [np.mean([each[w, spec.prefix_tokens + t] for w, t in own], 0) for own in cells.values()]
        return np.concatenate([first, rest])

    normal = norm(tokens, block["norm_1"])
    query, key, value = (onto(linear(normal, block["attention"][part])) for part in ("query", "key", "value"))
    attended = np.zeros_like(value)
    for head in range(spec.num_heads):
        part = slice(head * 4, head * 4 + 4)
        attended[:, part] = oracle.softmax(query[:, part] @ key[:, part].T / 2) @ value[:, part]
    factors = [block[f"scale_{n}"]["factor"] if "scale_1" in block else 1.0 for n in (1, 2)]
    x = onto(tokens) + factors[0] * linear(attended, block["attention"]["out"])
    hidden = linear(norm(x, block["norm_2"]), block["mlp"]["up"])
    hidden = hidden * (0.5 + 0.5 * np.vectorize(math.erf)(hidden / 2**0.5))
    out = norm(x + factors[1] * linear(hidden, block["mlp"]["down"]), vfm["norm"])[spec.prefix_tokens :]
    return out[[index[cell] for cell in place]].reshape(len(tokens), count, -1)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("size", "padded"), [((48, 64), None), ((45, 53), 6), ((20, 40), None)])
def test_features_are_those_of_a_block_over_the_stitched_windows(name, size, padded):
    """Windows that shift back, padded ones, and images smaller than a window too."""
    params, windows, spec = params_of(name), windows_of(*size, padded), SPECS[name]
    raw = jax.jit(encode_alone)(params, windows, STITCHED)
    count = int(np.asarray(windows.valid).sum())
    tokens = np.concatenate([raw.prefix, raw.features], 1).astype(np.float64)[:count]
    found = jax.jit(encode_windows)(params, windows, STITCHED).features[:count]
    wanted = expected(tokens, np.asarray(windows.origins)[:count], params.vfm, spec)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", SPECS)
def test_one_window_has_the_features_of_its_tower(name):
    params, windows = params_of(name), windows_of(32, 32)
    plain = replace(STITCHED, method=METHODS["proxyclip"])
    found, wanted = (jax.jit(encode_windows)(params, windows, config).features for config in (STITCHED, plain))
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("method", ["ov-stitcher", "gla-ov-stitcher"])
def test_steps_batches_and_stacked_towers_give_the_same(method):
    params, config = params_of("dino"), SegmenterConfig(METHODS[method], SIZES, tower_batch=4)
    windows = windows_of(48, 64, 8)
    expected = np.asarray(jax.jit(segment_features)(params, windows, config))[:6]
    plain = replace(config, method=METHODS["proxyclip" if method == "ov-stitcher" else "gla"])
    assert np.abs(jax.jit(segment_features)(params, windows, plain)[:6] - expected).max() > 0.01
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), windows)
    others = {
        "steps": segment_in_steps(params, windows, config),
        "batch": jax.jit(segment_images)(params, several, config).rows[1],
        "stacked": jax.jit(segment_features)(params.stacked(), windows, config),
    }
    for name, found in others.items():
        errors = np.abs(np.asarray(found)[:6] - expected).max(-1)
        assert (errors > 1e-4 * np.abs(expected).max()).mean() < 0.02, name


def test_what_cannot_be_stitched_is_one_sentence(tmp_path):
    pair = random_pair(tmp_path)
    config = replace(STITCHED, windows=WindowConfig(48, 32, 16))
    split = Segmenter.from_pretrained(pair, config, mesh=make_mesh(8))
    labels = Segmenter.from_pretrained(pair, config)(np.zeros((40, 60, 3), np.uint8), ["sand", "water"]).labels
    np.testing.assert_array_equal(split(np.zeros((40, 60, 3), np.uint8), ["sand", "water"]).labels, labels)
    with pytest.raises(UserError, match=r"stitches all windows of an image on one device; give a mesh of 8 .*8x1"):
        Segmenter.from_pretrained(pair, config, mesh=make_mesh())
    with pytest.raises(UserError, match="opens the last block of DINO or DINOv2 beside a CLIP"):
        Segmenter.from_pretrained(f"{pair}/vfm", config)
