"""An explanation as a picture: the photo beside the attention of every stage, by matplotlib."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gla_jax.analysis.token_attention import StageAttention, TokenAttention, cover
from gla_jax.pictures.charts import as_image, rgb, shorten, styled
from gla_jax.pictures.drawing import BLUE, INK, NARROWEST, QUIET, pale, scaled, shown_size, window_edges
from gla_jax.support.arrays import Bool

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREEN = (0, 135, 90)
SMALLEST_OUTLINED = 0.6  # of a token's side: bilinear upsampling leaves so much of a token by itself
# From no attention to the most of a picture: pale yellow, orange, red, dark red, laid over the pale image.
HEAT = np.array([(255, 232, 140), (252, 170, 60), (226, 60, 45), (158, 10, 66)], np.float32)
HEAT_AT = np.array([0.0, 0.33, 0.67, 1.0])
# Lengths in pixels of the finished picture, of which an inch has 100.
DPI, GAP, TITLES, LINE, SCALE = 100, 14, 46, 27, 68
LONGEST_NAME = 28  # characters of a class


def stage_note(stage: StageAttention, on_mask: float | None) -> str:
    """The figures of a stage in lines."""
    count = "" if stage.count is None else f"   {stage.count} positives (m)"
    lines = [
        f"{stage.outside:.0%} outside the query's window",
        f"shift {stage.beta:.2f}   scale {stage.gamma:.2f}{count}",
    ]
    if np.count_nonzero(stage.weights) == 1:
        lines.append("one single key is kept: try another rho")
    if on_mask is not None:
        lines.append(f"{on_mask:.0%} on the object of the mask")
    if stage.answer is not None:
        lines.append(f"names it: {shorten(stage.answer[0], LONGEST_NAME)} ({stage.answer[1]:.0%})")
    return "\n".join(lines)


def query_note(explanation: TokenAttention, mask: Bool[np.ndarray, "h w"] | None) -> str:
    """A description of the query, in lines."""
    side = explanation.side
    row, column = divmod(explanation.token, side)
    lines = [
        f"window {explanation.window + 1} of {explanation.grid.count}",
        f"token in row {row + 1}, column {column + 1} of {side} x {side}",
    ]
    if mask is not None:
        lines.append(f"the object takes {cover(mask, explanation.grid, side).mean():.0%} of the tokens")
    return "\n".join(lines)


def positive_region(
    explanation: TokenAttention, stage: StageAttention, size: tuple[int, int]
) -> Bool[np.ndarray, "h w"] | None:
    """The region in which most tokens of overlapping windows are positives, as a map of size (h, w).

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

    def each(inside: np.ndarray, over: Callable) -> np.ndarray:
        for axis in (0, 1):
            inside = over(np.lib.stride_tricks.sliding_window_view(inside, side, axis), -1)
        return inside

    return each(each(np.pad(region, side - 1, mode="edge"), np.all), np.any)


@styled(**{"font.size": 14, "axes.titlesize": 18, "axes.labelsize": 14, "legend.fontsize": 15, "figure.dpi": DPI})
def matplotlib_figure(explanation: TokenAttention, mask: Bool[np.ndarray, "h w"] | None = None) -> "Figure":
    """The photo with the query, and the attention of every stage over the pale photo, with the figures below.

    mask: the object, where it is known. Raises UserError where matplotlib is missing.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    stages, grid = explanation.stages, explanation.grid
    size = shown_size(*explanation.image.shape[:2])
    panel = max(size[1], NARROWEST)
    # Photo and heat have twice the pixels of the picture, for files that are enlarged.
    image = scaled(explanation.image, (2 * size[0], 2 * size[1]))
    shares = explanation.shares_on(mask) if mask is not None else (None,) * len(stages)
    notes = [query_note(explanation, mask), *map(stage_note, stages, shares)]
    titles = [f"Query at {explanation.at[0]}, {explanation.at[1]}", *(stage.name for stage in stages)]
    foot = SCALE + LINE * (1 + max(note.count("\n") for note in notes)) + 60
    width, height = GAP + (panel + GAP) * len(titles), TITLES + size[0] + foot
    figure = Figure((width / DPI, height / DPI))
    colours = np.linspace(0, 1, 256)
    heat_map = ListedColormap(
        np.stack([np.interp(colours, HEAT_AT, channel) for channel in HEAT.T / 255] + [0.8 * np.sqrt(colours)], -1)
    )

    lefts = [GAP + (panel + GAP) * index for index in range(len(titles))]
    axes = [figure.add_axes((left / width, foot / height, panel / width, size[0] / height)) for left in lefts]
    for axis, title, note in zip(axes, titles, notes, strict=True):
        first = axis is axes[0]
        axis.imshow(image if first else pale(image), extent=(0, grid.width, grid.height, 0), aspect="auto")
        axis.set_title(title, x=0, ha="left")
        axis.set_xlabel(note, x=0, ha="left", color=rgb(QUIET), labelpad=(SCALE - 18) * 72 / DPI, linespacing=1.4)
        _mark_query(axis, explanation)
        beside = grid.width * (panel / size[1] - 1) / 2  # white to both sides of a narrow image
        axis.set(xlim=(-beside, grid.width + beside), ylim=(grid.height, 0), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for left, axis, stage in zip(lefts[1:], axes[1:], stages, strict=True):
        heat = explanation.heat(stage, image.shape[:2])
        most = float(heat.max())
        shown = axis.imshow(
            heat, cmap=heat_map, vmin=0, vmax=most, extent=(0, grid.width, grid.height, 0), aspect="auto", zorder=1
        )
        scale = figure.add_axes((left / width, (foot - 24) / height, panel / width, 12 / height))
        figure.colorbar(shown, cax=scale, orientation="horizontal", ticks=[])
        scale.set_xlabel("0", x=0, ha="left", color=rgb(QUIET))
        scale.text(1, -0.35, f"{most:.1f} x even", transform=scale.transAxes, ha="right", va="top", color=rgb(QUIET))
        region = positive_region(explanation, stage, size)
        if region is not None and region.any() and not region.all():
            for colour, thickness in (("white", 3.6), (rgb(GREEN), 2.0)):
                extent = (0, grid.width, 0, grid.height)
                axis.contour(region, [0.5], colors=[colour], linewidths=thickness, origin="lower", extent=extent)
    dot = {"marker": "o", "markersize": 11, "markeredgewidth": 0, "linestyle": ""}
    handles = [
        Line2D([], [], color=rgb(INK), label="query", **dot),
        Patch(facecolor="white", edgecolor=rgb(BLUE), linewidth=2, label="its window"),
        Patch(facecolor="white", edgecolor=rgb(GREEN), linewidth=2, label="positives of its anchor"),
        Patch(color=rgb(tuple(HEAT[-1].astype(int).tolist())), label="attention (even: every token gets the same)"),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=4, handlelength=1, handleheight=1, columnspacing=4)
    return figure


def _mark_query(axis: "Axes", explanation: TokenAttention) -> None:
    """Draw the edges of all windows, the query's window and the query's point."""
    from matplotlib.patches import Rectangle

    grid, (height, width) = explanation.grid, explanation.image.shape[:2]
    rows, columns = window_edges(grid)
    for draw, edges, end in ((axis.hlines, rows, grid.width), (axis.vlines, columns, grid.height)):
        draw(edges, 0, end, color="white", linewidth=0.8, linestyle=(0, (7, 5)))
        draw(edges, 0, end, color=rgb(INK), linewidth=0.8, linestyle=(-8, (2, 10)))
    top, left = np.maximum(grid.origins[explanation.window], 0).tolist()
    bottom, right = np.minimum(grid.origins[explanation.window] + np.array(grid.crop), (grid.height, grid.width))
    for colour, thickness in (("white", 3.6), (rgb(BLUE), 2.0)):
        box = Rectangle((left, top), right - left, bottom - top, fill=False, ec=colour, lw=thickness, zorder=3)
        axis.add_patch(box)
    x, y = explanation.at
    point = (x + 0.5) * grid.width / width, (y + 0.5) * grid.height / height
    for dot, colour in ((12, "white"), (9.5, rgb(INK)), (3.5, "white")):
        axis.plot(*point, "o", color=colour, markersize=dot, markeredgewidth=0, zorder=4)


def explanation_picture(explanation: TokenAttention, mask: Bool[np.ndarray, "h w"] | None = None) -> Image.Image:
    """The figure as pixels. Raises UserError where matplotlib is missing."""
    return as_image(matplotlib_figure(explanation, mask))
