"""An explanation as a picture: the attention of every stage laid over the image, and by matplotlib."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gla_jax.analysis.explain import Explanation, StageAttention, cover
from gla_jax.pictures.drawing import (
    FIRST_COLOURS,
    INK,
    PAPER,
    QUIET,
    Entry,
    Panel,
    centred,
    font,
    outlines,
    panels,
    stack,
    with_window_grid,
)
from gla_jax.support.errors import UserError
from gla_jax.support.shapes import Bool, Float, UInt8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANEL_WIDTH, PANEL_HEIGHT, NARROWEST = 460, 620, 440
DRAWN_LARGER = 3
SMALLEST_OUTLINED = 0.6  # of a token's side: bilinear upsampling leaves so much of a token by itself
BLUE, GREEN, RED = FIRST_COLOURS[1], (0, 135, 90), (235, 0, 30)
# From no attention to the most of a picture: pale yellow, orange, red, dark red, laid over the pale image.
HEAT = np.array([(255, 232, 140), (252, 170, 60), (226, 60, 45), (158, 10, 66)], np.float32)
HEAT_AT = np.array([0.0, 0.33, 0.67, 1.0])


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
