"""Attention that crosses from window to window, sizes of anchors and, with labels, attention on the token's own class:
stage by stage over whole images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax import pipeline
from gla_jax.analysis.encoded import encode_image
from gla_jax.analysis.explain import attention_stages
from gla_jax.analysis.explain_files import read_mask
from gla_jax.attention.attend import Queries, prepare_queries
from gla_jax.attention.dense import attention_weights, kept_keys
from gla_jax.config import MethodConfig
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.images.reading import as_rgb, find_images, read_image
from gla_jax.images.windows import Windows
from gla_jax.labels.targets import UNLABELLED, token_targets
from gla_jax.predict.one_key import ADVICE, MANY
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Array, Bool, Float, Int, Integer, UInt8
from gla_jax.support.errors import UserError

QUERY_CHUNK = 512
IGNORED = 255
# An image, RGB uint8, and the class of every pixel where there are labels.
Labelled = tuple[UInt8[np.ndarray, "h w 3"], Integer[np.ndarray, "h w"] | None]


class Crossing(NamedTuple):
    """One image under one stage: every token [W S] of its windows.

    outside: the share of a token's attention on other windows, 0 to 1; counts: the tokens of its anchor (m), None
    before there are anchors; own_class: of its attention on labelled tokens the share on those of its own class, NaN
    for a token without a label; one_key: True where attention keeps one single key.
    """

    outside: Float[np.ndarray, "W S"]
    counts: Float[np.ndarray, "W S"] | None
    own_class: Float[np.ndarray, "W S"]
    one_key: Bool[np.ndarray, "W S"]


class Likeness(NamedTuple):
    """The compared features of every labelled token of an image [t], without attention.

    own_cosine and other_cosine: the mean cosine to tokens of its own class and of the others (NaN where there are
    none); own_tokens: the share of labelled tokens that are of its class, which even attention would reach.
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
    labelled = classes != UNLABELLED
    keys, (_, group) = keys[labelled].astype(np.float64), np.unique(classes[labelled], return_inverse=True)
    members = np.eye(group.max(initial=-1) + 1)[group]  # [t classes]
    cosines, counts = keys @ (members.T @ keys).T, members.sum(0)  # sums over the tokens of every class
    own = cosines[np.arange(len(keys)), group]
    with np.errstate(invalid="ignore", divide="ignore"):
        others = (cosines.sum(1) - own) / (len(keys) - counts[group])
        return Likeness(own / counts[group], others, counts[group] / len(keys))


@jax.jit
def _shares(
    params: pipeline.SegmenterParams,
    tokens: pipeline.WindowTokens,
    windows: Windows,
    classes: Int[Array, "W S"],
    method: MethodConfig,
) -> tuple[Float[Array, "W S"], Float[Array, "W S"], Bool[Array, "W S"], Float[Array, "W S"], Float[Array, "N D"]]:
    """Of every token Crossing's outside, own_class, one_key and counts; the keys of the buffer."""
    ((buffer, first),) = pipeline.buffers(tokens, windows, params, method)
    count = pipeline.window_count(windows, method)
    queries = prepare_queries(first, buffer.keys, buffer, count, method)
    by_token, window = classes.ravel(), jnp.arange(classes.size) // classes.shape[1]

    def shares(token: tuple[Queries, Array, Array]) -> tuple[Array, Array, Array]:
        query, own_class, own_window = token
        query = jax.tree.map(lambda leaf: leaf[None], query)
        (weights,) = attention_weights(query.rows, query.norm, buffer, method)
        labelled = jnp.where(by_token != UNLABELLED, weights, 0.0)
        same = jnp.where(by_token == own_class, labelled, 0.0).sum() / labelled.sum()
        outside = jnp.where(window != own_window, weights, 0.0).sum()
        one_key = kept_keys(query.rows, query.norm, buffer, method).sum() == 1
        return outside, jnp.where(own_class == UNLABELLED, jnp.nan, same), one_key

    of_tokens = jax.lax.map(shares, (queries, by_token, window), batch_size=QUERY_CHUNK)
    return *(x.reshape(classes.shape) for x in (*of_tokens, queries.counts)), buffer.keys


def crossings(
    segmenter: Segmenter, image: "np.ndarray | str | Path", label: Integer[np.ndarray, "h w"] | None = None
) -> Crossings:
    """Every stage of GLA for one image; label: the class of every pixel, IGNORED for none.

    Raises UserError for a method that is not the whole of GLA.
    """
    methods = attention_stages(segmenter.config.method)
    tokens, (windows, grid, _) = encode_image(segmenter.model, as_rgb(image), [segmenter.config])
    shape = tokens.compared(segmenter.config.method)[0].shape[:2]
    classes = np.full(shape, UNLABELLED, np.int32) if label is None else token_targets(label, grid, shape, IGNORED)
    stages = {}
    for name, method in methods.items():
        *shares, keys = _shares(segmenter.params, tokens, windows, classes, method)
        outside, own_class, one_key, counts = (np.asarray(share)[: grid.count] for share in shares)
        stages[name] = Crossing(outside, counts if method.proxy_anchors else None, own_class, one_key)
    return Crossings(stages, likeness(np.asarray(keys), classes.ravel()))


def summary(images: Iterable[Crossings]) -> dict[str, Any]:
    """Figures over the tokens of all images.

    "stages", by name: tokens; mean share of attention outside the own window and, where there are labels, on the own
    class, percent; the percentage of tokens that keep one single key; mean and median tokens of an anchor, and the
    percentage of tokens that are alone in theirs.
    "labels", where there are any: labelled tokens, what even attention would put on the own class, percent, and the
    mean cosine of a token's feature to its own class and to others.
    """
    images = list(images)

    def joined(name: str, field: str) -> np.ndarray:
        return np.concatenate([getattr(image.stages[name], field).ravel() for image in images]).astype(np.float64)

    stages = {}
    for name, stage in images[0].stages.items():
        outside, own_class = joined(name, "outside"), joined(name, "own_class")
        row = stages[name] = {"tokens": len(outside), "outside": 100 * float(outside.mean())}
        row["one_key"] = 100 * float(joined(name, "one_key").mean())
        if not np.isnan(own_class).all():
            row["own_class"] = 100 * float(np.nanmean(own_class))
        if stage.counts is not None:
            counts = joined(name, "counts")
            row["anchor_mean"], row["anchor_median"] = float(counts.mean()), float(np.median(counts))
            row["alone"] = 100 * float((counts == 1).mean())
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
        yield f"{text}; {row['one_key']:.1f}% of the tokens keep one single key"
    if row["one_key"] > MANY:
        yield f"under the whole method more than {MANY:.0f}% of the tokens keep one single key; {ADVICE}"
    if "labels" in figures:
        row = figures["labels"]
        yield f"even attention would put {row['even']:.1f}% on the own class"
        others = "" if row["other_cosine"] is None else f", {row['other_cosine']:z.2f} to others"
        yield f"mean cosine of a feature: {row['own_cosine']:z.2f} to its own class{others}"


def find_samples(
    inputs: Sequence[str], labels: Path | None, limit: int | None
) -> tuple[Sequence[Any], Callable[[Any], Labelled]]:
    """The first `limit` images that are named, and a function that reads one of them with its label.

    inputs: files, folders and patterns, or tiny-world alone; labels: a folder with NAME.png for every image. Raises
    UserError for a label that is missing, before anything is read.
    """
    if list(inputs) == [TINY_WORLD]:
        if labels is not None:
            raise UserError(f"{TINY_WORLD} brings its own labels; leave --labels out.")
        dataset = open_dataset(TINY_WORLD, None)
        return range(len(dataset.ids))[:limit], lambda index: dataset.read(index)[1:3]
    paths = find_images(inputs)[:limit]

    def read(path: Path) -> Labelled:
        image = read_image(path)
        return image, labels and read_mask(labels / f"{path.stem}.png", image.shape[:2])

    for path in paths if labels else ():
        if not (labels / f"{path.stem}.png").is_file():
            raise UserError(f"{path} has no label {labels / path.stem}.png; leave it out or name another --labels.")
    return paths, read
