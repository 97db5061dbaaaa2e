"""The attention of one token over the windows of an image, as arrays that can be laid over the image."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from gla_jax.images.windows import WindowGrid
from gla_jax.labels.stitch import stitch, stitch_plan, token_grid
from gla_jax.labels.targets import split_windows
from gla_jax.support.arrays import Bool, Float, UInt8


@dataclass(frozen=True)
class StageAttention:
    """The query's attention after one stage of GLA.

    weights [W S] float32, sum 1; positives [W S]: the tokens that the last mask of its anchor holds, and their number
    count (m), both None before there are anchors; beta and gamma: shift and scale; outside: the share of attention on
    tokens of other windows, 0 to 1; answer: the best class of this token's attended value alone and its probability,
    None without classes.
    """

    name: str
    weights: Float[np.ndarray, "W S"]
    positives: Bool[np.ndarray, "W S"] | None
    count: int | None
    beta: float
    gamma: float
    outside: float
    answer: tuple[str, float] | None = None


@dataclass(frozen=True)
class TokenAttention:
    """The attention of one query token over all windows of an image.

    image [h w 3] uint8 RGB; at (x, y): the query's pixel; grid: the windows; window and token: the query's, tokens of a
    window lie row by row; stages: global buffer, with proxy anchors, with dynamic normalisation.
    """

    image: UInt8[np.ndarray, "h w 3"]
    at: tuple[int, int]
    grid: WindowGrid
    window: int
    token: int
    stages: tuple[StageAttention, ...]

    @property
    def side(self) -> int:
        """Tokens along a side of a window."""
        return round(self.stages[0].weights.shape[1] ** 0.5)

    def on_image(self, per_token: Float[np.ndarray, "W S"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """One number a token as a map of size (h, w), the mean where windows overlap, as the logits are stitched."""
        rows, columns = len(self.grid.row_starts), len(self.grid.column_starts)
        placed = token_grid(jnp.asarray(per_token, jnp.float32)[..., None], rows, columns)
        return np.asarray(stitch(placed, stitch_plan(self.grid, self.side, size)))[..., 0]

    def heat(self, stage: StageAttention, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
        """A stage's attention as a map of size (h, w) in multiples of an even spread over all tokens."""
        return np.maximum(self.on_image(stage.weights * stage.weights.size, size), 0.0)

    def shares_on(self, mask: Bool[np.ndarray, "h w"]) -> tuple[float, ...]:
        """The share of every stage's attention that falls on a mask of the image, 0 to 1.

        A token counts by the part of its square that the mask covers.
        """
        covered = cover(mask, self.grid, self.side)
        return tuple(float((stage.weights * covered).sum()) for stage in self.stages)


def cover(mask: Bool[np.ndarray, "h w"], grid: WindowGrid, side: int) -> Float[np.ndarray, "W S"]:
    """The part of every token's square that a mask of the image covers, 0 to 1; outside the image it covers nothing."""

    def axis(starts: tuple[int, ...], length: int, target: int) -> Float[np.ndarray, "windows*side target"]:
        """The part of every token's interval that each pixel of the image takes, along one axis."""
        scale, pixel = target / length, np.arange(target)
        begin = ((np.array(starts)[:, None] + np.arange(side) * grid.crop / side) * scale).reshape(-1, 1)
        width = grid.crop / side * scale
        return np.clip(np.minimum(begin + width, pixel + 1) - np.maximum(begin, pixel), 0, None) / width

    rows = axis(grid.row_starts, grid.height, mask.shape[0])
    columns = axis(grid.column_starts, grid.width, mask.shape[1])
    covered = (rows @ mask.astype(np.float64) @ columns.T).astype(np.float32)
    return split_windows(covered, grid)
