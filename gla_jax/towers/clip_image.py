"""CLIP's image transformer, opened at its last block (Radford et al. 2021; baselines and GLA read q, k and v there)."""

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn

from gla_jax.images.pixels import OPENAI_MEAN, OPENAI_STD, Channels
from gla_jax.support.shapes import Array, Float, typed
from gla_jax.towers.layers import (
    QKV,
    Activation,
    LayerNorm,
    PatchTokens,
    Tower,
    multi_head_attention,
    transformer_blocks,
)


@dataclass(frozen=True)
class ClipImageSpec:
    """Sizes of a CLIP image tower and how its pixels are normalised; the pretraining side fixes the position table."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5
    pixel_mean: Channels = OPENAI_MEAN
    pixel_std: Channels = OPENAI_STD

    @property
    def grid_side(self) -> int:
        """Patches along one side of the pretraining image."""
        return self.image_size // self.patch_size


class ClipImageTokens(NamedTuple):
    """Tokens up to the last attention; token 0 is CLS.

    embedded [B 1+n C]: after ln_pre. blocks: the output of every block but the last, each [B 1+n C]. residual: the
    input of the last block (blocks[-1]). qkv: queries, keys and values of the last block.
    """

    embedded: Array
    blocks: tuple[Array, ...]
    residual: Array
    qkv: QKV


class ClipImage(Tower):
    """CLIP's image tower: encode() up to q, k, v of the last block; project() from there to the joint space."""

    spec: ClipImageSpec

    def setup(self):
        spec = self.spec
        self.patch_tokens = PatchTokens(
            spec.width, spec.patch_size, spec.grid_side, use_bias=False, dtype=self.dtype, precision=self.precision
        )
        self.norm_pre = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.blocks = transformer_blocks(self, spec.activation)
        self.norm_post = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.projection = nn.Dense(spec.embed_dim, use_bias=False, dtype=self.dtype, precision=self.precision)

    @typed
    def encode(self, pixels: Float[Array, "B 3 h w"]) -> ClipImageTokens:
        """Tokens of every block and q, k, v of the last one; pixels normalised with the spec's mean and std.

        Raises ValueError when the patch size does not divide h and w.
        """
        embedded = tokens = self.norm_pre(self.patch_tokens(pixels.astype(self.dtype)))
        outputs = []
        # The last block is left open: methods replace its attention.
        for block in self.blocks[:-1]:
            tokens = block(tokens)
            outputs.append(tokens)
        return ClipImageTokens(embedded, tuple(outputs), tokens, self.blocks[-1].project_in(tokens))

    @typed
    def project(
        self, attended: Float[Array, "B t C"], residual: Float[Array, "B t C"] | None = None
    ) -> Float[Array, "B t E"]:
        """Project the last attention's output to the joint space: out_proj, ln_post, proj.

        With residual the whole last block runs (residual and MLP). Without it the block is its attention alone, as
        ClearCLIP (Lan et al. 2024) found better for dense features.
        """
        tokens = self.blocks[-1].project_out(attended)
        if residual is not None:
            tokens = self.blocks[-1].feed_forward(residual + tokens)
        return self.projection(self.norm_post(tokens))

    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B E"]:
        """CLIP's image feature: the CLS token after the whole last block, projected, not normalised."""
        return self.image_feature(self.encode(pixels))

    def image_feature(self, tokens: ClipImageTokens) -> Float[Array, "B E"]:
        """The image feature of encoded tokens."""
        attended = multi_head_attention(tokens.qkv, self.spec.num_heads, precision=self.precision)
        return self.project(attended[:, :1], tokens.residual[:, :1])[:, 0]
