"""CLIP's two transformers: images opened at the last block, texts read at the end token (Radford et al. 2021)."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gla_jax.images.windows import OPENAI_MEAN, OPENAI_STD, Channels
from gla_jax.support.arrays import Array, Float, Int, typed
from gla_jax.towers.layers import (
    Activation,
    ImageTokens,
    LayerNorm,
    PatchTokens,
    TextSpec,
    Tower,
    VisionSpec,
    multi_head_attention,
    transformer_blocks,
)


@dataclass(frozen=True)
class ClipImageSpec(VisionSpec):
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
    gives_features = False

    @property
    def grid_side(self) -> int:
        """Patches along one side of the pretraining image."""
        return self.image_size // self.patch_size


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
    def encode(self, pixels: Float[Array, "B 3 h w"]) -> ImageTokens:
        """Tokens of every block and q, k, v of the last one; pixels normalised with the spec's mean and std.

        Raises ValueError when the patch size does not divide h and w.
        """
        embedded = self.norm_pre(self.patch_tokens(pixels.astype(self.dtype)))
        # The last block is left open: methods replace its attention.
        outputs = self.run_blocks(embedded, count=self.spec.depth - 1)
        residual = outputs[-1] if outputs else embedded
        return ImageTokens(embedded, outputs, residual, self.blocks[-1].project_in(residual))

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

    def image_feature(self, tokens: ImageTokens) -> Float[Array, "B E"]:
        """The image feature of encoded tokens."""
        attended = multi_head_attention(tokens.qkv, self.spec.num_heads, precision=self.precision)
        return self.project(attended[:, :1], tokens.residual[:, :1])[:, 0]


@dataclass(frozen=True)
class ClipTextSpec(TextSpec):
    """Sizes of a CLIP text tower; end_token is the id whose first occurrence is read."""

    vocabulary: int
    context: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int
    end_token: int
    activation: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def lengths(self, token_ids: Int[np.ndarray, "Q t"]) -> Int[np.ndarray, " Q"]:
        """Up to the end token: the tower is causal."""
        return (token_ids == self.end_token).argmax(1) + 1


class ClipText(Tower):
    """CLIP's text tower: token ids to one feature a text."""

    spec: ClipTextSpec

    def setup(self):
        spec = self.spec
        self.token_embedding = nn.Embed(spec.vocabulary, spec.width, dtype=self.dtype)
        self.positions = self.param("positions", nn.initializers.normal(0.01), (spec.context, spec.width))
        self.blocks = transformer_blocks(self, spec.activation)
        self.norm_final = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.projection = nn.Dense(spec.embed_dim, use_bias=False, dtype=self.dtype, precision=self.precision)

    @typed
    def encode(self, token_ids: Int[Array, "Q t"]) -> tuple[Float[Array, "Q t C"], ...]:
        """The embedded tokens and the output of every block, each [Q t C]."""
        length = token_ids.shape[1]
        if length > self.spec.context:
            raise ValueError(f"{length} tokens are more than the text tower's context of {self.spec.context}")
        tokens = self.token_embedding(token_ids) + self.positions[None, :length].astype(self.dtype)
        causal = jnp.tril(jnp.ones((length, length), bool))
        return tokens, *self.run_blocks(tokens, causal)

    @typed
    def __call__(self, token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """CLIP's text feature: the first end token after the last LayerNorm, projected, not normalised."""
        return self.text_feature(self.norm_final(self.encode(token_ids)[-1]), token_ids)

    def text_feature(self, tokens: Float[Array, "Q t C"], token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """The text feature of tokens after the last LayerNorm."""
        # argmax of a comparison is the first place where it holds.
        end = jnp.argmax(token_ids == self.spec.end_token, axis=1)
        return self.projection(jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0])
