"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere; always on standard error."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
Advance = Callable[[int, int], None]  # (done, of)
SECONDS_BETWEEN_LINES = 10.0
# The counters that run now, outermost first, with the display that all share (None away from a terminal): a terminal
# can have one live display only, so an inner counter is a second bar of it.
_running: "list[Progress | None]" = []


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """Yield the items one by one and show how many are done; `what` names the work."""
    with counter(what) as advance:
        advance(0, len(items))
        for done, item in enumerate(items, 1):
            yield item
            advance(done, len(items))


def steps(what: str) -> AbstractContextManager[Advance]:
    """Counter of the steps of one piece of work."""
    return counter(what, "step ")


@contextmanager
def counter(what: str, unit: str = "") -> Iterator[Advance]:
    """A function advance(done, of) that shows how far some work is, its rate and the time left.

    The first call says where this run starts: rate and time left count from there, so that a resumed run is not
    credited with the work of the one before. A counter inside another one vanishes when it ends.

    Args:
        what: the name of the work, shown before the numbers.
        unit: a word with a space before the numbers of a plain line, as "step ".
    """
    inner = bool(_running)
    display = _running[-1] if inner else _new_display()
    start: tuple[float, int] | None = None
    last_line = time.monotonic()
    task = None

    def advance(done: int, of: int) -> None:
        nonlocal start, last_line, task
        now = time.monotonic()
        start = start or (now, done)
        pace = _pace(done - start[1], of - done, now - start[0])
        if display:
            task = display.add_task(what, total=of, pace="") if task is None else task
            display.update(task, completed=done, total=of, pace=pace)
        elif now - last_line > SECONDS_BETWEEN_LINES or (not inner and start[1] < done == of):
            last_line = now
            numbers = f"{what}: {unit}{done} of {of}"
            print(f"{numbers}, {pace}" if pace else numbers, file=sys.stderr, flush=True)

    _running.append(display)
    try:
        if display and not inner:
            display.start()
        yield advance
    finally:
        _running.pop()
        if display and not inner:
            display.stop()
        elif display and task is not None:
            display.remove_task(task)


def _new_display() -> "Progress | None":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        return None
    name = TextColumn("{task.description}", markup=False)  # a file may be called [/x]
    columns = (name, BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}", markup=False))
    # Standard output that goes to a file or a pipe is for programs: nothing of it may end on the terminal.
    return Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())


def _pace(done: int, left: int, seconds: float) -> str:
    """Rate and time left in words, empty before the first item."""
    if done <= 0 or seconds <= 0:
        return ""
    each = seconds / done
    rate = f"{1 / each:.1f} a second" if each < 1 else f"{each:.1f} s each"
    rest = each * left
    if not left:
        return rate
    return f"{rate}, {rest:.0f} s left" if rest < 120 else f"{rate}, {rest / 60:.0f} min left"
