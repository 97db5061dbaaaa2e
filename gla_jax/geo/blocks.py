"""Blocks that a large raster goes through in, and the pixels around each that its windows need."""

import math
from dataclasses import dataclass

from gla_jax.config import SegmenterConfig
from gla_jax.support.errors import UserError

MAX_REGION = 8192  # raster pixels of a side: 200 MB of RGB


@dataclass(frozen=True)
class Area:
    """A rectangle of raster pixels."""

    row: int
    column: int
    height: int
    width: int

    def within(self, other: "Area") -> tuple[slice, slice]:
        """Rows and columns of this area in an array of another one that holds it."""
        top, left = self.row - other.row, self.column - other.column
        return slice(top, top + self.height), slice(left, left + self.width)


@dataclass(frozen=True)
class Block:
    """Pixels `core` that are labelled together, and `region`, which adds a halo of one window inside the raster."""

    core: Area
    region: Area

    @property
    def name(self) -> str:
        """A name that sorts by place."""
        return f"{self.core.row:07d}-{self.core.column:07d}"


def scale_of(config: SegmenterConfig, block: int) -> float:
    """Working pixels for a raster pixel: a block is brought to the settings' short side, as a photo would be."""
    return 1.0 if config.windows.short_side is None else config.windows.short_side / block


def cut_blocks(area: Area, raster: Area, side: int, config: SegmenterConfig) -> list[Block]:
    """The blocks of an area from top left to bottom right.

    Args:
        area: what is to be labelled.
        raster: the whole, which halos do not leave.
        side: of a block, in raster pixels.
        config: its windows say how wide the halo is.

    Raises UserError when a block with its halo is too large for memory or for the settings' long side.
    """
    scale = scale_of(config, side)
    halo = math.ceil(config.windows.crop / scale)
    working = (side + 2 * halo) * scale
    if side + 2 * halo > MAX_REGION or (scale != 1 and working > config.windows.long_side):
        raise UserError(
            f"a block of {side} pixels with its halo has {side + 2 * halo} pixels, at work {working:.0f}; "
            "give a smaller --block or --crop."
        )
    blocks = []
    for row in range(area.row, area.row + area.height, side):
        for column in range(area.column, area.column + area.width, side):
            height = min(side, area.row + area.height - row)
            width = min(side, area.column + area.width - column)
            core = Area(row, column, height, width)
            top, left = max(row - halo, 0), max(column - halo, 0)
            bottom = min(row + height + halo, raster.height)
            right = min(column + width + halo, raster.width)
            blocks.append(Block(core, Area(top, left, bottom - top, right - left)))
    return blocks
