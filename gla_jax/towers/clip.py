"""CLIP's two transformers: images opened at the last block, texts read at the end token (Radford et al. 2021)."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.images.windows import OPENAI_MEAN, OPENAI_STD, Channels
from gla_jax.support.arrays import Array, Bool, Float, Int
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


@dataclass(frozen=True)
class ClipImageSpec(VisionSpec):
    """Sizes of a CLIP image tower and how its pixels are normalised; the pretraining side fixes the position table."""

    embed_dim: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pixel_mean: Channels = OPENAI_MEAN
    pixel_std: Channels = OPENAI_STD
    gives_features = False


class ClipImage(ImageTower):
    """CLIP's image tower."""

    spec: ClipImageSpec

    def setup(self):
        spec = self.spec
        self.patch_tokens = patch_tokens(self, use_bias=False)
        self.norm_pre = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.blocks = transformer_blocks(self)
        self.norm_post = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.projection = nn.Dense(spec.embed_dim, use_bias=False, dtype=self.dtype, precision=self.precision)

    def embed(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B t C"]:
        """The patches and CLS after the LayerNorm before the first block."""
        tokens = self.patch_tokens(pixels.astype(self.dtype))
        if self.attention_form == "chunked":
            # XLA for TPUs would else put CLS and patches together anew in each of the LayerNorm's passes.
            tokens = jax.lax.optimization_barrier(tokens)
        return self.norm_pre(tokens)

    def to_joint(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t E"]:
        """Tokens of the last block in the joint space: ln_post, proj."""
        return self.projection(self.norm_post(tokens))

    def image_feature(self, tokens: ImageTokens) -> Float[Array, "B E"]:
        """The CLS token after the whole last block, projected, of encoded tokens."""
        attended = multi_head_attention(tokens.qkv, self.spec.num_heads, precision=self.precision)
        return self.project(attended[:, :1], tokens.residual[:, :1])[:, 0]


@dataclass(frozen=True)
class ClipTextSpec(TextSpec):
    """Sizes of a CLIP text tower; end_token is the id whose first occurrence is read."""

    embed_dim: int
    end_token: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def lengths(self, token_ids: Int[np.ndarray, "Q t"]) -> Int[np.ndarray, " Q"]:
        """Up to the end token: the tower is causal."""
        return (token_ids == self.end_token).argmax(1) + 1


class ClipText(TextTower):
    """CLIP's text tower: token ids to one feature a text."""

    spec: ClipTextSpec

    def setup(self):
        super().setup()
        self.projection = nn.Dense(self.spec.embed_dim, use_bias=False, dtype=self.dtype, precision=self.precision)

    def mask(self, token_ids: Int[Array, "Q t"]) -> Bool[Array, "t t"]:
        """Causal: a token sees itself and those before it."""
        return jnp.tril(jnp.ones((token_ids.shape[1],) * 2, bool))

    def text_feature(self, tokens: Float[Array, "Q t C"], token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """The first end token of tokens after the last LayerNorm, projected."""
        # argmax of a comparison is the first place where it holds.
        end = jnp.argmax(token_ids == self.spec.end_token, axis=1)
        return self.projection(jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0])
