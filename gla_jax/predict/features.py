"""Features of an image without any classes: one map in the joint space, to compare with text or other images later."""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gla_jax.images.windows import WindowGrid
from gla_jax.labels.stitch import StitchPlan, stitch_plan, token_grid
from gla_jax.predict.model import Model
from gla_jax.support.arrays import Array, Bool, Float, UInt8, have_directions, l2_normalize, typed
from gla_jax.support.errors import UserError
from gla_jax.support.steps import Progress


@dataclass(frozen=True, repr=False)
class FeatureMap:
    """Joint-space features of an image in cells of about a token each, a whole number of which cover it.

    features [h' w' E] float32: rows of length one; image [h w 3] uint8: RGB as it was read.
    """

    features: Float[np.ndarray, "y x E"]
    image: UInt8[np.ndarray, "h w 3"]

    def __repr__(self) -> str:
        (rows, columns, width), (height, across) = self.features.shape, self.size
        return f"<FeatureMap of {height} x {across} pixels: {rows} x {columns} cells of {width} numbers>"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.image.shape[:2]

    @cached_property
    def positions(self) -> Float[np.ndarray, "y x 2"]:
        """Centres of the cells (row, column) in pixels of the image, whose first pixel is from 0 to 1."""
        axes = zip(self.size, self.features.shape[:2], strict=True)
        centres = [(np.arange(cells, dtype=np.float32) + 0.5) * (pixels / cells) for pixels, cells in axes]
        return np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).astype(np.float32)

    @property
    def grid(self) -> WindowGrid:
        """Cells as windows of one token and one pixel each: the stitching from them to pixels is bilinear."""
        rows, columns = self.features.shape[:2]
        return WindowGrid(rows, columns, 1, tuple(range(rows)), tuple(range(columns)))


def feature_map(model: Model, image: UInt8[np.ndarray, "h w 3"], progress: Progress | None = None) -> FeatureMap:
    """The features of an RGB image, stitched as the method stitches logits: with text they give the same cosines.

    Unit features of tokens go bilinearly to the pixels of their window, the mean over windows bilinearly to the cells,
    and rows get length one. progress(steps done, steps) is called for images that go through in steps.

    Raises UserError when the features have no directions.
    """
    grid, tokens = unit_tokens(model, image, progress)
    return FeatureMap(stitched_features(tokens, grid), image)


@typed
def stitched_features(tokens: Float[np.ndarray, "W S E"], grid: WindowGrid) -> Float[np.ndarray, "y x E"]:
    """Unit features of the tokens of all windows as the cells of a FeatureMap, on the host."""
    # On the host: every size of an image would be a program of its own.
    laid_out = token_grid(tokens, len(grid.row_starts), len(grid.column_starts))  # [y x E]
    plan = cell_plan(grid, round(tokens.shape[1] ** 0.5))
    stitched = plan.columns @ np.tensordot(plan.rows, laid_out, 1)  # [h' x E], then [h' w' E]
    lengths = np.linalg.norm(stitched, axis=-1, keepdims=True)
    return stitched / np.where(lengths > 0, lengths, np.float32(1))


def cell_plan(grid: WindowGrid, side: int) -> StitchPlan:
    """The matrices from tokens to the cells of a FeatureMap; side: tokens along a side of a window."""
    rows, columns = (max(round(length * side / grid.crop), 1) for length in (grid.height, grid.width))
    return stitch_plan(grid, side, (rows, columns))


def unit_tokens(
    model: Model, image: UInt8[np.ndarray, "h w 3"], progress: Progress | None = None
) -> tuple[WindowGrid, Float[np.ndarray, "W S E"]]:
    """Joint-space features of length one of the tokens of an RGB image, without padding, and the grid of its windows.

    progress(steps done, steps) is called for images that go through in steps. Raises UserError when the features have
    no directions.
    """
    prepared = model.prepare(image)
    tokens = model.features([prepared], progress)[0]
    check_usable(have_directions(tokens), model.config.dtype)
    whole = None if model.mesh is None else NamedSharding(model.mesh, PartitionSpec())
    tokens = jax.jit(l2_normalize, out_shardings=whole)(tokens).addressable_data(0)
    return prepared.grid, np.asarray(tokens)[: prepared.grid.count]


def check_usable(usable: Bool[Array, ""] | Bool[np.ndarray, ""] | np.bool_, dtype: str) -> None:
    """Raise UserError where features have no directions, which would give every pixel the same label.

    dtype: of the towers.
    """
    if not np.asarray(jax.device_get(usable)):
        advice = "convert them again" + ("" if dtype == "float32" else ", or choose --dtype float32")
        raise UserError(
            f"the image features are zero, not finite or too large in {dtype}: the model's weights, its image "
            f"projection first, are damaged; {advice}."
        )
