"""TIPSv2's two transformers (Cao et al. 2026): one pass of the image tower gives values, features and the joint space.

The image tower is DINOv2's with a second CLS token in the place of a register; its tokens after the last LayerNorm lie
in the space of the texts, without a projection. The text tower sees every token and averages them.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from gla_jax.images.windows import Channels
from gla_jax.support.arrays import Array, Bool, Float, Int, typed
from gla_jax.towers.activations import Activation
from gla_jax.towers.attention import multi_head_attention
from gla_jax.towers.joint import ImageTokens, ImageTower, TextTower
from gla_jax.towers.layers import (
    LayerNorm,
    TextSpec,
    VisionSpec,
    transformer_blocks,
)
from gla_jax.towers.patches import patch_tokens

PERIODS = 10_000  # the ratio of the longest period of a text's positions to the shortest


@dataclass(frozen=True)
class TipsImageSpec(VisionSpec):
    """Sizes of a TIPSv2 image tower; registers counts the CLS tokens behind the first; pixels stay from 0 to 1."""

    activation: Activation = "gelu"
    registers: int = 1
    layer_norm_eps: float = 1e-6
    pixel_mean: Channels = (0.0, 0.0, 0.0)
    pixel_std: Channels = (1.0, 1.0, 1.0)
    layer_scale = True

    @property
    def embed_dim(self) -> int:
        """E, the width: nothing projects."""
        return self.width

    @property
    def joint_weights(self) -> int:
        """None: the last LayerNorm is all there is behind the last block."""
        return 0


class TipsImage(ImageTower):
    """TIPSv2's image tower, which gives features too."""

    spec: TipsImageSpec

    def setup(self):
        self.patch_tokens = patch_tokens(self, position_resize="bilinear_antialias")
        self.blocks = transformer_blocks(self)
        self.norm = LayerNorm(self.spec.layer_norm_eps, self.dtype)

    def to_joint(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t E"]:
        """Tokens of the last block in the joint space: the last LayerNorm alone."""
        return self.norm(tokens)

    @typed
    def features(self, tokens: ImageTokens) -> Float[Array, "B n C"]:
        """The patch tokens after the last LayerNorm, as a foundation model's, from encoded tokens."""
        return self._finish(tokens)[:, self.spec.prefix_tokens :]

    def image_feature(self, tokens: ImageTokens) -> Float[Array, "B C"]:
        """The first CLS token after the whole last block, of encoded tokens."""
        return self._finish(tokens)[:, 0]

    def _finish(self, tokens: ImageTokens) -> Float[Array, "B t C"]:
        spec = self.spec
        attended = multi_head_attention(tokens.qkv, spec.num_heads, precision=self.precision, form=self.attention_form)
        return self.project(attended, tokens.residual)


@dataclass(frozen=True)
class TipsTextSpec(TextSpec):
    """Sizes of a TIPSv2 text tower; token 0 is padding, and no token ends a text."""

    activation: Activation = "relu"
    layer_norm_eps: float = 1e-5
    end_token = None

    @property
    def embed_dim(self) -> int:
        """E, the width: nothing projects."""
        return self.width

    def lengths(self, token_ids: Int[np.ndarray, "Q t"]) -> Int[np.ndarray, " Q"]:
        """Up to the padding, which no token sees and the mean leaves out."""
        return (token_ids != 0).sum(1)


class TipsText(TextTower):
    """TIPSv2's text tower: token ids, padded with 0 behind, to one feature a text."""

    spec: TipsTextSpec

    has_position_table = False

    def embed(self, token_ids: Int[Array, "Q t"]) -> Float[Array, "Q t C"]:
        """Scaled token embeddings with sine positions, as the release adds them; rows of padding hold no meaning."""
        tokens = self.token_embedding(token_ids) * jnp.asarray(math.sqrt(self.spec.width), self.dtype)
        return tokens + jnp.asarray(sine_positions(token_ids.shape[1], self.spec.width), self.dtype)[None]

    def mask(self, token_ids: Int[Array, "Q t"]) -> Bool[Array, "Q t t"]:
        """Every token sees all but the padding."""
        count, length = token_ids.shape
        # The first token is always seen: the softmax of a text without tokens would be 0/0.
        seen = (token_ids != 0) | (jnp.arange(length) == 0)[None]
        return jnp.broadcast_to(seen[:, None], (count, length, length))

    def text_feature(self, tokens: Float[Array, "Q t C"], token_ids: Int[Array, "Q t"]) -> Float[Array, "Q C"]:
        """The mean of the tokens after the last LayerNorm; zero for a text without tokens."""
        seen = (token_ids != 0)[..., None]
        total = jnp.where(seen, tokens.astype(jnp.float32), 0).sum(1)
        return (total / jnp.maximum(seen.sum(1), 1).astype(jnp.float32)).astype(self.dtype)


def sine_positions(length: int, width: int) -> Float[np.ndarray, "t C"]:
    """Sines, then cosines, of the place in a text over width / 2 periods from 1 to PERIODS radians, float32."""
    half = width // 2
    angles = np.arange(length)[:, None] * np.exp(-math.log(PERIODS) * np.arange(half) / max(half - 1, 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
