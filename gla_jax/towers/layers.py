"""Leaves and blocks shared by every tower: self-attention, MLP, pre-norm transformer block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import TowerAttention
from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD
from gla_jax.support.arrays import Array, Bool, Float, Int
from gla_jax.towers.activations import ACTIVATIONS, Activation
from gla_jax.towers.attention import QKV, Rotation, multi_head_attention

Params = Mapping[str, Any]


class BlocksSpec:
    """Facts of a tower's blocks that its spec need not state; a spec whose tower differs states its own.

    Every spec has width, depth, num_heads, mlp_width and layer_norm_eps. activation: of the feed-forward halves.
    qkv_bias: queries, keys and values have a bias; key_bias: keys have one where the others do. layer_scale: both
    halves of a block end with a learned factor per channel.
    """

    activation = "gelu"
    qkv_bias = key_bias = True
    layer_scale = False


@dataclass(frozen=True)
class VisionSpec(BlocksSpec):
    """Sizes of an image tower, and facts that a spec whose tower differs states anew.

    image_size is that of pretraining. registers: tokens besides CLS that are no patches. pixel_mean, pixel_std: the
    tower's pixels are normalised with them. gives_features: its patch tokens can be compared, as a foundation model's.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    # Not fields here: config.json holds one of them only for specs that declare it as a field.
    registers = 0
    pixel_mean, pixel_std = IMAGENET_MEAN, IMAGENET_STD
    gives_features = True

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first patch: CLS and registers."""
        return 1 + self.registers

    @property
    def joint_weights(self) -> int:
        """Weights of the maps behind the last block that take a token to the joint space, of a tower of values."""
        return self.width * self.embed_dim


@dataclass(frozen=True)
class TextSpec(BlocksSpec):
    """Sizes of a text tower; every spec has embed_dim and end_token too.

    end_token: the id that ends every text, None where none does. pad_token: the id behind it.
    """

    vocabulary: int
    context: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    pad_token = 0

    def lengths(self, token_ids: Int[np.ndarray, "Q t"]) -> Int[np.ndarray, " Q"]:
        """The tokens of each text that its feature depends on; what stands behind them may be cut off."""
        raise NotImplementedError


class LayerNorm(nn.Module):
    """LayerNorm with float32 two-pass statistics whatever the dtype of the tower.

    Linen's own takes the variance as E[x^2] - E[x]^2 by default, which loses the digits parity is measured in, and
    mixes dtypes implicitly.
    """

    eps: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        # Two passes: E[x^2] - E[x]^2 would cancel digits where the mean is large.
        centred = x - x.mean(-1, keepdims=True)
        normal = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        leading = (1,) * (x.ndim - 1)
        scale, bias = (leaf.astype(jnp.float32).reshape(*leading, -1) for leaf in (scale, bias))
        return (normal * scale + bias).astype(self.dtype)


class SelfAttention(nn.Module):
    """The four linear maps of an attention layer; the caller computes the attention between them.

    three_products: queries, keys and values each by a product that adds its bias, which GPUs do best.
    """

    width: int
    use_bias: bool = True
    key_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    three_products: bool = False

    def setup(self):
        self.query, self.key, self.value = (
            nn.Dense(self.width, use_bias=use_bias, dtype=self.dtype, precision=self.precision)
            for use_bias in (self.use_bias, self.use_bias and self.key_bias, self.use_bias)
        )
        self.out = nn.Dense(self.width, dtype=self.dtype, precision=self.precision)

    def project_in(self, x: Float[Array, "B t C"]) -> QKV:
        """Queries, keys and values of x, each [B t C]."""
        inputs = x, x, x
        if self.three_products:
            # Of three products that share an operand XLA makes one, and a pass over memory for each bias.
            inputs = jax.lax.optimization_barrier(inputs)
        return QKV(*(project(own) for project, own in zip((self.query, self.key, self.value), inputs, strict=True)))

    def project_out(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The output projection."""
        return self.out(x)


class Mlp(nn.Module):
    """The feed-forward half of a block. "swiglu" gates: down(silu(a) * b) with a, b = split(up(x)).

    hidden_apart: the hidden units become an array between both products on every platform.
    """

    hidden: int
    activation: Activation
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    hidden_apart: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        gated = self.activation == "swiglu"
        width = self.hidden * (2 if gated else 1)
        hidden = nn.Dense(width, dtype=self.dtype, precision=self.precision, name="up")(x)
        if gated:
            # Both halves come from one product.
            gate, hidden = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * hidden
        else:
            hidden = ACTIVATIONS[self.activation](hidden)
        if self.hidden_apart:
            # XLA for TPUs would else compute the activation inside the product below: as many bytes, more to compile.
            hidden = jax.lax.optimization_barrier(hidden)
        return nn.Dense(x.shape[-1], dtype=self.dtype, precision=self.precision, name="down")(hidden)


class LayerScale(nn.Module):
    """A learned factor per channel (DINOv2)."""

    @nn.compact
    def __call__(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        factor = self.param("factor", nn.initializers.ones, (x.shape[-1],))
        return x * factor.astype(x.dtype)[None, None]


class Block(nn.Module):
    """Pre-norm transformer block, in pieces so that the last block of CLIP can be opened between them."""

    width: int
    num_heads: int
    hidden: int
    activation: Activation
    eps: float
    qkv_bias: bool = True
    layer_scale: bool = False
    key_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    attention_form: TowerAttention = "together"

    def setup(self):
        self.norm_1 = LayerNorm(self.eps, self.dtype)
        self.attention = SelfAttention(
            self.width, self.qkv_bias, self.key_bias, self.dtype, self.precision, self.attention_form == "cudnn"
        )
        self.norm_2 = LayerNorm(self.eps, self.dtype)
        self.mlp = Mlp(self.hidden, self.activation, self.dtype, self.precision, self.attention_form == "chunked")
        if self.layer_scale:
            self.scale_1, self.scale_2 = LayerScale(), LayerScale()

    def project_in(self, tokens: Float[Array, "B t C"]) -> QKV:
        """Queries, keys and values of the normalised tokens."""
        return self.attention.project_in(self.norm_1(tokens))

    def project_out(self, attended: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The output projection of attended values, without the residual."""
        out = self.attention.project_out(attended)
        return self.scale_1(out) if self.layer_scale else out

    def feed_forward(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The second half of the block, residual included."""
        out = self.mlp(self.norm_2(tokens))
        return tokens + (self.scale_2(out) if self.layer_scale else out)

    def attend(
        self, tokens: Float[Array, "B t C"], mask: Bool[Array, "*B t t"] | None = None, rotation: Rotation | None = None
    ) -> Float[Array, "B t C"]:
        """The first half of the block, residual included; rotation: of queries and keys by position."""
        qkv = self.project_in(tokens)
        if rotation is not None:
            qkv = QKV(rotation.turn(qkv.queries), rotation.turn(qkv.keys), qkv.values)
        attended = multi_head_attention(qkv, self.num_heads, mask, self.precision, self.attention_form)
        return tokens + self.project_out(attended)

    def mlp_input(self, tokens: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The input of the block's MLP."""
        return self.norm_2(self.attend(tokens))

    def __call__(
        self, tokens: Float[Array, "B t C"], mask: Bool[Array, "*B t t"] | None = None, rotation: Rotation | None = None
    ) -> Float[Array, "B t C"]:
        return self.feed_forward(self.attend(tokens, mask, rotation))


class Tower(nn.Module):
    """Fields that every tower has.

    spec: sizes of the tower; dtype: of its arrays, statistics stay float32; precision: of every matrix product, in
    JAX's words; attention_form: of multi_head_attention.
    """

    spec: Any
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    attention_form: TowerAttention = "together"

    def run_blocks(
        self,
        tokens: Float[Array, "B t C"],
        mask: Bool[Array, "*B t t"] | None = None,
        count: int | None = None,
        rotation: Rotation | None = None,
    ) -> tuple[Float[Array, "B t C"], ...]:
        """The output of each of the first `count` blocks, None for all; mask and rotation as Block.attend has them.

        Stacked parameters (stack_blocks) run as one scanned block. The last output is what the scan carries, not a row
        of its stacked outputs, so that XLA drops those where only the last is read.
        """
        if not self.has_variable("params", STACKED):
            outputs = [tokens]
            for block in self.blocks[:count]:
                outputs.append(block(outputs[-1], mask, rotation))
            return tuple(outputs[1:])
        block = self._detached_block()

        def step(tokens: Array, params: Params) -> tuple[Array, Array]:
            tokens = block.apply({"params": params}, tokens, mask, rotation)
            return tokens, tokens

        last, outputs = jax.lax.scan(step, tokens, self.get_variable("params", STACKED))
        return *outputs[:-1], last

    def of_block(self, index: int, method: str, *inputs: Array) -> Any:
        """A method of one block, whose parameters may be stacked with others'; not for towers with rotations."""
        if not self.has_variable("params", STACKED):
            return getattr(self.blocks[index], method)(*inputs)
        params = jax.tree.map(lambda leaf: leaf[index], self.get_variable("params", STACKED))
        return self._detached_block().apply({"params": params}, *inputs, method=method)

    def close_last(self, tokens: Float[Array, "B t C"], attended: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The last block from its input and the output of its attention, then the tower's last LayerNorm."""
        last = self.spec.depth - 1
        return self.norm(self.of_block(last, "feed_forward", tokens + self.of_block(last, "project_out", attended)))

    def _detached_block(self) -> "Block":
        """A block that takes its parameters by apply."""
        return self.blocks[0].clone(parent=None, name=None)


def transformer_blocks(tower: Tower) -> list[Block]:
    """The blocks of a tower, for its setup."""
    spec = tower.spec
    return [
        Block(
            spec.width,
            spec.num_heads,
            spec.mlp_width,
            spec.activation,
            spec.layer_norm_eps,
            spec.qkv_bias,
            spec.layer_scale,
            spec.key_bias,
            tower.dtype,
            tower.precision,
            tower.attention_form,
        )
        for _ in range(spec.depth)
    ]


STACKED = "blocks"  # in place of blocks_0, blocks_1, ...


def stack_blocks(params: Params, count: int) -> Params:
    """A tower's parameters with those of its first `count` blocks stacked, [count ...] each, as run_blocks scans them.

    NumPy arrays stay on the host.
    """
    if not count or STACKED in params:
        return params
    names = [f"{STACKED}_{index}" for index in range(count)]
    stack = np.stack if isinstance(jax.tree.leaves(params)[0], np.ndarray) else jnp.stack
    stacked = jax.tree.map(lambda *leaves: stack(leaves), *(dict(params[name]) for name in names))
    return {name: part for name, part in params.items() if name not in names} | {STACKED: stacked}


def unstack_blocks(params: Params) -> Params:
    """The inverse of stack_blocks."""
    if STACKED not in params:
        return params
    rest = {name: part for name, part in params.items() if name != STACKED}
    count = len(jax.tree.leaves(params[STACKED])[0])
    blocks = {f"{STACKED}_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params[STACKED]) for i in range(count)}
    return rest | blocks
