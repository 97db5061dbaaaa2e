"""CLIP's text transformer (Radford et al. 2021): causal, read at the end-of-text token."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from gla_jax.support.shapes import Array, Float, Int, typed
from gla_jax.towers.layers import Activation, LayerNorm, Tower, transformer_blocks


@dataclass(frozen=True)
class ClipTextSpec:
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
        outputs = [tokens]
        for block in self.blocks:
            outputs.append(block(outputs[-1], causal))
        return tuple(outputs)

    @typed
    def __call__(self, token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """CLIP's text feature: the first end token after the last LayerNorm, projected, not normalised."""
        return self.text_feature(self.norm_final(self.encode(token_ids)[-1]), token_ids)

    def text_feature(self, tokens: Float[Array, "Q t C"], token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """The text feature of tokens after the last LayerNorm."""
        # argmax of a comparison is the first place where it holds.
        end = jnp.argmax(token_ids == self.spec.end_token, axis=1)
        return self.projection(jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0])
