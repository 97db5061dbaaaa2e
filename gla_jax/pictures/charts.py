"""Figures of several settings as pictures: rows of bars, lines over one setting, heat maps over two."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from gla_jax.pictures.drawing import FIRST_COLOURS, INK, PAPER, QUIET, Entry, clip_text, font, legend, padded, stack

Colour = tuple[int, int, int]
RED, BLUE = FIRST_COLOURS[:2]
GREY, RULE = (172, 179, 190), (228, 231, 236)
WIDTH, MARGIN = 1180, 30
TITLE, LETTERS, SMALL = 24, 17, 14
# Pillow draws shapes without antialias: pages are drawn larger and reduced.
DRAWN_LARGER = 3
NO_FIGURE = "-"


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
        sign = -1 if self.higher_is_better else 1
        known = [index for index, value in enumerate(self.values) if not math.isnan(value)]
        return min(known, key=lambda index: sign * self.values[index], default=None)


class Page:
    """A white page in pixels of the finished picture."""

    def __init__(self, width: int, height: int):
        self._image = Image.new("RGB", (width * DRAWN_LARGER, height * DRAWN_LARGER), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def text(
        self, place: tuple[float, float], text: str, colour: Colour, size: int, anchor: str = "lm", rim: float = 0
    ) -> None:
        """A line of text; anchor is Pillow's, a white rim keeps it apart from what lies below."""
        letters, rim = font(size * DRAWN_LARGER), rim * DRAWN_LARGER
        self._draw.text(_larger(place), text, colour, letters, anchor, stroke_width=rim, stroke_fill=PAPER)

    def box(self, corners: tuple[float, float, float, float], colour: Colour, radius: float = 0) -> None:
        """A filled rectangle (left, top, right, bottom)."""
        self._draw.rounded_rectangle(_larger(corners), radius * DRAWN_LARGER, fill=colour)

    def frame(self, corners: tuple[float, float, float, float], colour: Colour, width: float) -> None:
        """The outline of a rectangle."""
        self._draw.rectangle(_larger(corners), outline=colour, width=round(width * DRAWN_LARGER))

    def line(self, points: Sequence[tuple[float, float]], colour: Colour, width: float) -> None:
        """A line through points."""
        flat = [_larger(point) for point in points]
        self._draw.line(flat, colour, round(width * DRAWN_LARGER), joint="curve")

    def dot(self, place: tuple[float, float], radius: float, colour: Colour) -> None:
        """A filled circle."""
        self._draw.circle(_larger(place), radius * DRAWN_LARGER, fill=colour)

    def image(self) -> Image.Image:
        """The finished picture."""
        return self._image.reduce(DRAWN_LARGER)


def _larger(numbers: Sequence[float]) -> tuple[float, ...]:
    return tuple(number * DRAWN_LARGER for number in numbers)


def figure(value: float) -> str:
    """A percentage with one decimal, a dash for NaN."""
    return NO_FIGURE if math.isnan(value) else f"{value:.1f}"


def bars(
    title: str, note: str, names: Sequence[str], strong: Sequence[bool], columns: Sequence[Column], key: Sequence[Entry]
) -> Image.Image:
    """A row a setting, a bar a column; strong rows have the column's colour, others are grey; key: the legend."""
    row_height, bar_height, room = 38, 22, 62
    widest = WIDTH * 0.42
    size = LETTERS if all(font(LETTERS).getlength(name) <= widest for name in names) else SMALL
    letters = font(size)
    label_width = min(max(letters.getlength(name) for name in names), widest)
    top, gap = MARGIN + 104, 36
    column_width = (WIDTH - 2 * MARGIN - label_width - gap * len(columns)) / len(columns)
    page = Page(WIDTH, round(top + row_height * len(names) + 12))
    head(page, title, note)
    for row, name in enumerate(names):
        middle = top + row_height * (row + 0.5)
        page.text((MARGIN, middle), clip_text(name, letters, label_width), INK, size)
    for index, column in enumerate(columns):
        left = MARGIN + label_width + gap + index * (column_width + gap)
        page.text((left, top - 20), column.title, INK, LETTERS)
        page.line([(left, top), (left, top + row_height * len(names))], RULE, 1.5)
        highest = max((value for value in (*column.values, *column.marks) if not math.isnan(value)), default=0.0)
        pixels = (column_width - room) / (highest or 1.0)
        for row, value in enumerate(column.values):
            middle = top + row_height * (row + 0.5)
            length = 0.0 if math.isnan(value) else value * pixels
            if length >= 1:
                corners = (left, middle - bar_height / 2, left + length, middle + bar_height / 2)
                page.box(corners, column.colour if strong[row] else GREY, min(4, length / 2))
            end = left + length
            if column.marks and not math.isnan(column.marks[row]):
                place = left + column.marks[row] * pixels
                page.line([(place, middle - bar_height / 2 - 3), (place, middle + bar_height / 2 + 3)], INK, 2.5)
                end = max(end, place)
            page.text((end + 9, middle), figure(value), INK if row == column.best else QUIET, LETTERS)
    picture = page.image()
    return stack([picture, padded(legend(key, WIDTH - 2 * MARGIN, SMALL), MARGIN)]) if key else picture


def lines(title: str, note: str, axis: str, names: Sequence[str], columns: Sequence[Column]) -> Image.Image:
    """A panel a column: its values over the values of one setting, evenly spaced, the best one marked."""
    top, height, gap, scale_width = MARGIN + 116, 330, 40, 50
    panel = (WIDTH - 2 * MARGIN - gap * (len(columns) - 1)) / len(columns)
    page = Page(WIDTH, top + height + 86)
    head(page, title, note)
    for index, column in enumerate(columns):
        left = MARGIN + index * (panel + gap)
        start, end = left + scale_width, left + panel
        page.text((left, top - 32), column.title, INK, LETTERS)
        known = [value for value in column.values if not math.isnan(value)]
        marks = ticks(min(known, default=0.0), max(known, default=1.0))
        low, high = marks[0], marks[-1]
        for mark in marks:
            level = _level(mark, low, high, top, height)
            page.line([(start, level), (end, level)], RULE, 1.2)
            page.text((start - 10, level), f"{mark:g}", QUIET, SMALL, "rm")
        step = (end - start) / len(names)
        places = [
            (start + step * (position + 0.5), _level(value, low, high, top, height))
            for position, value in enumerate(column.values)
        ]
        for points in _runs([None if math.isnan(y) else (x, y) for x, y in places]):
            page.line(points, column.colour, 3)
        shown = _every(names, step, SMALL)
        for position, (place, value) in enumerate(zip(places, column.values, strict=True)):
            if position % shown == 0:
                page.text((place[0], top + height + 20), names[position], QUIET, SMALL, "mm")
            best = position == column.best
            if math.isnan(value):
                continue
            if best:
                page.dot(place, 10, column.colour)
                page.dot(place, 7, PAPER)
            page.dot(place, 5, column.colour)
            if best or step >= 46:
                beside = column.values[max(position - 1, 0) : position + 2]
                away = 20 if value == min(beside) < max(beside) else -20
                page.text((place[0], place[1] + away), figure(value), INK if best else QUIET, SMALL, "mm", 2)
        page.text(((start + end) / 2, top + height + 50), axis, INK, LETTERS, "mm")
    return page.image()


def heat_maps(
    title: str,
    note: str,
    axes: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    columns: Sequence[Column],
) -> Image.Image:
    """A map a column over two settings, the first downwards, the second to the right; darker is better.

    The values of a column lie row by row.
    """
    rows, across = names
    row_height, gap = 46, 44
    label_width = max(font(SMALL).getlength(name) for name in rows) + 16
    top = MARGIN + 142
    panel = (WIDTH - 2 * MARGIN - gap * (len(columns) - 1)) / len(columns)
    page = Page(WIDTH, top + row_height * len(rows) + 80)
    head(page, title, note)
    for index, column in enumerate(columns):
        left = MARGIN + index * (panel + gap)
        start = left + label_width
        page.text((left, top - 58), column.title, INK, LETTERS)
        page.text((left, top - 28), f"{axes[0]}, downwards", QUIET, SMALL)
        step = (left + panel - start) / len(across)
        shown = _every(across, step, SMALL)
        known = [value for value in column.values if not math.isnan(value)]
        worst, best = (min(known, default=0.0), max(known, default=0.0))[:: 1 if column.higher_is_better else -1]
        for row, name in enumerate(rows):
            page.text((start - 10, top + row_height * (row + 0.5)), name, QUIET, SMALL, "rm")
        for place, value in enumerate(column.values):
            row, position = divmod(place, len(across))
            corner = start + step * position, top + row_height * row
            corners = (corner[0] + 1, corner[1] + 1, corner[0] + step - 1, corner[1] + row_height - 1)
            # A range under 1 is widened, as on the axis of a line.
            share = 0.0 if math.isnan(value) else 1 - abs(best - value) / max(abs(best - worst), 1)
            page.box(corners, shade(column.colour, share))
            if value == best:
                page.frame(corners, INK, 2.5)
            if step >= 40:
                middle = corner[0] + step / 2, corner[1] + row_height / 2
                page.text(middle, figure(value), PAPER if share > 0.5 else INK, SMALL, "mm")
        below = top + row_height * len(rows)
        for position in range(0, len(across), shown):
            page.text((start + step * (position + 0.5), below + 18), across[position], QUIET, SMALL, "mm")
        page.text(((start + left + panel) / 2, below + 48), axes[1], INK, LETTERS, "mm")
    return page.image()


def shade(colour: Colour, share: float) -> Colour:
    """From almost white (share 0) to a dark tone of the colour (share 1)."""
    pale = [255 - (255 - part) * 0.1 for part in colour]
    dark = [part * 0.75 for part in colour]
    return tuple(round(light + (deep - light) * share) for light, deep in zip(pale, dark, strict=True))


def ticks(low: float, high: float) -> list[float]:
    """4 to 8 round numbers around a range of percentages; a range under 1 is widened, so that noise looks small."""
    if high - low < 1:
        low, high = (low + high - 1) / 2, (low + high + 1) / 2
    low, high = max(low - 0.12 * (high - low), 0.0), high + 0.12 * (high - low)
    power = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(index * step, 6) for index in range(first, last + 1)]


def head(page: Page, title: str, note: str) -> None:
    """The title of a page and a line below it."""
    page.text((MARGIN, MARGIN + 10), clip_text(title, font(TITLE), WIDTH - 2 * MARGIN), INK, TITLE)
    page.text((MARGIN, MARGIN + 42), clip_text(note, font(SMALL), WIDTH - 2 * MARGIN), QUIET, SMALL)


def _level(value: float, low: float, high: float, top: float, height: float) -> float:
    return top + height * (high - value) / (high - low)


def _runs(points: Sequence[tuple[float, float] | None]) -> list[list[tuple[float, float]]]:
    """The longest stretches without a gap."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in points:
        if point is None:
            runs.append([])
        else:
            runs[-1].append(point)
    return [run for run in runs if len(run) > 1]


def _every(names: Sequence[str], step: float, size: int) -> int:
    """Every how manieth name can stand below its place without touching the next."""
    widest = max(font(size).getlength(name) for name in names) + 8
    return max(1, math.ceil(widest / step))
