"""Items read ahead by threads, in groups that go through one program together, and the seconds of each stage."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Kind = TypeVar("Kind", bound=Hashable)
# Groups' worth of items that wait for others like them before the fullest group goes on as it is.
GROUPS_IN_WAITING = 4


def grouped(
    items: Iterable[Item], key: Callable[[Item], Kind], size: Callable[[Kind], int]
) -> Iterator[tuple[list[Item], int]]:
    """Groups of items with an equal key, each item once, and the number of items that the group's program takes.

    A full group, of size(key) items, goes at once; nothing is read ahead for a size of 1. At most GROUPS_IN_WAITING
    groups' worth wait, so that a stream of images of all sizes fits in memory. The program takes size(key), so that all
    groups of a key share it, but no more than there are where the key has one group.
    """
    waiting: dict[Kind, list[Item]] = {}
    seen: set[Kind] = set()
    for item in items:
        kind = key(item)
        group = waiting.setdefault(kind, [])
        group.append(item)
        if len(group) < size(kind):
            if sum(map(len, waiting.values())) < GROUPS_IN_WAITING * size(kind):
                continue
            kind = max(waiting, key=lambda name: len(waiting[name]))
        seen.add(kind)
        yield waiting.pop(kind), size(kind)
    for kind, group in waiting.items():
        yield group, size(kind) if kind in seen else len(group)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Made], threads: int) -> Iterator[Made]:
    """read(item) of every item, in order, up to two a thread ahead; an exception is raised when its turn comes."""
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Stopwatch:
    """Seconds of each stage since the stage before, of images that go through some stages in groups."""

    def __init__(self):
        """Start now."""
        self._own: dict[str, float] = {}
        self._group: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """A stage of one image ends now."""
        self._own[stage] = self._own.get(stage, 0.0) + self._since()

    def mark_group(self, stage: str, images: int, seconds: dict[str, float]) -> None:
        """A stage of a group ends now; each image's part is added to the group's seconds."""
        seconds[stage] = seconds.get(stage, 0.0) + self._since() / images

    def turn_to(self, seconds: dict[str, float]) -> None:
        """The image that is done next is of the group with these seconds."""
        self._group = seconds

    def take(self) -> dict[str, float]:
        """Seconds of the image that is done: its part of the group's stages and its own, which are forgotten here."""
        seconds, self._own = self._group | self._own, {}
        return seconds

    def _since(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
