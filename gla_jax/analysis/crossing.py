"""How much attention crosses from window to window, how large anchors are and, where the truth is known, how much of
the attention stays on the token's own class: stage by stage over whole images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.analysis.explain import attention_stages, read_mask
from gla_jax.analysis.token_labels import UNLABELLED, token_targets
from gla_jax.attention.attend import Queries, clearclip_queries, prepare_queries
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.config import BASELINES, MethodConfig
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.images.reading import as_rgb, find_images, read_image
from gla_jax.images.windows import Windows
from gla_jax.pipeline import SegmenterParams, WindowTokens, compared_features, encode_windows
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.support.shapes import Array, Float, Int, Integer, UInt8

QUERY_CHUNK = 512
IGNORED = 255


class Sample(NamedTuple):
    """An image, RGB uint8, and the class of every pixel where it is known."""

    image: UInt8[np.ndarray, "h w 3"]
    label: Integer[np.ndarray, "h w"] | None


@dataclass(frozen=True)
class Crossing:
    """One image under one stage: every token [W S] of its windows.

    outside: the share of a token's attention on other windows, 0 to 1; counts: the tokens of its anchor (m), None
    before there are anchors; own_class: of its attention on labelled tokens the share on those of its own class, NaN
    for a token without a label.
    """

    outside: Float[np.ndarray, "W S"]
    counts: Float[np.ndarray, "W S"] | None
    own_class: Float[np.ndarray, "W S"]


class Likeness(NamedTuple):
    """Of every labelled token of an image [t]: what is compared, beside the attention.

    own_cosine and other_cosine: the mean cosine of its feature to tokens of its own class and of the others (NaN where
    there are none); own_tokens: the share of labelled tokens that are of its class, which even attention would reach.
    """

    own_cosine: Float[np.ndarray, " t"]
    other_cosine: Float[np.ndarray, " t"]
    own_tokens: Float[np.ndarray, " t"]


class Crossings(NamedTuple):
    """One image: every stage of GLA by name, and how alike its features are."""

    stages: Mapping[str, Crossing]
    likeness: Likeness


def likeness(keys: Float[np.ndarray, "N D"], classes: Int[np.ndarray, " N"]) -> Likeness:
    """The figures of unit features by their classes, those that are UNLABELLED left out."""
    keys, (_, group) = keys[classes != UNLABELLED].astype(np.float64), _groups(classes)
    members = np.eye(group.max(initial=-1) + 1)[group]  # [t classes]
    cosines, counts = keys @ (members.T @ keys).T, members.sum(0)  # sums over the tokens of every class
    own = cosines[np.arange(len(keys)), group]
    others = len(keys) - counts[group]
    with np.errstate(invalid="ignore", divide="ignore"):
        return Likeness(own / counts[group], (cosines.sum(1) - own) / others, counts[group] / len(keys))


def _groups(classes: Int[np.ndarray, " N"]) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(classes[classes != UNLABELLED], return_inverse=True)


_encode = jax.jit(encode_windows)


@jax.jit
def _prepare(
    params: SegmenterParams, tokens: WindowTokens, windows: Windows, method: MethodConfig
) -> tuple[Queries, Buffer]:
    (feature,) = BASELINES[method.baseline].features
    features, valid = compared_features(tokens, feature), jnp.asarray(windows.valid)
    buffer = fill_buffer(features, tokens.qkv.values[:, 1:], valid)
    origins = jnp.asarray(windows.origins)
    first = clearclip_queries(features, valid, origins, params.clip_spec.patch_size, method)
    count = valid.astype(jnp.float32).sum()
    return prepare_queries(buffer.keys if first is None else first, buffer.keys, buffer, count, method), buffer


@partial(jax.jit, static_argnames=("size", "tokens"))
def _shares(
    queries: Queries, start: Array, buffer: Buffer, classes: Array, method: MethodConfig, size: int, tokens: int
) -> tuple[Array, Array]:
    """Of `size` queries: the share of attention on other windows, and of that on labelled tokens on the own class."""
    part, own = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), (queries, classes))
    weights = attention_weights(part.rows, part.norm, buffer, method)
    window = (start + jnp.arange(size)) // tokens
    other = window[:, None] != (jnp.arange(buffer.keys.shape[0]) // tokens)[None]
    labelled = jnp.where(classes[None] != UNLABELLED, weights, 0.0)
    same = jnp.where(own[:, None] == classes[None], labelled, 0.0).sum(1) / labelled.sum(1)
    return jnp.where(other, weights, 0.0).sum(1), jnp.where(own == UNLABELLED, jnp.nan, same)


def crossings(
    segmenter: Segmenter, image: "np.ndarray | str | Path", label: Integer[np.ndarray, "h w"] | None = None
) -> Crossings:
    """Every stage of GLA for one image; label: the class of every pixel, IGNORED for none.

    Raises UserError for a method that is not the whole of GLA.
    """
    methods = attention_stages(segmenter.config.method)
    windows, grid = segmenter.prepare(as_rgb(image))
    found = {}
    with jax.default_matmul_precision("highest"):
        tokens = _encode(segmenter.params, windows, segmenter.config)
        (feature,) = BASELINES[segmenter.config.method.baseline].features
        count = compared_features(tokens, feature).shape[1]
        classes = np.full((len(windows.valid), count), UNLABELLED, np.int32)
        if label is not None:
            classes = token_targets(label, grid, *classes.shape, IGNORED)
        total = classes.size
        for name, method in methods.items():
            queries, buffer = _prepare(segmenter.params, tokens, windows, method)
            shares = np.zeros((2, total), np.float32)
            size = min(QUERY_CHUNK, total)
            for start in range(0, total, size):
                start = min(start, total - size)  # the last part overlaps the one before
                about = queries, np.int32(start), buffer, classes.reshape(-1), method
                shares[:, start : start + size] = _shares(*about, size, count)
            outside, own_class = shares.reshape(2, -1, count)[:, : grid.count]
            counts = np.asarray(queries.counts).reshape(-1, count)[: grid.count] if method.proxy_anchors else None
            found[name] = Crossing(outside, counts, own_class)
    return Crossings(found, likeness(np.asarray(buffer.keys), classes.reshape(-1)))


def summary(images: Iterable[Crossings]) -> dict[str, Any]:
    """Over the tokens of all images.

    "stages", by name: tokens; mean share of attention outside the own window and, where there are labels, on the own
    class, percent; mean and median tokens of an anchor, and the percentage of tokens that are alone in theirs.
    "labels", where there are any: labelled tokens, what even attention would put on the own class, percent, and the
    mean cosine of a token's feature to its own class and to others.
    """
    images = list(images)
    stages = {}
    for name in images[0].stages:
        outside, own_class = (
            np.concatenate([getattr(image.stages[name], field).ravel() for image in images]).astype(np.float64)
            for field in ("outside", "own_class")
        )
        row = stages[name] = {"tokens": len(outside), "outside": 100 * float(outside.mean())}
        if not np.isnan(own_class).all():
            row["own_class"] = 100 * float(np.nanmean(own_class))
        if images[0].stages[name].counts is not None:
            counts = np.concatenate([image.stages[name].counts.ravel() for image in images])
            row |= {
                "anchor_mean": float(counts.mean(dtype=np.float64)),
                "anchor_median": float(np.median(counts)),
                "alone": 100 * float((counts == 1).mean()),
            }
    alike = Likeness(*(np.concatenate(parts) for parts in zip(*(image.likeness for image in images), strict=True)))
    if not len(alike.own_tokens):
        return {"stages": stages}
    labels = {
        "tokens": len(alike.own_tokens),
        "even": 100 * float(alike.own_tokens.mean()),
        "own_cosine": float(alike.own_cosine.mean()),
        # Where every image is of one class there are no others.
        "other_cosine": None if np.isnan(alike.other_cosine).all() else float(np.nanmean(alike.other_cosine)),
    }
    return {"stages": stages, "labels": labels}


def lines(figures: Mapping[str, Any]) -> Iterable[str]:
    """A summary for a terminal."""
    for name, row in figures["stages"].items():
        text = f"{name:24s} {row['outside']:5.1f}% of the attention outside the own window"
        if "own_class" in row:
            text += f", {row['own_class']:5.1f}% on the own class"
        if "anchor_mean" in row:
            text += f"; tokens of an anchor: mean {row['anchor_mean']:.0f}, median {row['anchor_median']:.0f}"
            text += f", {row['alone']:.1f}% alone"
        yield text
    if "labels" in figures:
        row = figures["labels"]
        yield f"even attention would put {row['even']:.1f}% on the own class"
        others = "" if row["other_cosine"] is None else f", {row['other_cosine']:.2f} to others"
        yield f"mean cosine of a feature: {row['own_cosine']:.2f} to its own class{others}"


# The command.


def find_samples(
    given: Sequence[str], labels: Path | None, limit: int | None
) -> tuple[Sequence[Any], Callable[[Any], Sample]]:
    """The first `limit` of the images that are named and how to read one, with its label where there is one.

    given: files, folders and patterns, or tiny-world alone; labels: a folder with NAME.png for every image. Raises
    UserError for a label that is missing, before anything is read.
    """
    if list(given) == [TINY_WORLD]:
        if labels is not None:
            raise UserError(f"{TINY_WORLD} brings its own labels; leave --labels out.")
        dataset = open_dataset(TINY_WORLD, None)
        return range(len(dataset.ids))[:limit], lambda index: Sample(*dataset.read(index)[1:])
    paths = find_images(given)[:limit]
    if labels is None:
        return paths, lambda path: Sample(read_image(path), None)
    for path in paths:
        if not (labels / f"{path.stem}.png").is_file():
            raise UserError(f"{path} has no label {labels / path.stem}.png; leave it out or name another --labels.")

    def read(path: Path) -> Sample:
        image = read_image(path)
        return Sample(image, read_mask(labels / f"{path.stem}.png", image.shape[:2]))

    return paths, read
