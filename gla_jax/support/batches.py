"""Items read ahead by threads, in groups that go through one program together, and the seconds of each stage."""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
# Groups' worth of items that wait for others like them before the fullest group goes on as it is.
GROUPS_IN_WAITING = 4


def grouped(items: Iterable[Item], key: Callable[[Item], Hashable], size: int) -> Iterator[list[Item]]:
    """Groups of up to `size` items with an equal key, each item once; nothing is read ahead when size is 1.

    A full group goes at once. At most 4 * size items wait, so that a stream of images of all sizes fits in memory.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == size:
            yield waiting.pop(key(item))
        elif sum(map(len, waiting.values())) >= GROUPS_IN_WAITING * size:
            yield waiting.pop(max(waiting, key=lambda name: len(waiting[name])))
    yield from waiting.values()


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

    def mark_group(self, stage: str, images: int, new: bool = False) -> None:
        """A stage of a group ends now, of which each image gets an equal part; new: the first stage of a group."""
        self._group = ({} if new else self._group) | {stage: self._since() / images}

    def take(self) -> dict[str, float]:
        """Seconds of the image that is done: its part of the group's stages and its own, which are forgotten here."""
        seconds, self._own = self._group | self._own, {}
        return seconds

    def _since(self) -> float:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds
