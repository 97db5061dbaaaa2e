"""Charts by matplotlib in one style: bars, lines over one setting, heat maps over two, lines over a doubling number."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gla_jax.pictures.drawing import INK, QUIET, Entry
from gla_jax.support.arrays import Float
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Colour = tuple[int, int, int]
GREY, RULE = (172, 179, 190), (228, 231, 236)
# Charts are laid out to be read 900 pixels wide, and drawn with twice as many for sharp screens. Lengths are inches.
WIDTH, DPI = 9.0, 200
MARGIN, HEAD, LETTER = 0.12, 0.72, 0.085  # LETTER: width of a small letter with room to spare
LONGEST_NAME, LONGEST_TICK = 44, 24  # characters
NO_FIGURE = "-"


def rgb(colour: Colour) -> str:
    """A colour as matplotlib and HTML write it."""
    return "#" + bytes(colour).hex()


STYLE = {
    "font.size": 9, "axes.titlesize": 11, "axes.labelsize": 10, "axes.titlelocation": "left", "axes.titlepad": 10,
    "text.color": rgb(INK), "axes.titlecolor": rgb(INK), "axes.labelcolor": rgb(INK), "axes.edgecolor": rgb(RULE),
    "xtick.labelcolor": rgb(QUIET), "ytick.labelcolor": rgb(QUIET), "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.color": rgb(RULE),
    "legend.frameon": False, "legend.fontsize": 9, "figure.dpi": DPI, "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One figure of every setting, in percent, NaN where there is none.

    higher_is_better decides which is best; marks are values of a second figure, one a setting, shown beside the first.
    """

    title: str
    values: tuple[float, ...]
    higher_is_better: bool
    colour: Colour
    marks: tuple[float, ...] = ()

    @property
    def best(self) -> int | None:
        """Index of the best value, the first of equal ones; None when all are NaN."""
        return next(iter(self.ties), None)

    @property
    def ties(self) -> tuple[int, ...]:
        """Indices of all values that equal the best one; empty when all are NaN."""
        numbers = [value for value in self.values if not math.isnan(value)]
        best = (max if self.higher_is_better else min)(numbers, default=math.nan)
        return tuple(index for index, value in enumerate(self.values) if value == best)

    @property
    def heading(self) -> str:
        """The title, with the number of settings that share the best value where there are several."""
        return self.title + (f"  ({len(self.ties)} tie for best)" if len(self.ties) > 1 else "")


@dataclass(frozen=True)
class Series:
    """One line: points (x, y) above 0; stopped: the place after its last point where it could not go on."""

    name: str
    colour: Colour
    points: tuple[tuple[float, float], ...]
    stopped: tuple[float, float] | None = None


@dataclass(frozen=True)
class LogPanel:
    """One pair of axes; unit follows the numbers of the vertical one; limit is drawn as a line across, with a name."""

    title: str
    unit: str
    series: tuple[Series, ...]
    limit: tuple[float, str] | None = None


def require_matplotlib() -> None:
    """Raise UserError where matplotlib is missing; call it before long work that ends in a chart."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError('charts are drawn by matplotlib; install it with pip install "gla-jax[figures]".') from None


@contextmanager
def styled(**changes: Any) -> Iterator[None]:
    """The style of the project's charts, whatever the user's own settings of matplotlib are; also a decorator."""
    require_matplotlib()
    from matplotlib import style

    with style.context(["default", STYLE | changes]), warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def as_image(figure: "Figure") -> Image.Image:
    """A figure as pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def figure(value: float) -> str:
    """A percentage with one decimal, a dash for NaN."""
    return NO_FIGURE if math.isnan(value) else f"{value:.1f}"


def shorten(text: str, longest: int) -> str:
    """The text in one line of at most `longest` characters, cut with an ellipsis."""
    text = " ".join(text[: longest + 1].split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


@styled()
def bars(
    title: str, note: str, names: Sequence[str], strong: Sequence[bool], columns: Sequence[Column], key: Sequence[Entry]
) -> Image.Image:
    """A row a setting, a bar a column; the best values are bold.

    Args:
        title: of the chart.
        note: a line below the title.
        names: of the settings.
        strong: one a setting; its bars have the column's colour, others are grey.
        columns: figures of the settings.
        key: the legend.
    """
    page, panels = _page(title, note, 0.5 + 0.32 * len(names) + (0.3 if key else 0), len(columns), sharey=True)
    rows = np.arange(len(names))
    for axis, column in zip(panels, columns, strict=True):
        lengths = np.nan_to_num(column.values)
        ends = np.fmax(lengths, column.marks or lengths)
        axis.barh(rows, lengths, 0.6, color=[rgb(column.colour if one else GREY) for one in strong])
        axis.vlines(column.marks, *(rows[: len(column.marks)] + side for side in (-0.38, 0.38)), color=rgb(INK), lw=1.6)
        for row, value in enumerate(column.values):
            style = {"color": rgb(INK), "weight": "bold"} if row in column.ties else {"color": rgb(QUIET)}
            _beside(axis, figure(value), (ends[row], row), (5, 0), va="center", **style)
        axis.set_xlim(0, 1.16 * ends.max() or 1.0)  # the figures stand to the right of the bars
        axis.set(title=column.heading, xticks=[], yticks=rows, yticklabels=[shorten(n, LONGEST_NAME) for n in names])
        axis.spines["bottom"].set_visible(False)
        axis.tick_params("y", labelcolor=rgb(INK))
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    _legend(page, key)
    return as_image(page)


@styled()
def lines(title: str, note: str, axis: str, names: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """A panel a column: its values over the values of one setting, the best ones ringed.

    Args:
        title: of the chart.
        note: a line below the title.
        axis: name of the setting.
        names: its values; numbers stand at their true distances.
        columns: figures of the settings.
    """
    page, panels = _page(title, note, 3.6, len(columns))
    places = _places(names)
    order = np.argsort(places)
    for panel, column in zip(panels, columns, strict=True):
        values, colour, best = np.array(column.values), rgb(column.colour), list(column.ties)
        panel.plot(places[order], values[order], "o-", color=colour, linewidth=2, markersize=5)
        panel.plot(places[best], values[best], "o", markersize=11, color="none", markeredgecolor=colour, mew=1.8)
        # A range under 1 is widened, so that noise looks small.
        low, high = np.nanmin(values, initial=100.0), np.nanmax(values, initial=0.0)
        low, high = (low, high) if low <= high else (0.0, 1.0)
        room = 0.15 * (high - low) + max(1.0 - high + low, 0.0) / 2
        bottom = max(low - room, -0.04 * (high + room))  # no percentage is below 0
        panel.set(title=column.heading, xlabel=axis, ylim=(bottom, max(high + room, bottom + 1)))
        panel.locator_params("y", nbins=6)
        panel.grid(axis="y")
        shown = _ticks(panel.xaxis, places, names, WIDTH / len(columns) - 0.8)
        for rank, index in enumerate(order.tolist()):
            if math.isnan(values[index]) or not (index in shown or index == column.best):
                continue
            beside = values[order[max(rank - 1, 0) : rank + 2]]
            away = 9 if index in shown else 20  # further off where its place has no label: others are near
            if values[index] == np.nanmin(beside) < np.nanmax(beside):
                away = -4 - away
            weight = "bold" if index in best else "normal"
            _beside(panel, figure(values[index]), (places[index], values[index]), (0, away), ha="center", weight=weight)
    return as_image(page)


@styled()
def heat_maps(
    title: str,
    note: str,
    axes: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    columns: Sequence[Column],
) -> Image.Image:
    """A map a column over two settings with its scale beside it; darker is better, the best values are framed.

    Args:
        title: of the chart.
        note: a line below the title.
        axes: names of the settings, the first goes downwards.
        names: their values; numbers stand at their true distances.
        columns: figures of the settings, row by row.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    width, height = WIDTH / len(columns) - 1.6, 0.45 * len(names[0]) + 0.3
    page, panels = _page(title, note, height + 1.0, len(columns))
    places = [_places(one) for one in names]
    order = [np.argsort(one) for one in places]
    edges = [_edges(one[by]) for one, by in zip(places, order, strict=True)]
    inches = np.array([width, height]) / [np.ptp(edges[1]), np.ptp(edges[0])]
    for panel, column in zip(panels, columns, strict=True):
        values = np.array(column.values).reshape(len(names[0]), len(names[1]))[np.ix_(*order)]
        best = column.values[column.best or 0]
        # A range under 1 is widened, so that noise looks small.
        reach = max(np.nanmax(np.abs(values - best), initial=0.0), 1.0)
        limits = (best - reach, best) if column.higher_is_better else (best, best + reach)
        shades = [rgb(shade(column.colour, share)) for share in np.linspace(0, 1, 256)]
        colours = ListedColormap(shades[:: 1 if column.higher_is_better else -1])
        low, high = limits if column.ties else (0.0, 1.0)
        mesh = panel.pcolormesh(*edges[::-1], values, cmap=colours, vmin=low, vmax=high, edgecolors="white", lw=1.5)
        for (row, across), value in np.ndenumerate(values):
            corner = np.array([edges[1][across], edges[0][row]])
            size = np.array([edges[1][across + 1], edges[0][row + 1]]) - corner
            if value == best:
                frame = {"edgecolor": rgb(INK), "linewidth": 2, "zorder": 3, "clip_on": False}
                panel.add_patch(Rectangle(corner, *size, fill=False, **frame))
            room, share = size * inches, 1 - abs(value - best) / reach
            if min(room) > 0.17 and max(room) > 0.36:
                style = {"color": "white" if share > 0.6 else rgb(INK), "rotation": 0 if room[0] > 0.36 else 90}
                panel.text(*(corner + size / 2), figure(value), ha="center", va="center", **style)
        panel.set(title=column.heading, xlabel=axes[1], ylabel=axes[0])
        panel.invert_yaxis()
        _ticks(panel.xaxis, places[1], names[1], width)
        _ticks(panel.yaxis, places[0], names[0], height)
        panel.spines[:].set_visible(False)
        page.colorbar(mesh, ax=panel, aspect=30, pad=0.03).outline.set_visible(False)
    return as_image(page)


@styled()
def log_lines(title: str, note: str, axis: str, across: Sequence[int], panels: Sequence[LogPanel]) -> Image.Image:
    """A panel for each quantity over numbers that double, both axes logarithmic; a cross ends a line that was stopped.

    Args:
        title: of the chart.
        note: a line below the title.
        axis: name of the numbers.
        across: the numbers.
        panels: quantities with their lines.
    """
    page, places = _page(title, note, 4.2, len(panels))
    for place, panel in zip(places, panels, strict=True):
        ends = [(line.stopped, line) for line in panel.series if line.stopped]
        values = [y for line in panel.series for _, y in line.points] + [end[1] for end, _ in ends]
        values += [panel.limit[0]] if panel.limit else []
        low, high = min(values, default=1.0) / 1.7, max(values, default=1.0) * 1.7
        place.set(title=panel.title, xlabel=axis, xscale="log", yscale="log", ylim=(low, high))
        place.set_xlim(across[0] / 1.15, across[-1] * 1.15)
        place.yaxis.get_major_locator().set_params(subs=(1, 2, 5) if high / low < 300 else (1,))
        place.yaxis.set_major_formatter(lambda mark, _, unit=panel.unit: f"{mark:g} {unit}")
        place.grid(axis="y")
        _ticks(place.xaxis, np.log2(across), [str(number) for number in across], WIDTH / len(panels) - 1, 2.0)
        place.minorticks_off()
        for line in panel.series:
            place.plot([x for x, _ in line.points], [y for _, y in line.points], "o-", color=rgb(line.colour), lw=2)
        for end, line in ends:
            place.plot(*end, "x", color=rgb(line.colour), markersize=9, mew=2.5)
            side = "right" if end[0] ** 2 > across[0] * across[-1] else "left"
            _beside(place, f"{line.name} stopped", end, (0, 10), ha=side)
        if panel.limit:
            place.axhline(panel.limit[0], color=rgb(QUIET), linewidth=1.5)
            _beside(place, panel.limit[1], (across[0], panel.limit[0]), (0, 4), color=rgb(QUIET))
    _legend(page, [Entry(line.name, line.colour) for line in panels[0].series])
    return as_image(page)


def shade(colour: Colour, share: float) -> Colour:
    """From almost white (share 0) to a dark tone of the colour (share 1)."""
    pale = [255 - (255 - part) * 0.1 for part in colour]
    dark = [part * 0.75 for part in colour]
    return tuple(round(light + (deep - light) * share) for light, deep in zip(pale, dark, strict=True))


def _page(title: str, note: str, height: float, panels: int, **options: Any) -> "tuple[Figure, Sequence[Axes]]":
    """A figure with its title and note, and `panels` axes side by side below them."""
    from matplotlib.figure import Figure

    page = Figure((WIDTH, HEAD + height), layout="constrained")
    rect = (0, 0, 1, height / (HEAD + height))
    page.get_layout_engine().set(rect=rect, w_pad=MARGIN, h_pad=MARGIN, wspace=0.03)
    for text, longest, down, style in ((title, 80, 0.16, {"size": 14}), (note, 130, 0.46, {"color": rgb(QUIET)})):
        page.text(MARGIN / WIDTH, 1 - down / (HEAD + height), shorten(text, longest), va="top", **style)
    return page, page.subplots(1, panels, squeeze=False, **options)[0]


def _beside(axis: "Axes", text: str, point: tuple[float, float], offset: tuple[float, float], **style: Any) -> None:
    """A text with a white rim at an offset in points from a place of the data."""
    from matplotlib.patheffects import withStroke

    rim = [withStroke(linewidth=2.5, foreground="white")]
    axis.annotate(text, point, xytext=offset, textcoords="offset points", path_effects=rim, **style)


def _legend(page: "Figure", key: Sequence[Entry]) -> None:
    """The legend at the foot of a page."""
    from matplotlib.patches import Patch

    handles = [Patch(color=rgb(entry.colour), label=shorten(entry.name, LONGEST_NAME)) for entry in key]
    if handles:
        page.legend(handles=handles, loc="outside lower left", ncols=min(len(key), 4), handlelength=1, handleheight=1)


def are_numbers(names: Sequence[str]) -> bool:
    """True if all names are finite numbers, which have true distances."""
    try:
        return all(math.isfinite(float(name)) for name in names)
    except ValueError:
        return False


def _places(names: Sequence[str]) -> Float[np.ndarray, " n"]:
    """Places of values along an axis: numbers at their true distances, anything else evenly spaced."""
    return np.array(names, float) if are_numbers(names) else np.arange(len(names), dtype=float)


def _edges(places: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n+1"]:
    """Edges of cells around sorted places, halfway between neighbours."""
    if len(places) == 1:
        return places[0] + np.array([-0.5, 0.5])
    between = (places[1:] + places[:-1]) / 2
    return np.array([2 * places[0] - between[0], *between, 2 * places[-1] - between[-1]])


def _ticks(axis: "Axis", places: Float[np.ndarray, " n"], names: Sequence[str], length: float, base: float = 0) -> list:
    """Label the places along an axis that leave room for each other, and return their indices.

    Args:
        axis: one of a pair of axes.
        places: of the values.
        names: of the values.
        length: of the axis in inches.
        base: above 0, the axis is logarithmic and the places are logarithms to that base.
    """
    inches = length / (np.ptp(places) * len(places) / max(len(places) - 1, 1) or 1)
    texts, shown = [shorten(name, LONGEST_TICK) for name in names], []
    for index in np.argsort(places).tolist():
        letters = (len(texts[index]) + len(texts[shown[-1]])) / 2 + 1.5 if shown and axis.axis_name == "x" else 2
        if not shown or (places[index] - places[shown[-1]]) * inches > letters * LETTER:
            shown.append(index)
    axis.set_ticks(base ** places[shown] if base else places[shown], [texts[index] for index in shown])
    return shown
