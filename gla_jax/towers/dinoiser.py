"""CLIP-DINOiser's two trained layers on tokens of a frozen CLIP (Wysoczanska et al. 2024)."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from gla_jax.support.arrays import Array, Float, l2_normalize, typed

FROM_LAST = 3  # the layers read the input of the MLP of this block, counted from the last


@dataclass(frozen=True)
class DinoiserSpec:
    """Sizes of the layers: width of the CLIP tower whose tokens they read, and of the projection that is compared."""

    width: int
    projected: int = 256


class Dinoiser(nn.Module):
    """A 3x3 convolution whose outputs are compared, and a linear layer that tells foreground from background."""

    spec: DinoiserSpec
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    def setup(self):
        options = {"dtype": self.dtype, "precision": self.precision}
        self.projection = nn.Conv(self.spec.projected, (3, 3), padding="VALID", **options)
        self.background = nn.Dense(1, **options)

    @typed
    def project(self, tokens: Float[Array, "B n C"]) -> Float[Array, "B n P"]:
        """Features whose cosines are the correlations of patches; the border of the square grid is repeated."""
        batch, count, width = tokens.shape
        side = round(count**0.5)
        grid = jnp.pad(tokens.reshape(batch, side, side, width), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
        return self.projection(grid.astype(self.dtype)).reshape(batch, count, -1)

    @typed
    def foreground(self, tokens: Float[Array, "B n C"]) -> Float[Array, "B n"]:
        """Logit of every patch, above 0 where it is foreground."""
        return self.background(l2_normalize(tokens).astype(self.dtype))[..., 0].astype(jnp.float32)

    def __call__(self, tokens: Float[Array, "B n C"]) -> tuple[Float[Array, "B n P"], Float[Array, "B n"]]:
        return self.project(tokens), self.foreground(tokens)
