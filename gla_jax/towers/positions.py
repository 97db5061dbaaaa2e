"""Tables of patch positions at other sizes than the one they were trained at."""

from typing import Literal

import jax
import jax.numpy as jnp

from gla_jax.images.resize import bicubic_matrix
from gla_jax.support.arrays import Array, Float, typed

PositionResize = Literal["bicubic", "bicubic_antialias", "bilinear_antialias"]


@typed
def resize_positions(
    positions: Float[Array, "n C"], grid: tuple[int, int], method: PositionResize = "bicubic", offset: float = 0.0
) -> Float[Array, "m C"]:
    """Resize a square table of patch positions to another grid as PyTorch's interpolate does.

    Args:
        positions: the table, row by row.
        grid: rows and columns of the result; that of the table returns it untouched.
        method: "bicubic" is align_corners=False with a = -0.75; "bicubic_antialias" is PyTorch's antialias=True, whose
            kernel has a = -0.5 (DINOv2 with registers, and timm); "bilinear_antialias" is its linear one (TIPSv2).
        offset: 0 is interpolate(size=grid); another is interpolate(scale_factor=(grid + offset) / side), as the code of
            DINO and DINOv2 calls it, which samples a little to the left.
    """
    side = round(positions.shape[0] ** 0.5)
    if side * side != positions.shape[0]:
        raise ValueError(f"{positions.shape[0]} position embeddings do not form a square grid")
    if offset and method != "bicubic":
        raise ValueError(f"the position resize {method} has no offset, but {offset} is given")
    if grid == (side, side):
        return positions
    table = positions.astype(jnp.float32).reshape(side, side, -1)
    if offset:
        rows, columns = (bicubic_matrix(side, cells, (cells + offset) / side) for cells in grid)
        resized = jnp.einsum("yr,xc,rcd->yxd", rows, columns, table, precision="highest")
    else:
        kernel, antialias = {
            "bicubic": ("bicubic-pytorch", False),
            "bicubic_antialias": ("cubic", True),
            "bilinear_antialias": ("linear", True),
        }[method]
        resized = jax.image.resize(table, (*grid, table.shape[-1]), method=kernel, antialias=antialias)
    return resized.reshape(grid[0] * grid[1], -1).astype(positions.dtype)
