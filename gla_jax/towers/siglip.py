"""SigLIP's two transformers (Zhai et al. 2023; SigLIP 2: Tschannen et al. 2025): no CLS token, a head that pools."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from gla_jax.images.windows import Channels
from gla_jax.support.arrays import Array, Float, Int
from gla_jax.towers.activations import Activation
from gla_jax.towers.attention import QKV, multi_head_attention
from gla_jax.towers.joint import ImageTokens, ImageTower, TextTower
from gla_jax.towers.layers import (
    LayerNorm,
    Mlp,
    SelfAttention,
    TextSpec,
    VisionSpec,
    transformer_blocks,
)
from gla_jax.towers.patches import patch_tokens
from gla_jax.towers.positions import PositionResize

HALF = (0.5, 0.5, 0.5)  # mean and std of the pixels of every published model


@dataclass(frozen=True)
class SiglipImageSpec(VisionSpec):
    """Sizes of a SigLIP image tower and how its pixels are normalised; embed_dim is its width.

    position_resize None is "bicubic", as transformers resizes (see resize_positions).
    """

    activation: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    pixel_mean: Channels = HALF
    pixel_std: Channels = HALF
    position_resize: PositionResize | None = None
    gives_features = False
    prefix_tokens = 0

    @property
    def embed_dim(self) -> int:
        """E: the head has no projection to another width."""
        return self.width

    @property
    def joint_weights(self) -> int:
        """Two maps of the head's attention and its MLP."""
        return 2 * self.width**2 + 2 * self.width * self.mlp_width


class PoolingHead(nn.Module):
    """SigLIP's attention pooling: a learned query attends over all tokens, then out_proj and an MLP with residual."""

    spec: SiglipImageSpec
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    def setup(self):
        spec = self.spec
        self.probe = self.param("probe", nn.initializers.normal(0.02), (spec.width,))
        self.attention = SelfAttention(spec.width, dtype=self.dtype, precision=self.precision)
        self.norm = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.mlp = Mlp(spec.mlp_width, spec.activation, self.dtype, self.precision)

    def pool(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B C"]:
        """One feature of all tokens."""
        probe = jnp.broadcast_to(self.probe.astype(self.dtype), (len(tokens), 1, self.spec.width))
        attention = self.attention
        qkv = QKV(attention.query(probe), attention.key(tokens), attention.value(tokens))  # one query, t keys
        return self._joint(multi_head_attention(qkv, self.spec.num_heads, precision=self.precision))[:, 0]

    def each(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The feature of every token alone: over one key the softmax is 1, so the probe does not matter."""
        return self._joint(self.attention.value(tokens))

    def _joint(self, attended: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        out = self.attention.project_out(attended)
        return out + self.mlp(self.norm(out))


class SiglipImage(ImageTower):
    """SigLIP's image tower.

    That the head takes each token as an image of its own is our reading (docs/METHODS.md).
    """

    spec: SiglipImageSpec

    def setup(self):
        spec = self.spec
        resize = spec.position_resize or "bicubic"
        self.patch_tokens = patch_tokens(self, class_token=False, position_resize=resize)
        self.blocks = transformer_blocks(self)
        self.norm_post = LayerNorm(spec.layer_norm_eps, self.dtype)
        self.head = PoolingHead(spec, self.dtype, self.precision)

    def to_joint(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t E"]:
        """Tokens of the last block in the joint space: post_layernorm, the head on each."""
        return self.head.each(self.norm_post(tokens))

    def image_feature(self, tokens: ImageTokens) -> Float[Array, "B E"]:
        """All encoded tokens after the whole last block, pooled."""
        attended = multi_head_attention(tokens.qkv, self.spec.num_heads, precision=self.precision)
        return self.head.pool(self.norm_post(self.last_tokens(attended, tokens.residual)))


@dataclass(frozen=True)
class SiglipTextSpec(TextSpec):
    """Sizes of a SigLIP text tower; texts end with end_token and are filled up to the context with pad_token."""

    embed_dim: int
    end_token: int
    pad_token: int
    activation: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    def lengths(self, token_ids: Int[np.ndarray, "Q t"]) -> Int[np.ndarray, " Q"]:
        """All of them: every token sees every other one, the padding too."""
        return np.full(len(token_ids), token_ids.shape[1])


class SiglipText(TextTower):
    """SigLIP's text tower: token ids, filled up to the context, to one feature a text."""

    spec: SiglipTextSpec

    def setup(self):
        super().setup()
        self.projection = nn.Dense(self.spec.embed_dim, dtype=self.dtype, precision=self.precision)

    def text_feature(self, tokens: Float[Array, "Q t C"], _token_ids: Int[Array, "Q t"]) -> Float[Array, "Q E"]:
        """The text feature of tokens after the last LayerNorm: the last place, whatever stands there."""
        return self.projection(tokens[:, -1])
