"""The shared half of models that compare images with texts, CLIP and its kind: an image tower left open, a text tower.

A subclass owns the layers of its own (setup) and says how its tokens are embedded and read.
"""

from typing import NamedTuple

import flax.linen as nn

from gla_jax.support.arrays import Array, Bool, Float, Int, typed
from gla_jax.towers.attention import QKV
from gla_jax.towers.layers import LayerNorm, Tower, transformer_blocks


class ImageTokens(NamedTuple):
    """Tokens of an image tower up to its last attention, prefix tokens first.

    embedded [B t C]: the input of the first block. blocks: the output of every block but the last, each [B t C].
    residual: the input of the last block (blocks[-1]). qkv: queries, keys and values of the last block.
    """

    embedded: Array
    blocks: tuple[Array, ...]
    residual: Array
    qkv: QKV


class ImageTower(Tower):
    """An image tower of values: encode() up to q, k, v of the last block; project() from there to the joint space.

    A subclass has patch_tokens and blocks, and defines to_joint and image_feature.
    """

    def embed(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B t C"]:
        """The input of the first block."""
        return self.patch_tokens(pixels.astype(self.dtype))

    @typed
    def encode(self, pixels: Float[Array, "B 3 h w"]) -> ImageTokens:
        """Tokens of every block and q, k, v of the last one; pixels normalised with the spec's mean and std.

        Raises ValueError when the patch size does not divide h and w.
        """
        embedded = self.embed(pixels)
        # The last block is left open: methods replace its attention.
        outputs = self.run_blocks(embedded, count=self.spec.depth - 1)
        residual = outputs[-1] if outputs else embedded
        return ImageTokens(embedded, outputs, residual, self.blocks[-1].project_in(residual))

    def last_tokens(
        self, attended: Float[Array, "B t C"], residual: Float[Array, "B t C"] | None
    ) -> Float[Array, "B t C"]:
        """The output of the last block, from that of its attention; without residual the block is that alone."""
        tokens = self.blocks[-1].project_out(attended)
        return tokens if residual is None else self.blocks[-1].feed_forward(residual + tokens)

    @typed
    def project(
        self, attended: Float[Array, "B t C"], residual: Float[Array, "B t C"] | None = None
    ) -> Float[Array, "B t E"]:
        """Project the last attention's output to the joint space, token by token.

        With residual the whole last block runs (residual and MLP). Without it the block is its attention alone, as
        ClearCLIP (Lan et al. 2024) found better for dense features.
        """
        return self.to_joint(self.last_tokens(attended, residual))

    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B E"]:
        """The image feature, not normalised."""
        return self.image_feature(self.encode(pixels))


class TextTower(Tower):
    """A text tower: token ids to one feature a text.

    A subclass defines text_feature; has_position_table is False for one that embeds places otherwise.
    """

    has_position_table = True

    def setup(self):
        spec = self.spec
        self.token_embedding = nn.Embed(spec.vocabulary, spec.width, dtype=self.dtype)
        if self.has_position_table:
            self.positions = self.param("positions", nn.initializers.normal(0.01), (spec.context, spec.width))
        self.blocks = transformer_blocks(self)
        self.norm_final = LayerNorm(spec.layer_norm_eps, self.dtype)

    def embed(self, token_ids: Int[Array, "Q t"]) -> Float[Array, "Q t C"]:
        """The input of the first block."""
        return self.token_embedding(token_ids) + self.positions[None, : token_ids.shape[1]].astype(self.dtype)

    def mask(self, token_ids: Int[Array, "Q t"]) -> Bool[Array, "*B t t"] | None:
        """True where a token sees another; None where each sees all."""
        return None

    @typed
    def encode(self, token_ids: Int[Array, "Q t"]) -> tuple[Float[Array, "Q t C"], ...]:
        """The embedded tokens and the output of every block, each [Q t C]. Raises ValueError for too many tokens."""
        length = token_ids.shape[1]
        if length > self.spec.context:
            raise ValueError(f"{length} tokens are more than the text tower's context of {self.spec.context}")
        tokens = self.embed(token_ids)
        return tokens, *self.run_blocks(tokens, self.mask(token_ids))

    @typed
    def __call__(self, token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """The text feature, not normalised."""
        return self.text_feature(self.norm_final(self.encode(token_ids)[-1]), token_ids)
