"""Results of a function kept by its arguments, the latest ones, up to a number of bytes."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

import jax


def cached_up_to(most: int) -> Callable[[Callable], Callable]:
    """Decorator of a function whose arguments are hashable and whose results are trees of arrays, `most` bytes in all.

    What has not been asked for longest goes first; a result of more than `most` bytes is not kept.
    """

    def decorated(function: Callable) -> Callable:
        kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        held, lock = 0, Lock()

        @functools.wraps(function)
        def cached(*arguments: Hashable) -> Any:
            nonlocal held
            with lock:
                if arguments in kept:
                    kept.move_to_end(arguments)
                    return kept[arguments][0]
            result = function(*arguments)
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(result))
            with lock:
                if arguments not in kept:  # of two threads that made it at once
                    kept[arguments] = result, size
                    held += size
                while held > most:
                    held -= kept.popitem(last=False)[1][1]
            return result

        return cached

    return decorated
