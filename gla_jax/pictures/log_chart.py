"""Lines over a number that doubles, both axes logarithmic, panels side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from gla_jax.pictures.charts import LETTERS, MARGIN, RULE, SMALL, WIDTH, Colour, Page, head
from gla_jax.pictures.drawing import INK, QUIET, Entry, font, legend, padded, stack

TOP, HEIGHT, GAP, SCALE_WIDTH = MARGIN + 116, 360, 50, 64


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

    @property
    def values(self) -> list[float]:
        """Every number on the vertical axis."""
        places = [place for line in self.series for place in (*line.points, *filter(None, [line.stopped]))]
        return [y for _, y in places] + ([self.limit[0]] if self.limit else [])


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten around a range, with 2 and 5 between them where it spans less than two of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    marks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = max((mark for mark in marks if mark <= low), default=marks[0])
    above = min((mark for mark in marks if mark >= high and mark > below), default=10.0 * below)
    return sorted({mark for mark in marks if below <= mark <= above} | {above})


def log_lines(title: str, note: str, axis: str, across: Sequence[int], panels: Sequence[LogPanel]) -> Image.Image:
    """A panel for each quantity over the numbers `across`; a cross marks where a line was stopped."""
    page = Page(WIDTH, TOP + HEIGHT + 66)
    head(page, title, note)
    width = (WIDTH - 2 * MARGIN - GAP * (len(panels) - 1)) / len(panels)
    for index, panel in enumerate(panels):
        left = MARGIN + index * (width + GAP)
        _draw_panel(page, panel, axis, across, left + SCALE_WIDTH, left + width)
    entries = [Entry(line.name, line.colour) for line in panels[0].series]
    return stack([page.image(), padded(legend(entries, WIDTH - 2 * MARGIN, LETTERS), MARGIN)])


def _draw_panel(page: Page, panel: LogPanel, axis: str, across: Sequence[int], start: float, end: float) -> None:
    page.text((start - SCALE_WIDTH, TOP - 32), panel.title, INK, LETTERS)
    marks = log_ticks(min(panel.values), max(panel.values))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = (math.log(value) for value in point)
        right = (x - math.log(across[0])) / (math.log(across[-1] / across[0]) or 1.0)
        up = (y - math.log(marks[0])) / math.log(marks[-1] / marks[0])
        return start + 20 + (end - start - 40) * right, TOP + HEIGHT * (1 - up)

    for mark in marks:
        level = place((across[0], mark))[1]
        page.line([(start, level), (end, level)], RULE, 1.2)
        page.text((start - 10, level), f"{mark:g} {panel.unit}", QUIET, SMALL, "rm")
    room = max(font(SMALL).getlength(str(number)) for number in across) + 8
    shown = max(1, math.ceil(room * len(across) / (end - start - 40)))
    for number in across[::shown]:
        page.text((place((number, marks[0]))[0], TOP + HEIGHT + 20), str(number), QUIET, SMALL, "mm")
    page.text(((start + end) / 2, TOP + HEIGHT + 50), axis, INK, LETTERS, "mm")
    if panel.limit:
        level = place((across[0], panel.limit[0]))[1]
        page.line([(start, level), (end, level)], QUIET, 2)
        page.text((start + 6, level - 12), panel.limit[1], QUIET, SMALL, "lm", 2)
    for line in panel.series:
        points = [place(point) for point in line.points]
        if len(points) > 1:
            page.line(points, line.colour, 3)
        for point in points:
            page.dot(point, 5, line.colour)
        if line.stopped:
            x, y = place(line.stopped)
            for rise in (-7, 7):
                page.line([(x - 7, y - rise), (x + 7, y + rise)], line.colour, 3)
            page.text((x, y - 20), f"{line.name} stopped", INK, SMALL, "rm" if x > (start + end) / 2 else "lm", 2)
