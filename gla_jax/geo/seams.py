"""Labels that flip at the edges of blocks, beside those at the edges of windows and away from both.

There is no truth to compare with: a border of two objects flips labels wherever it lies. What counts is how much more
often labels flip at one kind of edge than half a stride away from the windows' edges, where nothing is cut.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from gla_jax.config import WindowConfig
from gla_jax.geo.blocks import Area, Block
from gla_jax.images.edges import mirrored_pairs
from gla_jax.predict.model import image_grid
from gla_jax.support.arrays import Integer

KINDS = ("blocks", "windows", "between")


class Seams:
    """Pairs of pixels that mirror each other at an edge, up to a working pixel away, and those of two labels.

    Blocks come from top left to bottom right. blocks: at edges of blocks; windows: at edges of windows inside a block;
    between: inside a block at lines half a stride from these. Pixels without a label are in no pair.
    """

    def __init__(self, area: Area, windows: WindowConfig, scale: float, nodata: int):
        """Count nothing yet.

        Args:
            area: of all blocks.
            windows: of the settings.
            scale: working pixels for a pixel of the raster.
            nodata: the value of pixels without a label.
        """
        self._area, self._windows, self._scale, self._nodata = area, windows, scale, nodata
        self._reach = max(1, round(1 / scale))  # pixels of the raster for a working pixel, as at the windows' edges
        self._left = np.zeros((0, 0), np.int32)
        self._above = np.full((self._reach, area.width), nodata, np.int32)  # the nearest row first
        self._counts = {kind: np.zeros(2, np.int64) for kind in KINDS}

    def add(self, block: Block, labels: Integer[np.ndarray, "h w"]) -> None:
        """Count the edges inside a block, and those to the blocks on its left and above."""
        reach, core = self._reach, block.core
        columns = slice(core.column - self._area.column, core.column - self._area.column + core.width)
        if core.column > self._area.column:
            width = min(reach, core.width)
            self._count("blocks", self._left[:, :width], labels[:, :width])
        if core.row > self._area.row:
            height = min(reach, core.height)
            self._count("blocks", self._above[:height, columns], labels[:height])
        self._left = labels[:, ::-1][:, :reach]
        self._above[: min(reach, core.height), columns] = labels[::-1][:reach]
        self._inside(block, labels)

    def _inside(self, block: Block, labels: Integer[np.ndarray, "h w"]) -> None:
        region, inner = block.region, block.core.within(block.region)
        windows = self._windows
        if windows.short_side is not None:
            windows = replace(windows, short_side=max(round(min(region.height, region.width) * self._scale), 1))
        grid = image_grid((region.height, region.width), windows)
        axes = ((labels.T, region.height, grid.height, inner[0]), (labels, region.width, grid.width, inner[1]))
        for shown, length, resized, span in axes:
            for kind, offset in (("windows", 0), ("between", windows.stride // 2)):
                pairs = np.array(mirrored_pairs(length, resized, windows, 1, offset), int).reshape(2, -1)
                before, after = pairs[:, (pairs >= span.start).all(0) & (pairs < span.stop).all(0)] - span.start
                self._count(kind, shown[:, before], shown[:, after])

    def _count(self, kind: str, first: np.ndarray, second: np.ndarray) -> None:
        valid = (first != self._nodata) & (second != self._nodata)
        self._counts[kind] += ((first != second) & valid).sum(), valid.sum()

    def document(self) -> dict[str, dict[str, Any]]:
        """For each kind of edge the pairs, those whose labels differ, and their share in percent, None without any."""
        rows = {kind: (int(flips), int(pairs)) for kind, (flips, pairs) in self._counts.items()}
        return {
            kind: {"pairs": pairs, "differ": flips, "percent": round(100 * flips / pairs, 4) if pairs else None}
            for kind, (flips, pairs) in rows.items()
        }


def seams_line(document: dict[str, dict[str, Any]]) -> str:
    """The shares in one line, for a terminal."""
    shares = ("-" if row["percent"] is None else f"{row['percent']:.2f} %" for row in map(document.get, KINDS))
    return "labels differ across {} of the edges of blocks, {} of windows, {} half a stride from these".format(*shares)
