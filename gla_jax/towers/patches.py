"""Patch tokens: pixels to the first tokens of every tower."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gla_jax.support.arrays import Array, Float, typed
from gla_jax.towers.layers import Tower
from gla_jax.towers.positions import PositionResize, resize_positions


class PatchTokens(nn.Module):
    """Map pixels [B 3 h w] to tokens [B 1+registers+n C]: patch projection, class token, positions, registers.

    grid_side: of the position table, None where there is none. Without class_token there are the n patches alone.
    """

    width: int
    patch_size: int
    grid_side: int | None
    use_bias: bool = True
    class_token: bool = True
    registers: int = 0
    position_resize: PositionResize = "bicubic"
    position_offset: float = 0.0
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    @nn.compact
    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B t C"]:
        batch, channels, height, width = pixels.shape
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(f"a {height}x{width} input does not divide into patches of {p}x{p}")
        rows, columns = height // p, width // p
        # A convolution of stride p is a product with every flattened patch: [B 3 h w] -> [B n 3pp].
        patches = pixels.reshape(batch, channels, rows, p, columns, p).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, rows * columns, channels * p * p)
        tokens = nn.Dense(
            self.width, use_bias=self.use_bias, dtype=self.dtype, precision=self.precision, name="projection"
        )(patches)

        normal = nn.initializers.normal(0.02)
        if self.class_token:
            cls_token = self.param("class_token", normal, (self.width,))
        if self.grid_side is not None:
            if self.class_token:
                cls_token = cls_token + self.param("class_position", normal, (self.width,))
            positions = self.param("positions", normal, (self.grid_side**2, self.width))
            # A loaded checkpoint holds NumPy arrays, which only jit turns into the arrays of jax that are checked for.
            grid = rows, columns
            positions = resize_positions(jnp.asarray(positions), grid, self.position_resize, self.position_offset)
            tokens = tokens + positions.astype(self.dtype)[None]
        if not self.class_token:
            return tokens
        first = [cls_token[None]]
        if self.registers:
            first.append(self.param("registers", normal, (self.registers, self.width)))
        first = jnp.concatenate(first).astype(self.dtype)
        return jnp.concatenate([jnp.broadcast_to(first[None], (batch, *first.shape)), tokens], axis=1)


def patch_tokens(tower: Tower, table: bool = True, **options: Any) -> PatchTokens:
    """The patch projection of a tower, for its setup.

    table: there is a table of positions, of the pretraining size; options: other fields of PatchTokens.
    """
    spec = tower.spec
    side = spec.image_size // spec.patch_size if table else None
    options |= {"registers": spec.registers, "dtype": tower.dtype, "precision": tower.precision}
    return PatchTokens(spec.width, spec.patch_size, side, **options)
