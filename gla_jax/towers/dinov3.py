"""DINOv3 (Simeoni et al. 2025): rotary positions in every attention in place of a table, CLS and register tokens."""

from dataclasses import dataclass

import numpy as np

from gla_jax.images.windows import Channels
from gla_jax.support.arrays import Array, Float, typed
from gla_jax.towers.attention import Rotation
from gla_jax.towers.dino import VisionTokens, vision_tokens
from gla_jax.towers.layers import LayerNorm, Tower, VisionSpec, transformer_blocks
from gla_jax.towers.patches import patch_tokens


@dataclass(frozen=True)
class DinoV3Spec(VisionSpec):
    """Sizes of a DINOv3 tower; image_size is that of pretraining, on which nothing in the tower depends.

    rope_theta: the longest period of the rotary positions, in halves of the image's side. key_bias: keys have a bias
    as queries and values have.
    """

    registers: int = 4
    rope_theta: float = 100.0
    key_bias: bool = False
    layer_norm_eps: float = 1e-5
    pixel_mean: Channels = (0.485, 0.456, 0.406)  # ImageNet's
    pixel_std: Channels = (0.229, 0.224, 0.225)
    layer_scale = True


class DinoV3(Tower):
    """DINOv3's image tower: pixels to patch tokens after the last LayerNorm."""

    spec: DinoV3Spec

    def setup(self):
        self.patch_tokens = patch_tokens(self, table=False)
        self.blocks = transformer_blocks(self)
        self.norm = LayerNorm(self.spec.layer_norm_eps, self.dtype)

    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> VisionTokens:
        """All intermediates; pixels normalised with the spec's mean and std.

        Raises ValueError when the patch size does not divide h and w.
        """
        spec, (height, width) = self.spec, pixels.shape[2:]
        grid = height // spec.patch_size, width // spec.patch_size
        rotation = patch_rotation(grid, spec.width // spec.num_heads, spec.rope_theta, spec.prefix_tokens)
        return vision_tokens(self, self.patch_tokens(pixels.astype(self.dtype)), rotation=rotation)


def patch_rotation(grid: tuple[int, int], width: int, theta: float, prefix: int) -> Rotation:
    """Cosines and sines [t K] by which queries and keys are turned, 1 and 0 for the prefix tokens.

    A patch lies at (y, x), its centre with the image from -1 to 1. A quarter of the channels turns by 2 pi y / period,
    the next one by 2 pi x / period, for periods theta^(4 j / K), and the second half of the channels as the first.

    Args:
        grid: rows and columns of patches.
        width: K of a head, a multiple of 4.
        theta: the base of the periods.
        prefix: tokens before the first patch.
    """
    if width % 4:
        raise ValueError(f"heads of {width} channels do not split into rows and columns, sines and cosines")
    # In float64 on the host: it is a constant of the program.
    rows, columns = ((2 * np.arange(cells) + 1) / cells - 1 for cells in grid)
    place = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = 2 * np.pi * place / theta ** (4 * np.arange(width // 4) / width)  # [n 2 K/4]
    angles = np.tile(angles.reshape(len(place), -1), 2)
    angles = np.pad(angles, ((prefix, 0), (0, 0))).astype(np.float32)
    return Rotation(np.cos(angles), np.sin(angles))
