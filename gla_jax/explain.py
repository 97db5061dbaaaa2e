"""What one token attends to, stage by stage of GLA, and where labels flip at window edges: arrays and pictures.

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
from PIL import Image, ImageDraw, ImageFilter

from gla_jax.attention.anchors import positives
from gla_jax.attention.attend import clearclip_queries, prepare_queries, proxy_anchors
from gla_jax.attention.buffer import Buffer, fill_buffer
from gla_jax.attention.dense import attention_weights
from gla_jax.attention.hosts import HOSTS
from gla_jax.attention.normalize import shift
from gla_jax.config import MethodConfig, WindowConfig, without_gla
from gla_jax.errors import ImageError, UserError
from gla_jax.eval.boundary import WIDTHS, boundary_counts, mirrored_pairs
from gla_jax.images import as_rgb, read_image
from gla_jax.logits import (
    SegmenterParams,
    WindowTokens,
    compared_features,
    encode_windows,
    patch_features,
    token_logits,
)
from gla_jax.outputs import write_png
from gla_jax.segmenter import Segmentation, Segmenter, image_grid, image_windows
from gla_jax.settings import either
from gla_jax.shapes import Array, Bool, Float, Int, Integer, UInt8, typed
from gla_jax.stitch import stitch, stitch_plan, token_grid
from gla_jax.text.prompts import Classes, parse_classes
from gla_jax.visualize import (
    FIRST_COLOURS,
    INK,
    PAPER,
    QUIET,
    Entry,
    Panel,
    blend,
    centred,
    font,
    outlines,
    palette,
    panels,
    stack,
    with_window_grid,
)
from gla_jax.windows import WindowGrid, Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# GLA on a host that compares several features gives a token several rows of attention: none of them is the one.
METHODS_WITH_ONE_ROW = tuple(sorted(row.gla for row in HOSTS.values() if len(row.features) == 1))
NO_TRUTH = -1  # no label is negative, so nothing is ignored
PANEL_WIDTH, PANEL_HEIGHT, NARROWEST = 460, 620, 440
DRAWN_LARGER = 3
SMALLEST_OUTLINED = 0.6  # of a token's side: bilinear upsampling leaves so much of a token by itself
BLUE, GREEN, RED = FIRST_COLOURS[1], (0, 135, 90), (235, 0, 30)
# From no attention to the most of a picture: pale yellow, orange, red, dark red, laid over the pale image.
HEAT = np.array([(255, 232, 140), (252, 170, 60), (226, 60, 45), (158, 10, 66)], np.float32)
HEAT_AT = np.array([0.0, 0.33, 0.67, 1.0])


@dataclass(frozen=True)
class Request:
    """What `gla-jax explain` is asked for, read and checked.

    image [h w 3] uint8 RGB; at (x, y): a pixel; mask [h w]: values of a mask file; classes; boundaries: whether the
    labels at window edges are compared.
    """

    image: UInt8[np.ndarray, "h w 3"]
    at: tuple[int, int] | None
    mask: Integer[np.ndarray, "h w"] | None
    classes: Classes | None
    boundaries: bool


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
        return matplotlib_figure(self, mask)

    def picture(self, mask: Bool[np.ndarray, "h w"] | None = None) -> Image.Image:
        """The figure as a PIL image, which needs no matplotlib."""
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
    choices = either(METHODS_WITH_ONE_ROW)
    if not whole or method.dynamic_shift is None or method.dynamic_scale is None:
        raise UserError(f"a stage of GLA is off in this method on the host {method.host}; choose {choices}.")
    if len(HOSTS[method.host].features) != 1:
        raise UserError(
            f"the host {method.host} compares queries and keys apart, so a token has two rows of attention; "
            f"choose {choices}."
        )
    # All tokens of an image lie on one device here.
    method = replace(method, attention="streaming")
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
    (feature,) = HOSTS[method.host].features
    features, valid = compared_features(tokens, feature), jnp.asarray(windows.valid)
    buffer = fill_buffer(features, tokens.heads.values[:, 1:], valid)
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
    windows, grid = image_windows(pixels, config.windows, mean=segmenter.params.clip_spec.pixel_mean)
    stages = []
    with jax.default_matmul_precision("highest"):
        tokens = _encode(segmenter.params, windows, config)
        (feature,) = HOSTS[config.method.host].features
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
    logits = token_logits(features, segmenter.text_bank(classes))[0, 0]
    probabilities = np.asarray(jax.nn.softmax(float(segmenter.config.logit_scale) * logits))
    best = int(probabilities.argmax())
    return classes.names[classes.class_of_query[best]], float(probabilities[best])


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


# Pictures of attention.


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of a panel for an image: as wide as a panel, unless that is too high."""
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    return max(round(height * scale), 1), max(round(width * scale), 1)


def scaled(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """The image brought to a size (height, width) for the eye."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def pale(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image in light greys, so that colours over it carry the message."""
    grey = 95 + image.astype(np.float32).mean(-1, keepdims=True) * (160 / 255)
    return np.repeat(grey.round().astype(np.uint8), 3, axis=-1)


def heat_colours(share: Float[np.ndarray, "*b"]) -> tuple[Float[np.ndarray, "*b 3"], Float[np.ndarray, "*b 1"]]:
    """Colour (0 to 255) and opacity (0 to 1) of shares of the most attention."""
    colour = np.stack([np.interp(share, HEAT_AT, HEAT[:, channel]) for channel in range(3)], -1)
    return colour, 0.8 * np.sqrt(np.clip(share, 0, 1))[..., None]


def under_heat(image: UInt8[np.ndarray, "h w 3"], share: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A pale image under heat colours."""
    colour, opacity = heat_colours(share)
    return (image * (1 - opacity) + colour * opacity).round().astype(np.uint8)


def heat_scale(width: int, most: float | None) -> Image.Image:
    """A strip with the colours from 0 to the most attention of a picture; blank for None."""
    strip = Image.new("RGB", (width, 34), PAPER)
    if most is None:
        return strip
    letters = font(17)
    draw = ImageDraw.Draw(strip)
    text = f"{most:.1f} x even"
    left, right = 16, width - round(letters.getlength(text)) - 10
    share = np.tile(np.linspace(0, 1, right - left), (14, 1))
    paper = np.full((*share.shape, 3), 255, np.uint8)
    strip.paste(Image.fromarray(under_heat(paper, share)), (left, 13))
    draw.rectangle((left - 1, 12, right, 27), outline=(205, 209, 215))
    draw.text((0, 20), "0", QUIET, letters, "lm")
    draw.text((width, 20), text, QUIET, letters, "rm")
    return strip


def marked(
    pixels: UInt8[np.ndarray, "h w 3"], explanation: Explanation, region: Bool[np.ndarray, "h w"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of the whole image with the outline of a region, the query's window and the query's point."""
    size, image = pixels.shape[:2], explanation.image
    picture = Image.fromarray(pixels)
    if region is not None and region.any():
        edge = Image.fromarray(outlines(region).astype(np.uint8) * 255)
        picture.paste(PAPER, mask=edge.filter(ImageFilter.MaxFilter(5)))
        picture.paste(GREEN, mask=edge.filter(ImageFilter.MaxFilter(3)))

    # Pillow draws shapes without antialias: they are drawn larger and reduced.
    layer = Image.new("RGBA", (size[1] * DRAWN_LARGER, size[0] * DRAWN_LARGER), (*PAPER, 0))
    draw = ImageDraw.Draw(layer)
    box = window_box(explanation, size)
    corners = [part * DRAWN_LARGER for part in (box[0], box[1], box[2] - 1, box[3] - 1)]
    draw.rectangle(corners, outline=(*PAPER, 255), width=5 * DRAWN_LARGER)
    draw.rectangle([corners[0] + 3, corners[1] + 3, corners[2] - 3, corners[3] - 3], outline=BLUE, width=9)
    centre = tuple(
        DRAWN_LARGER * (place + 0.5) * shown / own
        for place, shown, own in zip(explanation.at, size[::-1], image.shape[1::-1], strict=True)
    )
    for radius, colour in ((8.5, PAPER), (6.5, INK), (2.5, PAPER)):
        draw.circle(centre, radius * DRAWN_LARGER, fill=colour)
    return np.asarray(Image.alpha_composite(picture.convert("RGBA"), layer.reduce(DRAWN_LARGER)).convert("RGB"))


def window_box(explanation: Explanation, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the query's window in a picture of size (h, w), cut at the image's edges."""
    grid = explanation.grid
    vertical, horizontal = size[0] / grid.height, size[1] / grid.width
    top, left = grid.origins[explanation.window]
    bottom, right = min(top + grid.crop, grid.height), min(left + grid.crop, grid.width)
    return max(left, 0) * horizontal, max(top, 0) * vertical, right * horizontal, bottom * vertical


def stage_note(stage: StageAttention, on_mask: float | None) -> str:
    """The figures of a stage in lines."""
    count = "" if stage.count is None else f"   {stage.count} positives (m)"
    lines = [
        f"{stage.outside:.0%} outside the query's window",
        f"shift {stage.beta:.2f}   scale {stage.gamma:.2f}{count}",
    ]
    if on_mask is not None:
        lines.append(f"{on_mask:.0%} on the object of the mask")
    if stage.answer is not None:
        lines.append(f"names it: {stage.answer[0]} ({stage.answer[1]:.0%})")
    return "\n".join(lines)


def query_note(explanation: Explanation, mask: Bool[np.ndarray, "h w"] | None) -> str:
    """What the query is, in lines."""
    row, column = divmod(explanation.token, explanation.side)
    side = explanation.side
    lines = [
        f"window {explanation.window + 1} of {explanation.grid.count}",
        f"token in row {row + 1}, column {column + 1} of {side} x {side}",
    ]
    if mask is not None:
        lines.append(f"the object takes {cover(mask, explanation.grid, side).mean():.0%} of the tokens")
    return "\n".join(lines)


def positive_region(
    explanation: Explanation, stage: StageAttention, size: tuple[int, int]
) -> Bool[np.ndarray, "h w"] | None:
    """Where most of the tokens of overlapping windows are positives, as a map of size (h, w).

    Where windows overlap by parts of a token their votes leave slivers, which are left out: an outline of nothing.
    """
    if stage.positives is None:
        return None
    votes = explanation.on_image(stage.positives.astype(np.float32), size) > 0.5
    token = explanation.grid.crop / explanation.side * size[0] / explanation.grid.height
    side = max(round(token * SMALLEST_OUTLINED), 1)
    return ~without_slivers(~without_slivers(votes, side), side)


def without_slivers(region: Bool[np.ndarray, "h w"], side: int) -> Bool[np.ndarray, "h w"]:
    """The parts of a region that hold a square of `side` pixels, or touch the picture's edge where they are cut off."""

    def sums(inside: np.ndarray) -> np.ndarray:
        total = np.pad(inside.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        return total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]

    full = sums(np.pad(region, side - 1, mode="edge")) == side**2
    return (sums(np.pad(full, side - 1)) > 0)[
        side - 1 : side - 1 + region.shape[0], side - 1 : side - 1 + region.shape[1]
    ]


def explanation_picture(explanation: Explanation, mask: Bool[np.ndarray, "h w"] | None = None) -> Image.Image:
    """The image and the attention of every stage side by side, with the figures below; mask: the object, if known."""
    size = shown_size(*explanation.image.shape[:2])
    image = scaled(explanation.image, size)
    width = max(size[1], NARROWEST)

    def framed(pixels: UInt8[np.ndarray, "h w 3"], most: float | None) -> UInt8[np.ndarray, "h w 3"]:
        return np.asarray(stack([centred(Image.fromarray(pixels), width), heat_scale(width, most)]))

    x, y = explanation.at
    photo = marked(with_window_grid(image, explanation.grid), explanation, None)
    row = [Panel(framed(photo, None), f"Query at {x}, {y}", query_note(explanation, mask))]
    shares = explanation.shares_on(mask) if mask is not None else (None,) * len(explanation.stages)
    for stage, share in zip(explanation.stages, shares, strict=True):
        heat = explanation.heat(stage, size)
        most = float(heat.max())
        shown = with_window_grid(under_heat(pale(image), heat / most), explanation.grid)
        shown = marked(shown, explanation, positive_region(explanation, stage, size))
        row.append(Panel(framed(shown, most), stage.name, stage_note(stage, share)))
    entries = [
        Entry("query", INK),
        Entry("its window", BLUE),
        Entry("positives of its anchor", GREEN),
        Entry("attention", tuple(HEAT[2].astype(int).tolist()), "even: every token gets the same"),
    ]
    return panels(row, entries)


def matplotlib_figure(explanation: Explanation, mask: Bool[np.ndarray, "h w"] | None = None) -> "Figure":
    """The same figure drawn by matplotlib, for papers and notebooks. Raises UserError where matplotlib is missing."""
    try:
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ModuleNotFoundError:
        raise UserError('figure() needs matplotlib; install it with pip install "gla-jax[figures]".') from None

    height, width = explanation.image.shape[:2]
    colour, opacity = heat_colours(np.linspace(0, 1, 256))
    heat_map = ListedColormap(np.concatenate([colour / 255, opacity], -1))
    blue, green = ([part / 255 for part in tone] for tone in (BLUE, GREEN))
    figure = Figure(figsize=(16, 2.2 + 3.8 * height / width), layout="constrained")
    axes, scales = figure.subplots(2, 1 + len(explanation.stages), height_ratios=(24, 1))
    scales[0].set_axis_off()
    shares = explanation.shares_on(mask) if mask is not None else (None,) * len(explanation.stages)
    notes = [query_note(explanation, mask), *map(stage_note, explanation.stages, shares)]
    titles = [f"Query at {explanation.at[0]}, {explanation.at[1]}", *(stage.name for stage in explanation.stages)]
    pictures = [explanation.image, *[pale(explanation.image)] * len(explanation.stages)]
    for axis, picture, title, note in zip(axes, pictures, titles, notes, strict=True):
        axis.imshow(with_window_grid(picture, explanation.grid))
        axis.set(title=title, xlabel=note, xticks=[], yticks=[])
        left, top, right, bottom = window_box(explanation, (height, width))
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, ec=blue, lw=2))
        axis.plot(*explanation.at, "o", color="black", markeredgecolor="white", markersize=8)
    for axis, scale, stage in zip(axes[1:], scales[1:], explanation.stages, strict=True):
        heat = explanation.heat(stage, (height, width))
        shown = axis.imshow(heat, cmap=heat_map, vmin=0)
        figure.colorbar(shown, cax=scale, orientation="horizontal", label="attention (1: even)")
        region = positive_region(explanation, stage, (height, width))
        if region is not None and region.any() and not region.all():
            axis.contour(region, levels=[0.5], colors=[green], linewidths=1.2)
    return figure


# Labels at window edges.


class Flips(NamedTuple):
    """Labels of one method at window edges.

    at_edges [h w]: pixels on both sides of an edge whose labels differ; share and control: percent of the pairs that
    differ at the edges and half a stride away from them, NaN where there are no edges.
    """

    at_edges: Bool[np.ndarray, "h w"]
    share: float
    control: float


def label_flips(
    labels: Integer[np.ndarray, "h w"],
    resized: tuple[int, int],
    windows: WindowConfig,
    truth: Integer[np.ndarray, "h w"] | None = None,
) -> Flips:
    """Where labels differ across a window edge, as `gla-jax eval` pairs pixels; with a truth only where that does not.

    Without truth every border of an object that crosses an edge is counted as well: compare with the control, and
    between methods.
    """
    truth = np.zeros(labels.shape, np.int32) if truth is None else truth
    rates = boundary_counts(labels, truth, resized, windows, NO_TRUTH).rates()
    marks = np.zeros(labels.shape, bool)
    for flipped, found, known, length in (
        (marks, labels, truth, resized[1]),
        (marks.T, labels.T, truth.T, resized[0]),
    ):
        left, right = mirrored_pairs(labels.shape[1 if flipped is marks else 0], length, windows, WIDTHS[0])
        differ = (found[:, left] != found[:, right]) & (known[:, left] == known[:, right])
        flipped[:, left] |= differ
        flipped[:, right] |= differ
    return Flips(marks, rates[f"ber_{WIDTHS[0]}"], rates[f"control_{WIDTHS[0]}"])


def compare_methods(
    segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], classes: Sequence[str] | Classes
) -> dict[str, Segmentation]:
    """The image segmented by the host as published and by the segmenter's own method, with GLA."""
    config = segmenter.config
    published = replace(config, method=without_gla(config.method.host))
    name = HOSTS[config.method.host].title
    return {name: segmenter.with_config(published)(image, classes), f"{name} + GLA": segmenter(image, classes)}


def boundary_picture(
    results: dict[str, Segmentation],
    grid: WindowGrid,
    windows: WindowConfig,
    truth: Integer[np.ndarray, "h w"] | None = None,
) -> Image.Image:
    """The label maps of some methods side by side, label flips along window edges in red, their shares below."""
    first = next(iter(results.values()))
    size = shown_size(*first.image.shape[:2])
    image, width = scaled(first.image, size), max(size[1], NARROWEST)
    found = sorted(set(np.unique(np.concatenate([result.labels.ravel() for result in results.values()])).tolist()))
    # Colours are given to the classes of this picture alone; the palette's first one is left to the flips.
    place = np.zeros(len(first.classes), np.int32)
    place[found] = np.arange(len(found)) + 1
    row = []
    for name, result in results.items():
        flips = label_flips(result.labels, (grid.height, grid.width), windows, truth)
        small = np.asarray(Image.fromarray(place[result.labels]).resize(size[::-1], Image.Resampling.NEAREST))
        shown = with_window_grid(blend(pale(image), small, len(found) + 1), grid)
        row.append(
            Panel(
                np.asarray(centred(with_flips(shown, flips.at_edges), width)), name, flip_note(flips, truth is not None)
            )
        )
    colours = palette(len(found) + 1)[1:]
    entries = [
        Entry(first.classes[label], tuple(map(int, colour))) for label, colour in zip(found, colours, strict=True)
    ]
    return panels(row, [Entry("labels differ across a window edge", RED), *entries])


def with_flips(pixels: UInt8[np.ndarray, "h w 3"], flips: Bool[np.ndarray, "a b"]) -> Image.Image:
    """A picture with pixels of the image marked in red, large enough to see."""
    marks = np.zeros(pixels.shape[:2], np.uint8)
    places = np.argwhere(flips)
    rows, columns = ((places + 0.5) * np.array(marks.shape) / flips.shape).astype(int).T
    marks[rows, columns] = 255
    mask, picture = Image.fromarray(marks), Image.fromarray(pixels)
    picture.paste(PAPER, mask=mask.filter(ImageFilter.MaxFilter(7)))
    picture.paste(RED, mask=mask.filter(ImageFilter.MaxFilter(5)))
    return picture


def flip_note(flips: Flips, has_truth: bool) -> str:
    """The figures of a method in lines."""
    if np.isnan(flips.share):
        return "one window: there are no edges"
    what = "boundary error" if has_truth else "labels differ"
    return f"{what} at {flips.share:.1f}% of the edges' pixels\n{flips.control:.1f}% half a stride away from them"


# The command.


def read_request(
    image: Path, at: str | None, mask: Path | None, classes: Sequence[str], boundaries: bool, out: Path
) -> Request:
    """What was typed, read and checked before the weights are loaded. Raises UserError."""
    if at is None and not boundaries:
        raise UserError("there is nothing to explain; name a pixel with --at X,Y, or ask for --boundaries.")
    if boundaries and not classes:
        raise UserError('labels at window edges need classes; name some with --classes "cat; tabby".')
    if out.suffix.lower() != ".png":
        raise UserError(f"{out} is not the name of a PNG file; end it with .png.")
    pixels = read_image(image)
    point = None if at is None else parse_point(at)
    if point is not None:
        check_point(point, pixels.shape[:2])
    values = None if mask is None else read_mask(mask, pixels.shape[:2])
    return Request(pixels, point, values, parse_classes(classes) if classes else None, boundaries)


def write_pictures(segmenter: Segmenter, request: Request, out: Path) -> list[str]:
    """Write the pictures of a request and return what they say in lines.

    The attention goes to `out`, the labels at window edges to NAME.boundaries.png beside it.
    """
    lines = []
    if request.at is not None:
        explanation = explain(segmenter, request.image, request.at, request.classes)
        mask = None if request.mask is None else object_at(request.mask, request.at)
        write_png(out, explanation_picture(explanation, mask))
        shares = explanation.shares_on(mask) if mask is not None else (None,) * len(explanation.stages)
        for stage, share in zip(explanation.stages, shares, strict=True):
            lines.append(f"{stage.name}: {stage_note(stage, share)}".replace("\n", "; "))
        lines.append(str(out))
    if request.boundaries:
        path = out.with_suffix(".boundaries.png")
        results = compare_methods(segmenter, request.image, request.classes)
        grid = image_grid(request.image.shape[:2], segmenter.config.windows)
        write_png(path, boundary_picture(results, grid, segmenter.config.windows, request.mask))
        for name, result in results.items():
            flips = label_flips(result.labels, (grid.height, grid.width), segmenter.config.windows, request.mask)
            lines.append(f"{name}: {flip_note(flips, request.mask is not None)}".replace("\n", "; "))
        lines.append(str(path))
    return lines
