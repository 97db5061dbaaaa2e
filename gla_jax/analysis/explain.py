"""What one token attends to, stage by stage of GLA, as arrays.

A token's row of attention is the one that the segmentation uses, and takes O(N) memory.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gla_jax.attention.anchors import positives
from gla_jax.attention.attend import clearclip_queries, prepare_queries, proxy_anchors
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.attention.normalize import shift
from gla_jax.config import BASELINES, MethodConfig
from gla_jax.images.reading import as_rgb
from gla_jax.images.windows import WindowGrid, Windows
from gla_jax.labels.stitch import stitch, stitch_plan, token_grid
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    compared_features,
    encode_windows,
    patch_features,
    token_logits,
)
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import join_or
from gla_jax.support.errors import ImageError, UserError
from gla_jax.support.shapes import Array, Bool, Float, Int, Integer, UInt8, typed
from gla_jax.text.prompts import Classes, parse_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# GLA on a host that compares several features gives a token several rows of attention: none of them is the one.
METHODS_WITH_ONE_ROW = tuple(sorted(row.gla for row in BASELINES.values() if len(row.features) == 1))


@dataclass(frozen=True)
class StageAttention:
    """What the query attends to after one stage of GLA.

    weights [W S] float32, sum 1; positives [W S]: the tokens that the last mask of its anchor holds, and their number
    count (m), both None before there are anchors; beta and gamma: shift and scale; outside: the share of attention on
    tokens of other windows, 0 to 1; answer: the best class of what this token alone gathers and its probability, None
    without classes.
    """

    name: str
    weights: Float[np.ndarray, "W S"]
    positives: Bool[np.ndarray, "W S"] | None
    count: int | None
    beta: float
    gamma: float
    outside: float
    answer: tuple[str, float] | None = None


@dataclass(frozen=True)
class Explanation:
    """The attention of one query token over all windows of an image.

    image [h w 3] uint8 RGB; at (x, y): the pixel that was asked for; grid: the windows; window and token: the query's,
    tokens of a window lie row by row; stages: global buffer, with proxy anchors, with dynamic normalisation.
    """

    image: UInt8[np.ndarray, "h w 3"]
    at: tuple[int, int]
    grid: WindowGrid
    window: int
    token: int
    stages: tuple[StageAttention, ...]

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width of the image that was cut into windows."""
        return self.grid.height, self.grid.width

    @property
    def side(self) -> int:
        """Tokens along a side of a window."""
        return round(self.stages[0].weights.shape[1] ** 0.5)

    def on_image(self, per_token: Float[np.ndarray, "W S"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """One number a token as a map of size (h, w), the mean where windows overlap, as the logits are stitched."""
        rows, columns = len(self.grid.row_starts), len(self.grid.column_starts)
        placed = token_grid(jnp.asarray(per_token, jnp.float32)[..., None], rows, columns)
        return np.asarray(stitch(placed, stitch_plan(self.grid, self.side, size)))[..., 0]

    def heat(self, stage: StageAttention, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """A stage's attention as a map of size (h, w) in multiples of an even spread over all tokens."""
        return np.maximum(self.on_image(stage.weights * stage.weights.size, size), 0.0)

    def shares_on(self, mask: Bool[np.ndarray, "h w"]) -> tuple[float, ...]:
        """The share of every stage's attention that falls on a mask of the image, 0 to 1.

        A token counts by the part of its square that the mask covers.
        """
        covered = cover(mask, self.grid, self.side)
        return tuple(float((stage.weights * covered).sum()) for stage in self.stages)

    def figure(self, mask: Bool[np.ndarray, "h w"] | None = None) -> "Figure":
        """The figure as a matplotlib figure, panels side by side (needs the extra `figures`)."""
        from gla_jax.analysis.explain_pictures import matplotlib_figure

        return matplotlib_figure(self, mask)

    def picture(self, mask: Bool[np.ndarray, "h w"] | None = None) -> Image.Image:
        """The figure as a PIL image, which needs no matplotlib."""
        from gla_jax.analysis.explain_pictures import explanation_picture

        return explanation_picture(self, mask)


class Row(NamedTuple):
    """One query's row of attention: weights and positives [W S] of the padded windows, gathered [1 1 C]."""

    weights: Float[Array, "W S"]
    positives: Bool[Array, "W S"] | None
    count: Float[Array, ""]
    beta: Float[Array, ""]
    gamma: Float[Array, ""]
    gathered: Float[Array, "1 1 C"]


def attention_stages(method: MethodConfig) -> dict[str, MethodConfig]:
    """The stages of a whole GLA by name, each on top of the one before; the fixed shift and scale until the last.

    Raises UserError for a method that is not the whole of GLA, or compares several features.
    """
    whole = method.global_buffer and method.proxy_anchors and method.row_mean
    choices = join_or(METHODS_WITH_ONE_ROW)
    if not whole or method.dynamic_shift is None or method.dynamic_scale is None:
        raise UserError(f"a stage of GLA is off in this method on the host {method.baseline}; choose {choices}.")
    if len(BASELINES[method.baseline].features) != 1:
        raise UserError(
            f"the host {method.baseline} compares queries and keys apart, so a token has two rows of attention; "
            f"choose {choices}."
        )
    # All tokens of an image lie on one device here.
    method = replace(method, attention="blockwise")
    buffer = replace(method, proxy_anchors=False, row_mean=False, dynamic_shift=None, dynamic_scale=None)
    return {
        "Global buffer": buffer,
        "+ proxy anchors": replace(buffer, proxy_anchors=True),
        "+ dynamic normalisation": method,
    }


def check_point(at: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise UserError when a pixel (x, y) lies outside an image of size (h, w)."""
    (height, width), (x, y) = size, at
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(
            f"the point {x},{y} lies outside the image of {width} x {height} pixels; "
            f"X is at most {width - 1} and Y at most {height - 1}, both from 0."
        )


def query_token(at: tuple[int, int], size: tuple[int, int], grid: WindowGrid, side: int) -> tuple[int, int]:
    """(window, token) of a pixel (x, y) of an image of size (h, w).

    Of the windows that contain the pixel it is the one whose centre is nearest, the first of equally near ones. Raises
    UserError for a pixel outside the image.
    """
    check_point(at, size)
    point = (np.array(at[::-1]) + 0.5) * (grid.height, grid.width) / size
    inside = point - grid.origins
    holds = ((inside >= 0) & (inside < grid.crop)).all(1)
    distance = np.where(holds, np.square(inside - grid.crop / 2).sum(1), np.inf)
    window = int(distance.argmin())
    row, column = (inside[window] * side / grid.crop).astype(int)
    return window, int(row * side + column)


@typed
def last_positives(
    first: Float[Array, "q D"],
    own_keys: Float[Array, "q D"],
    own_index: Int[Array, " q"],
    buffer: Buffer,
    method: MethodConfig,
) -> Bool[Array, "q N"]:
    """The last mask of some queries' anchors, whose count is m; a query without a positive keeps itself."""
    before = replace(method, anchor_iterations=max(method.anchor_iterations - 1, 0))
    queries = proxy_anchors(first, own_keys, buffer, before).queries
    mask = positives(queries, buffer.keys, buffer.valid, method.anchor_threshold)
    itself = jnp.arange(buffer.keys.shape[0])[None] == own_index[:, None]
    return mask | (itself & ~mask.any(1, keepdims=True))


@jax.jit
def query_row(
    params: SegmenterParams, tokens: WindowTokens, windows: Windows, query: Int[Array, ""], method: MethodConfig
) -> Row:
    """The row of attention of one token of the buffer under one method."""
    (feature,) = BASELINES[method.baseline].features
    features, valid = compared_features(tokens, feature), jnp.asarray(windows.valid)
    buffer = fill_buffer(features, tokens.qkv.values[:, 1:], valid)
    origins = jnp.asarray(windows.origins)
    first = clearclip_queries(features, valid, origins, params.clip_spec.patch_size, method)
    first = buffer.keys if first is None else first
    count = valid.astype(jnp.float32).sum()

    def own(rows: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(rows, query, 1)

    if method.row_mean:
        asked = prepare_queries(own(first), own(buffer.keys), buffer, count, method)
    else:  # one mean for all rows, so all of them are needed
        asked = jax.tree.map(own, prepare_queries(first, buffer.keys, buffer, count, method))
    weights = attention_weights(asked.rows, asked.norm, buffer, method)
    mask = None
    if method.proxy_anchors:
        mask = last_positives(own(first), own(buffer.keys), query[None], buffer, method).reshape(features.shape[:2])
    return Row(
        weights.reshape(features.shape[:2]),
        mask,
        asked.counts[0],
        shift(count, method),
        asked.norm.scale[0],
        jnp.einsum("qk,kc->qc", weights, buffer.values, precision="highest")[None],
    )


_encode = jax.jit(encode_windows)


def explain(
    segmenter: Segmenter,
    image: "Image.Image | UInt8[np.ndarray, 'h w 3'] | str | Path",
    at: tuple[int, int],
    classes: Sequence[str] | Classes | None = None,
) -> Explanation:
    """The attention of the token at a pixel (x, y) of an image, stage by stage.

    The segmenter's method must be the whole of GLA on a host that compares one feature. classes: what the token is
    named after each stage by what it gathers alone. Raises UserError for what cannot be used.
    """
    config = segmenter.config
    methods = attention_stages(config.method)
    pixels = as_rgb(image)
    check_point(at, pixels.shape[:2])
    parsed = parse_classes(classes) if classes is not None and not isinstance(classes, Classes) else classes
    windows, grid = segmenter.prepare(pixels)
    stages = []
    with jax.default_matmul_precision("highest"):
        tokens = _encode(segmenter.params, windows, config)
        (feature,) = BASELINES[config.method.baseline].features
        count = compared_features(tokens, feature).shape[1]
        window, token = query_token(at, pixels.shape[:2], grid, round(count**0.5))
        for name, method in methods.items():
            row = query_row(segmenter.params, tokens, windows, np.int32(window * count + token), method)
            answer = name_of(segmenter, tokens, row.gathered, parsed) if parsed else None
            weights = np.asarray(row.weights)[: grid.count]
            mask = None if row.positives is None else np.asarray(row.positives)[: grid.count]
            stages.append(
                StageAttention(
                    name,
                    weights,
                    mask,
                    None if mask is None else int(row.count),
                    float(row.beta),
                    float(row.gamma),
                    float(np.delete(weights, window, 0).sum()),
                    answer,
                )
            )
    return Explanation(pixels, at, grid, window, token, tuple(stages))


def name_of(
    segmenter: Segmenter, tokens: WindowTokens, gathered: Float[Array, "1 1 C"], classes: Classes
) -> tuple[str, float]:
    """The best class of one token by what it gathered, and its probability."""
    features = patch_features(gathered, tokens, segmenter.params, segmenter.config)
    logits = token_logits(features, segmenter.text_embeddings(classes))[0, 0]
    probabilities = np.asarray(jax.nn.softmax(float(segmenter.config.logit_scale) * logits))
    best = int(probabilities.argmax())
    return classes.names[classes.class_of_prompt[best]], float(probabilities[best])


def cover(mask: Bool[np.ndarray, "h w"], grid: WindowGrid, side: int) -> Float[np.ndarray, "W S"]:
    """The part of every token's square that a mask of the image covers, 0 to 1; outside the image it covers nothing."""
    rows = axis_cover(grid.row_starts, grid.height, grid.crop, side, mask.shape[0])
    columns = axis_cover(grid.column_starts, grid.width, grid.crop, side, mask.shape[1])
    placed = (rows @ mask.astype(np.float64) @ columns.T).reshape(len(grid.row_starts), side, -1, side)
    return placed.transpose(0, 2, 1, 3).reshape(grid.count, side * side).astype(np.float32)


def axis_cover(
    starts: tuple[int, ...], length: int, crop: int, side: int, target: int
) -> Float[np.ndarray, "windows*side target"]:
    """The part of every token's interval that each of `target` pixels of the image takes, along one axis."""
    scale = target / length
    begin = ((np.array(starts)[:, None] + np.arange(side) * crop / side) * scale).reshape(-1, 1)
    width = crop / side * scale
    pixel = np.arange(target)
    return np.clip(np.minimum(begin + width, pixel + 1) - np.maximum(begin, pixel), 0, None) / width


def parse_point(text: str) -> tuple[int, int]:
    """(x, y) of "X,Y". Raises UserError."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not match:
        raise UserError(f"{text!r} is not a pixel of the image; give --at X,Y in whole numbers, as in --at 120,80.")
    return int(match[1]), int(match[2])


def read_mask(path: Path | str, size: tuple[int, int]) -> Integer[np.ndarray, "h w"]:
    """The values of an index or binary mask of an image of size (h, w). Raises ImageError."""
    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"the mask {path} cannot be read ({error}); give a PNG file.") from None
    if values.ndim != 2 or values.dtype.kind not in "bui":
        raise ImageError(f"the mask {path} holds colours; give one channel, an index or a black and white PNG.")
    if values.shape != tuple(size):
        raise ImageError(
            f"the mask {path} has {values.shape[1]} x {values.shape[0]} pixels, but the image has {size[1]} x "
            f"{size[0]}; give a mask of the image's size."
        )
    return values.astype(np.int32)


def object_at(mask: Integer[np.ndarray, "h w"], at: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    """The pixels of a mask with the value that it has at the pixel (x, y)."""
    return mask == mask[at[1], at[0]]
