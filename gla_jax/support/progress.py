"""How far long work is: bars on a terminal, plain lines elsewhere; always on standard error."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_STEPS = 30.0
# A terminal has one live display: what goes on inside a tracked item is a bar of the same one.
_shown: "list[Progress]" = []


@contextmanager
def _display() -> "Iterator[Progress | None]":
    """The live display of the terminal, new or the one that is shown already; None where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if _shown or not console.is_terminal:
        yield _shown[-1] if _shown else None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        _shown.append(progress)
        try:
            yield progress
        finally:
            _shown.pop()


def track(items: Sequence[Item], what: str) -> Iterator[Item]:
    """The items one by one, with a bar or, away from a terminal, a line every few seconds; `what` names the work."""
    with _display() as progress:
        if progress is not None:
            yield from progress.track(items, description=what)
            return
        said = time.monotonic()
        for done, item in enumerate(items, 1):
            yield item
            if done == len(items) or time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                print(f"{what} {done}/{len(items)}", file=sys.stderr, flush=True)


@contextmanager
def steps(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function (done, of) that shows how far one piece of work is, from its first call on."""
    begun = said = time.monotonic()
    task = None
    with _display() as progress:

        def say(done: int, of: int) -> None:
            nonlocal said, task
            if progress is not None:
                task = progress.add_task(what, total=of) if task is None else task
                progress.update(task, completed=done)
            elif time.monotonic() - said > SECONDS_BETWEEN_STEPS:
                said = time.monotonic()
                left = (said - begun) / done * (of - done)
                print(f"{what}: step {done} of {of}, about {left:.0f} s left", file=sys.stderr, flush=True)

        yield say
        if task is not None:
            progress.remove_task(task)
