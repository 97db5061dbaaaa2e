"""One token's attention, stage by stage of GLA.

A token's row of attention is the one that the segmentation uses, and takes O(N) memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from gla_jax import pipeline
from gla_jax.analysis.encoded import encode_image
from gla_jax.analysis.explain_pictures import explanation_picture, matplotlib_figure
from gla_jax.analysis.token_attention import StageAttention, TokenAttention
from gla_jax.attention.anchors import positives
from gla_jax.attention.attend import prepare_queries, proxy_anchors
from gla_jax.attention.dense import attention_weights
from gla_jax.attention.normalize import shift
from gla_jax.config import BASELINES, MethodConfig
from gla_jax.images.reading import as_rgb
from gla_jax.images.windows import WindowGrid, Windows
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import join_or
from gla_jax.support.arrays import Array, Bool, Float, Int, UInt8
from gla_jax.support.errors import UserError
from gla_jax.text.prompts import Classes, parse_classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Explanation(TokenAttention):
    """The attention of one query token, which can be drawn."""

    def figure(self, mask: Bool[np.ndarray, "h w"] | None = None) -> "Figure":
        """The figure as a matplotlib figure, panels side by side; mask: the object, where it is known."""
        return matplotlib_figure(self, mask)

    def picture(self, mask: Bool[np.ndarray, "h w"] | None = None) -> Image.Image:
        """The figure as a PIL image."""
        return explanation_picture(self, mask)


class Row(NamedTuple):
    """One query's row of attention: weights and positives [W S] of the padded windows, attended [C]."""

    weights: Float[Array, "W S"]
    positives: Bool[Array, "W S"] | None
    count: Float[Array, ""]
    beta: Float[Array, ""]
    gamma: Float[Array, ""]
    attended: Float[Array, " C"]


def methods_with_one_row() -> list[str]:
    """Names of the methods under which a token has one row of attention: GLA compares a single feature."""
    return sorted(row.gla for row in BASELINES.values() if len(row.features) == 1)


def attention_stages(method: MethodConfig) -> dict[str, MethodConfig]:
    """The stages of a whole GLA by name, each on top of the one before; the fixed shift and scale until the last.

    Raises UserError for a method that is not the whole of GLA, or compares several features.
    """
    if method.merge_overlaps:
        raise UserError(
            "merge_overlaps makes one token of several windows' tokens; leave it out to look at one window's."
        )
    whole = method.global_buffer and method.proxy_anchors and method.row_mean
    choices = join_or(methods_with_one_row())
    if not whole or method.dynamic_shift is None or method.dynamic_scale is None:
        raise UserError(f"a stage of GLA is off in this method on the baseline {method.baseline}; choose {choices}.")
    if len(BASELINES[method.baseline].features) != 1:
        raise UserError(
            f"the baseline {method.baseline} compares several features, so a token has several rows of attention; "
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
    """(window, token) of a pixel (x, y) of an image.

    Of the windows that contain the pixel it is the one whose centre is nearest, the first of equally near ones.

    Args:
        at: (x, y), inside the image.
        size: (h, w) of the image in pixels.
        grid: of its windows.
        side: tokens along a side of a window.
    """
    point = (np.array(at[::-1]) + 0.5) * (grid.height, grid.width) / size
    inside = point - grid.origins
    holds = ((inside >= 0) & (inside < grid.crop)).all(1)
    distance = np.where(holds, np.square(inside - grid.crop / 2).sum(1), np.inf)
    window = int(distance.argmin())
    row, column = (inside[window] * side / grid.crop).astype(int)
    return window, int(row * side + column)


@jax.jit
def query_row(
    params: pipeline.SegmenterParams,
    tokens: pipeline.WindowTokens,
    windows: Windows,
    query: Int[Array, ""],
    method: MethodConfig,
) -> Row:
    """The row of attention of one token of the buffer.

    Args:
        params: for the size of CLIP's patches.
        tokens: outputs of the towers.
        windows: the same windows.
        query: index of the token in the buffer.
        method: one of attention_stages.
    """
    count = pipeline.window_count(windows, method)
    ((buffer, first),) = pipeline.buffers(tokens, windows, params, method)

    def of_query(rows: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(rows, query, 1)

    first_one, own_key = of_query(first), of_query(buffer.keys)
    if method.row_mean:
        queries = prepare_queries(first_one, own_key, buffer, count, method)
    else:  # one mean for all rows, so all of them are needed
        queries = jax.tree.map(of_query, prepare_queries(first, buffer.keys, buffer, count, method))
    (weights,) = attention_weights(queries.rows, queries.norm, buffer, method)
    by_window = len(windows.valid), -1
    mask = None
    if method.proxy_anchors:
        # The last mask of the anchor, whose count is m; a query without a positive keeps itself.
        before = replace(method, anchor_iterations=max(method.anchor_iterations - 1, 0))
        (mask,) = positives(proxy_anchors(first_one, own_key, buffer, before).queries, buffer, method)
        mask = (mask | ((jnp.arange(len(mask)) == query) & ~mask.any())).reshape(by_window)
    attended = jnp.einsum("k,kc->c", weights, buffer.values, precision=method.plain_precision)
    beta, gamma = shift(count, method), queries.norm.scale[0]
    return Row(weights.reshape(by_window), mask, queries.counts[0], beta, gamma, attended)


def explain(
    segmenter: Segmenter,
    image: "Image.Image | UInt8[np.ndarray, 'h w 3'] | str | Path",
    at: tuple[int, int],
    classes: Sequence[str] | Classes | None = None,
) -> Explanation:
    """The attention of the token at a pixel of an image, stage by stage.

    Args:
        segmenter: its method is the whole of GLA on a baseline that compares one feature.
        image: as Segmenter takes it.
        at: (x, y) in pixels.
        classes: what the token is named after each stage by its attended value alone; None for no names.

    Raises UserError for what cannot be used.
    """
    methods = attention_stages(segmenter.config.method)
    pixels = as_rgb(image)
    check_point(at, pixels.shape[:2])
    if classes is not None and not isinstance(classes, Classes):
        classes = parse_classes(classes)
    tokens, (windows, grid, size) = encode_image(segmenter.model, pixels, [segmenter.config])
    count = tokens.compared(segmenter.config.method)[0].shape[1]
    window, token = query_token(at, size, grid, round(count**0.5))
    stages = []
    for name, method in methods.items():
        row = query_row(segmenter.params, tokens, windows, np.int32(window * count + token), method)
        weights = np.asarray(row.weights)[: grid.count]
        stage = StageAttention(
            name,
            weights,
            positives=None if row.positives is None else np.asarray(row.positives)[: grid.count],
            count=None if row.positives is None else int(row.count),
            beta=float(row.beta),
            gamma=float(row.gamma),
            outside=float(np.delete(weights, window, 0).sum()),
            answer=_answer(segmenter, row.attended, tokens.residual[window], (count, token), classes)
            if classes
            else None,
        )
        stages.append(stage)
    return Explanation(pixels, at, grid, window, token, tuple(stages))


def _answer(
    segmenter: Segmenter, attended: Array, residual: Array, place: tuple[int, int], classes: Classes
) -> tuple[str, float]:
    """The best class of one token by its attended value [C], and its probability.

    residual [t C]: of its window, for baselines whose whole block runs; place: tokens of a window, and its index there.
    """
    count, token = place
    window = jnp.broadcast_to(attended, (1, count, len(attended)))  # the residual is resampled to a window's tokens
    features = pipeline.patch_features(window, residual[None], segmenter.params, segmenter.config)[:, token : token + 1]
    embeddings, precision = segmenter.text_embeddings(classes), segmenter.config.method.plain_precision
    logits = pipeline.token_logits(features, embeddings, precision)[0, 0]
    probabilities = np.asarray(jax.nn.softmax(float(segmenter.config.logit_scale) * logits))
    best = int(probabilities.argmax())
    return classes.names[classes.class_of_prompt[best]], float(probabilities[best])
