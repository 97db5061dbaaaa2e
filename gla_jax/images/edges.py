"""Edges of windows along an axis, and the pixels that mirror each other there."""

import math

from gla_jax.config import WindowConfig
from gla_jax.images.windows import axis_starts


def window_edges(length: int, crop: int, stride: int) -> tuple[int, ...]:
    """Window starts and ends inside an axis of `length` resized pixels; edge b lies between pixels b - 1 and b."""
    starts = axis_starts(length, crop, stride)
    ends = {start + crop for start in starts}
    return tuple(sorted(edge for edge in ends.union(starts) if 0 < edge < length))


def mirrored_pairs(
    length: int, resized: int, windows: WindowConfig, width: int, offset: int = 0
) -> tuple[list[int], list[int]]:
    """Pixels before and after every window edge that mirror each other along an axis.

    Args:
        length: pixels of the label.
        resized: pixels of the image that was cut into windows.
        windows: the edge set.
        width: distance from an edge, in resized pixels.
        offset: resized pixels by which the edges are moved.
    """
    scale = length / resized
    reach = max(1, round(width * scale))
    left, right = [], []
    for edge in window_edges(resized, windows.crop, windows.stride):
        first = math.ceil((edge + offset) * scale - 0.5)  # the first label pixel whose centre is past the edge
        steps = max(min(reach, first, length - first), 0)
        left.extend(range(first - 1, first - 1 - steps, -1))
        right.extend(range(first, first + steps))
    return left, right
