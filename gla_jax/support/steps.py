"""Two ways to run a computation: as one program, or in steps that the caller can watch and interrupt."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

Progress = Callable[[int, int], None]  # (steps done, steps in all)


@cache
def _jitted(function: Callable, *static: str) -> Callable:
    """The function, compiled anew for other values of the keywords that are static."""
    return jax.jit(function, static_argnames=static)


class OneProgram:
    """Calls functions as they are: inside jit, vmap or grad they become one program."""

    def whole(self, function: Callable, *arguments: Any) -> Any:
        """function(*arguments)."""
        return function(*arguments)

    def windows(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """function(*parts, *shared, **static) over all windows; static: what decides the program."""
        return function(*parts, *shared, **static)

    def queries(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """function(*parts, *shared, **static) over all queries; static: what decides the program."""
        return function(*parts, *shared, **static)


class Steps:
    """Compiles every function by itself and runs it on one chunk of rows after the other.

    A step is short, so progress can be shown and Ctrl-C is heard, and no intermediate array is larger than its chunk.
    """

    def __init__(self, window_chunk: int, query_chunk: int, total: int, progress: Progress | None = None):
        """Set the rows of a chunk; progress(done, total) is called after every chunk."""
        self._window_chunk, self._query_chunk = window_chunk, query_chunk
        self._done, self._total, self._progress = 0, total, progress

    def whole(self, function: Callable, *arguments: Any) -> Any:
        """function(*arguments), compiled."""
        return _jitted(function)(*arguments)

    def windows(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """function(*chunks of parts, *shared, **static), joined along the first axis; parts have one row a window."""
        return self._chunks(self._window_chunk, function, parts, shared, static)

    def queries(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """function(*chunks of parts, *shared, **static), joined along the first axis; parts have one row a query."""
        return self._chunks(self._query_chunk, function, parts, shared, static)

    def _chunks(self, size: int, function: Callable, parts: tuple, shared: tuple, static: dict[str, Any]) -> Any:
        results = []
        for part in _in_chunks(parts, size):
            results.append(jax.block_until_ready(_jitted(function, *static)(*part, *shared, **static)))
            self._done += 1
            if self._progress:
                self._progress(self._done, self._total)
        leaves, tree = zip(*map(jax.tree.flatten, results), strict=True)
        del results
        leaves = list(zip(*leaves, strict=True))
        joined = []
        while leaves:  # each leaf's parts are freed before the next one is joined
            joined.append(jnp.concatenate(leaves.pop(0)))
        return jax.tree.unflatten(tree[0], joined)


def _in_chunks(tree: Any, size: int) -> Iterator[Any]:
    length = len(jax.tree.leaves(tree)[0])
    for start in range(0, length, size):
        yield jax.tree.map(lambda leaf, start=start: leaf[start : start + size], tree)


ONE_PROGRAM = OneProgram()
