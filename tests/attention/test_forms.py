"""Every form of the attention against the NumPy oracle: a difference here is a wrong segmentation for a user."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, PartitionSpec

from gla_jax.attention.attend import aggregate_values
from gla_jax.attention.blockwise import (
    SoftmaxPartial,
    attend_next_block,
    attend_partial,
    balanced,
    empty_softmax,
    fold_shards,
)
from gla_jax.attention.buffer import Buffer, fill_buffer, l2_normalize, neighbourhood_queries
from gla_jax.attention.normalize import Normalization
from gla_jax.attention.products import for_anchors, for_attention, similarities
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import NUMBER_SETTINGS, MethodConfig, WindowConfig, without_gla
from gla_jax.images.windows import token_overlaps, window_grid
from tests import oracle

FORMS = ("dense", "blockwise", "ring")
DEVICES = 4
GLA = MethodConfig(attention="dense")
METHODS = {
    "gla": GLA,
    "gla T=0": replace(GLA, anchor_iterations=0),
    "gla T=3 rho=0.9": replace(GLA, anchor_iterations=3, anchor_threshold=0.9),
    "no row is similar": replace(GLA, anchor_threshold=1.5),
    "global buffer only": replace(without_gla("proxyclip"), global_buffer=True),
    "anchors only": replace(without_gla("proxyclip"), global_buffer=True, proxy_anchors=True),
    "dynamic scale without anchors": replace(GLA, proxy_anchors=False),
    "dynamic shift only": replace(without_gla("proxyclip"), global_buffer=True, row_mean=True, dynamic_shift=0.3),
    "row mean only": replace(without_gla("proxyclip"), global_buffer=True, row_mean=True),
    # A low rho: the mean of two tokens alone is as near to either, and rounding would choose the one that is kept.
    "everything below the shift": replace(GLA, anchor_threshold=0.1, dynamic_shift=30.0, dynamic_scale=None),
    "temperature 0.5": replace(GLA, temperature=0.5),
    "centred": replace(GLA, **NUMBER_SETTINGS["centred"]),
    "centred, anchors of many": replace(GLA, calibration="centred", anchor_threshold=0.6),
    "centred, one mean of all": replace(without_gla("proxyclip"), global_buffer=True, calibration="centred"),
    "no masking": replace(GLA, masking=False, temperature=0.5),
    "no masking below the shift": replace(GLA, masking=False, dynamic_shift=30.0, dynamic_scale=None),
}


def clustered(seed: int, windows: int, tokens: int = 16, width: int = 8, channels: int = 6):
    """Features around a few directions, so that masks are neither full nor empty."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, width))
    features = centres[rng.integers(0, 4, (windows, tokens))] + 0.4 * rng.normal(size=(windows, tokens, width)) + 0.3
    values = rng.normal(size=(windows, tokens, channels))
    return features.astype(np.float32), values.astype(np.float32)


def gathered(features, values, valid, method, overlaps=None):
    """aggregate_values of the form a method names; ring: on four devices, windows padded so that each has as many."""
    if method.attention != "ring":
        return jax.jit(aggregate_values)(features, values, valid, method, None, overlaps)
    windows = len(valid)
    padding = -windows % DEVICES
    split = [np.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))) for x in (features, values, valid)]
    if overlaps is not None:
        merged = np.pad(overlaps.merged, ((0, padding), (0, 0)), constant_values=-1)
        overlaps = jax.tree.map(jnp.asarray, overlaps._replace(merged=merged))
    by_window = PartitionSpec(WINDOW_AXIS)
    mesh = jax.make_mesh((DEVICES,), (WINDOW_AXIS,), (AxisType.Auto,), devices=jax.devices()[:DEVICES])
    specs = (by_window, by_window, by_window, PartitionSpec(), PartitionSpec(), by_window)
    form = jax.shard_map(aggregate_values, mesh=mesh, in_specs=specs, out_specs=by_window)
    return jax.jit(form)(*map(jnp.asarray, split), method, None, overlaps)[:windows]


def oracle_values(features, values, method):
    windows, tokens, _ = features.shape
    rows = features.astype(np.float64).reshape(windows * tokens, -1)
    keys = oracle.l2(rows)
    if method.calibration:
        parts = [rows] if method.global_buffer else np.split(rows, windows)
        keys = np.concatenate([oracle.centred_keys(part) for part in parts])
    flat = values.reshape(windows * tokens, -1)
    if method.global_buffer:
        return oracle.attend(keys, flat, windows, method).reshape(windows, tokens, -1)
    own = [
        oracle.attend(keys[i : i + tokens], flat[i : i + tokens], windows, method) for i in range(0, len(keys), tokens)
    ]
    return np.stack(own)


def assert_rows_agree(found, expected, limit=1e-5):
    """Nearly all rows to float32 rounding; a similarity within rounding of rho or of the shift may flip a mask bit."""
    error = np.abs(np.asarray(found) - expected).max(-1) / np.abs(expected).max()
    assert (error > limit).mean() <= 0.005, f"{(error > limit).mean():.2%} of rows are off, worst {error.max():.1e}"


# Blocks matter to the blockwise form alone, and the ring is built of it.
CASES = [
    *(("blockwise", *case) for case in ((1, 0, 1024), (5, 3, 7), (6, 0, 96))),
    ("dense", 5, 3, 1024),
    ("ring", 5, 3, 7),
]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("form", "windows", "padding", "block_size"), CASES)
def test_forms_equal_the_oracle(name, form, windows, padding, block_size):
    method = replace(METHODS[name], attention=form, block_size=block_size)
    features, values = clustered(len(name), windows)
    expected = oracle_values(features, values, method)
    # Padding holds large numbers, so that a leak into the mean, the masks or the values cannot hide.
    padded = [np.concatenate([x, np.full((padding, *x.shape[1:]), 50, np.float32)]) for x in (features, values)]
    valid = jnp.arange(windows + padding) < windows
    found = gathered(*map(jnp.asarray, padded), valid, method)
    assert np.isfinite(found).all()
    assert_rows_agree(found[:windows], expected)


@pytest.mark.parametrize("name", ["gla T=3 rho=0.9", "no masking"])
@pytest.mark.parametrize("part_dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_split_products_equal_the_oracle(form, part_dtype, name):
    """What runs on accelerators, with its parts as they are there: the same labels, not nearly the same."""
    method = replace(METHODS[name], attention=form, block_size=7, precision="high", part_dtype=part_dtype)
    features, values = clustered(5, 5, width=48)
    arrays = jnp.asarray(features), jnp.asarray(values), jnp.ones(5, bool)
    found, expected = gathered(*arrays, method), oracle_values(features, values, method)
    assert_rows_agree(found, expected, 3e-5)  # values have 18 bits, and their means are smaller than they are
    one_pass = gathered(*arrays, replace(method, precision="fast"))
    assert not np.allclose(one_pass, found, atol=1e-4)  # on processors too it is one pass
    rounded = jnp.asarray(values, jnp.bfloat16)  # two parts of the weights alone
    expected = oracle_values(features, np.asarray(rounded, np.float32), method)
    assert_rows_agree(gathered(arrays[0], rounded, arrays[2], method), expected, 3e-5)


@pytest.mark.parametrize("part_dtype", ["float16", "bfloat16"])
def test_padding_is_no_positive_of_split_products(part_dtype):
    """Keys of padded windows are rows of 0 there, whose cosine of 0 is above a negative threshold."""
    method = replace(GLA, attention="blockwise", block_size=7, precision="high", part_dtype=part_dtype)
    method = replace(method, anchor_threshold=-0.2)
    features, values = clustered(3, 4, width=48)
    padded = [jnp.asarray(np.concatenate([x, np.full((3, *x.shape[1:]), 50, np.float32)])) for x in (features, values)]
    found, back = jax.vjp(lambda x: gathered(x, padded[1], jnp.arange(7) < 4, method), padded[0])
    assert_rows_agree(found[:4], oracle_values(features, values, method), 3e-5)
    (slopes,) = back(jnp.ones_like(found).at[4:].set(0))
    assert slopes[:4].any()
    assert not slopes[4:].any()


@settings(deadline=None)
@given(st.integers(1, 600_000), st.sampled_from([512, 2050, 4096, 16384]))
def test_blocks_are_equal_and_a_gpu_s_rows_whole(length, largest):
    """Blocks of 15,966 keys, an image of 2160x3840, made rows that a GPU's fast products do not take."""
    size = balanced(length, largest)
    assert size <= largest
    assert -(-length // size) == -(-length // largest)
    assert largest in (512, size) or size % 16 == 0


@pytest.mark.parametrize("prepare", [for_anchors, for_attention])
@pytest.mark.parametrize("part_dtype", ["float16", "bfloat16"])
def test_cosines_of_narrow_rows_are_as_exact_as_those_of_float32(part_dtype, prepare):
    """Entries within a cosine's error of rho or of the shift flip; few numbers a row average little of it out."""
    keys = l2_normalize(jnp.asarray(clustered(6, 20, width=48)[0].reshape(-1, 48)))
    buffer = Buffer(keys, keys[:, :0], jnp.ones(len(keys), bool))
    split = prepare(buffer, MethodConfig(precision="high", part_dtype=part_dtype))
    exact = np.asarray(keys, np.float64) @ np.asarray(keys, np.float64).T
    assert np.abs(similarities(keys, split) - exact).max() < 5e-7


def test_gradients_of_split_products_are_those_of_float32():
    """Parts have no slope of their own: without a rule, the low part would cancel the gradient of its number."""
    features, values = clustered(8, 3)
    weights = np.random.default_rng(2).normal(size=values.shape).astype(np.float32)

    def loss(features, values, method):
        return (aggregate_values(features, values, jnp.ones(3, bool), method) * weights).sum()

    found, expected = (
        jax.jit(jax.grad(loss, (0, 1, 2)))(
            jnp.asarray(features),
            jnp.asarray(values),
            replace(GLA, attention="blockwise", block_size=10, mask_temperature=0.1, precision=precision),
        )
        for precision in ("high", "highest")
    )
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


# Rows of windows fall on each other; the last column is shifted back by half a token and is merged along itself alone.
SHIFTED = window_grid(24, 30, WindowConfig(None, crop=16, stride=8))


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("name", [*list(METHODS)[::3], "no masking", "soft masks"])
@pytest.mark.parametrize(("form", "block_size"), [("dense", 1024), ("blockwise", 7), ("ring", 7)])
def test_merged_tokens_equal_the_oracle(name, form, block_size, precision):
    """A merged token stands for several in every sum: the result is that of as many copies of it."""
    if precision == "high" and name not in ("gla", "no masking", "soft masks"):
        return
    method = replace(METHODS.get(name, GLA), merge_overlaps=True, attention=form, block_size=block_size)
    method = replace(method, precision=precision, mask_temperature=0.1 if name == "soft masks" else None)
    windows, patch, padding = SHIFTED.count, 4, 0 if form == "ring" else 1
    features, values = clustered(len(name), windows, width=48)
    steps = np.arange(4) * patch
    rows, columns = (SHIFTED.origins[:, axis, None] + steps for axis in (0, 1))
    pixels = (rows[:, :, None] * 100 + columns[:, None]).ravel()
    assert len(np.unique(pixels)) < 0.7 * pixels.size
    keys = (oracle.centred_keys if method.calibration else oracle.l2)(features.astype(np.float64).reshape(-1, 48))
    expected = oracle.attend_merged(keys, values.reshape(-1, 6), pixels, windows, method)
    padded = [np.concatenate([x, np.full((padding, *x.shape[1:]), 50, np.float32)]) for x in (features, values)]
    overlaps = token_overlaps(SHIFTED, windows + padding, patch, DEVICES if form == "ring" else 1)
    found = gathered(*map(jnp.asarray, padded), jnp.arange(windows + padding) < windows, method, overlaps)
    assert np.isfinite(found).all()
    assert_rows_agree(found[:windows].reshape(-1, 6), expected, 1e-5 if precision == "highest" else 3e-5)


def test_merging_without_overlaps_is_refused():
    features, values = clustered(0, 2)
    with pytest.raises(ValueError, match="needs windows with overlaps"):
        gathered(jnp.asarray(features), jnp.asarray(values), jnp.ones(2, bool), replace(GLA, merge_overlaps=True))


@pytest.mark.parametrize("block_size", [5, 32])  # 32: two windows of four at once
@pytest.mark.parametrize("form", FORMS)
def test_windows_alone_equal_the_oracle(form, block_size):
    method = replace(without_gla("proxyclip"), attention=form, block_size=block_size)
    features, values = clustered(3, 4)
    found = gathered(jnp.asarray(features), jnp.asarray(values), jnp.ones(4, bool), method)
    assert_rows_agree(found, oracle_values(features, values, method))


def test_values_are_resampled_to_the_feature_grid():
    features, _ = clustered(0, 3, tokens=64)
    values = np.random.default_rng(1).normal(size=(3, 16, 6)).astype(np.float32)
    found = jax.jit(aggregate_values)(jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool), GLA)
    assert_rows_agree(found, oracle_values(features, oracle.resample_tokens(values.astype(np.float64), 8), GLA))


def test_softmax_partials_merge_in_any_order():
    """Key blocks arrive in ring order on a mesh: the order must not change what a user sees."""
    features, values = clustered(5, 3)
    buffer = fill_buffer(jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool), GLA)
    queries = buffer.keys[:10]
    for offset in (0.4, 5.0):  # 5.0: every logit is negative, only the best key of all blocks may survive
        norm = Normalization(jnp.full(10, 2.0), jnp.full(10, offset))
        parts = [jax.tree.map(lambda leaf, i=i: leaf[16 * i : 16 * i + 16], buffer) for i in range(3)]
        partials = [attend_partial(queries, norm, part, GLA) for part in parts]
        results = []
        for order in itertools.permutations(partials):
            total = empty_softmax(queries, 6)
            for partial in order:
                total = SoftmaxPartial.merge(total, partial, GLA)
            results.append(total.average())
        for result in results[1:]:
            np.testing.assert_allclose(result, results[0], atol=1e-6)


def test_neighbourhood_queries_by_hand():
    """Two windows of 2 x 2 tokens that overlap by one column: token (0, 1) of the first is (0, 0) of the second."""
    features = np.arange(16, dtype=np.float32).reshape(2, 4, 2) + 1
    origins = np.array([[0, 0], [0, 8]], np.int32)
    found = neighbourhood_queries(jnp.asarray(features), jnp.ones(2, bool), jnp.asarray(origins), 8, fold_shards)
    in_window = features.sum(1)
    expected = np.stack(
        [
            in_window[0] / 4,
            (in_window[0] + features[1, 0]) / 5,
            in_window[0] / 4,
            (in_window[0] + features[1, 2]) / 5,
            (in_window[1] + features[0, 1]) / 5,
            in_window[1] / 4,
            (in_window[1] + features[0, 3]) / 5,
            in_window[1] / 4,
        ]
    )
    np.testing.assert_allclose(found, oracle.l2(expected), rtol=1e-6)


def test_unit_rows_of_zero_has_a_finite_gradient():
    gradient = jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_gradients_equal_finite_differences_of_the_oracle():
    """Tuning follows these gradients: shift, scale and values against float64 central differences."""
    features, values = clustered(8, 3)
    weights = np.random.default_rng(2).normal(size=values.shape)

    def loss(method):
        out = aggregate_values(jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool), method)
        return (out * weights.astype(np.float32)).sum()

    method = replace(GLA, attention="blockwise", block_size=10)
    gradient = jax.jit(jax.grad(loss))(method)
    for name, step in (("dynamic_scale", 1e-3), ("temperature", 1e-5)):
        ends = [
            (oracle_values(features, values, replace(GLA, **{name: getattr(GLA, name) + sign * step})) * weights).sum()
            for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float(getattr(gradient, name)) == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_settings_vmap(precision):
    """A sweep over rho in one program equals the runs one by one."""
    gla = replace(GLA, precision=precision)
    features, values = clustered(9, 2)
    arrays = jnp.asarray(features), jnp.asarray(values), jnp.ones(2, bool)
    thresholds = jnp.array([0.3, 0.55, 0.9])
    axes = replace(jax.tree.map(lambda _: None, gla), anchor_threshold=0)
    swept = jax.vmap(aggregate_values, in_axes=(None, None, None, axes))(
        *arrays, replace(gla, anchor_threshold=thresholds)
    )
    for index, threshold in enumerate(thresholds):
        alone = jax.jit(aggregate_values)(*arrays, replace(gla, anchor_threshold=float(threshold)))
        np.testing.assert_allclose(swept[index], alone, atol=1e-6 if precision == "highest" else 1e-5)


def test_gla_on_a_host_without_features_is_refused():
    with pytest.raises(ValueError, match="maskclip"):
        MethodConfig(baseline="maskclip")


@pytest.mark.parametrize("form", FORMS)
def test_soft_masks_become_the_masks(form):
    """Tuning follows gradients of the soft form: its limit must be the method, and all forms must agree on the way."""
    features, values = clustered(4, 5)
    arrays = jnp.asarray(features), jnp.asarray(values), jnp.ones(5, bool)
    hard = replace(GLA, attention=form, block_size=7, anchor_threshold=0.8)
    expected = oracle_values(features, values, hard)
    errors = []
    for temperature in (0.1, 1e-2, 1e-6):
        found = gathered(*arrays, replace(hard, mask_temperature=temperature))
        errors.append(np.median(np.abs(found - expected).max(-1)))
        dense = gathered(*arrays, replace(hard, mask_temperature=temperature, attention="dense"))
        np.testing.assert_allclose(found, dense, atol=2e-5 * np.abs(dense).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5 * np.abs(expected).max()


def test_soft_masks_let_one_token_of_a_negative_row_through():
    """Where every logit is negative the method keeps the largest alone; the soft form must not divide 0 by 0."""
    features, values = clustered(6, 3)
    hard = replace(GLA, dynamic_shift=30.0, dynamic_scale=None, attention="blockwise", block_size=10)
    arrays = jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool)
    found = gathered(*arrays, replace(hard, mask_temperature=1e-5))
    assert np.isfinite(found).all()
    expected = oracle_values(features, values, hard)
    assert np.median(np.abs(found - expected).max(-1)) < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["anchor_threshold", "dynamic_shift", "dynamic_scale"])
def test_soft_gradients_equal_finite_differences(name):
    """Every setting that is tuned must have a right gradient, rho and the shift too, which hard masks cut off."""
    features, values = clustered(8, 3)
    weights = np.random.default_rng(2).normal(size=values.shape).astype(np.float32)
    method = replace(GLA, attention="blockwise", block_size=10, anchor_threshold=0.8, mask_temperature=0.1)

    def loss(value):
        changed = replace(method, **{name: value})
        found = aggregate_values(jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool), changed)
        return (found * weights).sum()

    at = jnp.float32(getattr(method, name))
    step = 0.01 * float(at)
    run = jax.jit(loss)
    expected = (float(run(at + step)) - float(run(at - step))) / (2 * step)
    assert float(jax.jit(jax.grad(loss))(at)) == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_a_block_in_which_no_entry_survives_is_left_alone():
    """Skipping is for speed: values of such a block must not be read, and the result is that of reading them."""
    features, values = clustered(5, 3)
    buffer = fill_buffer(jnp.asarray(features), jnp.asarray(values), jnp.ones(3, bool), GLA)
    queries, norm = buffer.keys[:16], Normalization(jnp.full(16, 2.0), jnp.full(16, 1.97))  # only itself is near enough
    parts = [jax.tree.map(lambda leaf, i=i: leaf[16 * i : 16 * i + 16], buffer) for i in range(3)]
    state = attend_partial(queries, norm, parts[0], GLA)
    unread = parts[1]._replace(values=jnp.full_like(parts[1].values, jnp.nan))
    skipping = replace(GLA, skip_blocks=True)
    skipped = attend_next_block(state, queries, norm, unread, skipping)
    np.testing.assert_array_equal(skipped.average(), state.average())
    read = state.merge(attend_partial(queries, norm, parts[1], GLA), GLA)
    np.testing.assert_array_equal(skipped.average(), read.average())
    assert np.isnan(attend_next_block(state, queries, norm, unread, GLA).average()).all()
    everything = replace(skipping, masking=False)
    assert np.isnan(attend_next_block(state, queries, norm, unread, everything).average()).all()
