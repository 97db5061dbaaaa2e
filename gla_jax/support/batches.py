"""Items in groups that go through one program together."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
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
