"""Leaves and blocks shared by every tower: patch tokens, self-attention, MLP, pre-norm transformer block."""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gla_jax.images.resize import bicubic_matrix
from gla_jax.support.arrays import Array, Bool, Float, typed

Activation = Literal["gelu", "quick_gelu", "swiglu"]
PositionResize = Literal["bicubic", "bicubic_antialias"]


class QKV(NamedTuple):
    """Queries, keys and values of one attention layer, heads side by side: three arrays [B t C]."""

    queries: Array
    keys: Array
    values: Array


def quick_gelu(x: Array) -> Array:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x); same shape and dtype."""
    return x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x)


def gelu(x: Array) -> Array:
    """The exact GELU, x * Phi(x), by erf as PyTorch takes it; same shape and dtype."""
    half = jnp.asarray(0.5, x.dtype)
    return x * (half + half * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


def split_heads(x: Float[Array, "B t C"], num_heads: int) -> Float[Array, "B H t K"]:
    """Heads side by side [B t C] to heads as an axis [B H t K]."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(1, 2)


def merge_heads(x: Float[Array, "B H t K"]) -> Float[Array, "B t C"]:
    """The inverse of split_heads."""
    batch, heads, tokens, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, tokens, heads * width)


@typed
def attention_weights(
    queries: Float[Array, "B H t K"],
    keys: Float[Array, "B H s K"],
    mask: Bool[Array, "t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
    precision: str = "highest",
) -> Float[Array, "B H t s"]:
    """softmax(q k^T / sqrt K + bias) in float32 whatever the input's dtype.

    Args:
        queries, keys: one array a head.
        mask: True where a key may be seen.
        bias: added to the scaled scores of every head.
        precision: of the matrix product, in JAX's words.
    """
    return jax.nn.softmax(attention_scores(queries, keys, mask, bias, precision), axis=-1)


@typed
def attention_scores(
    queries: Float[Array, "B H t K"],
    keys: Float[Array, "B H s K"],
    mask: Bool[Array, "t s"] | None = None,
    bias: Float[Array, "t s"] | None = None,
    precision: str = "highest",
) -> Float[Array, "B H t s"]:
    """The scores of which attention_weights takes the softmax, with the same arguments."""
    scores = jnp.einsum("bhtk,bhsk->bhts", queries, keys, precision=precision, preferred_element_type=jnp.float32)
    scores = scores * (queries.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias[None, None]
    if mask is not None:
        scores = jnp.where(mask[None, None], scores, -jnp.inf)
    return scores


@typed
def multi_head_attention(
    qkv: QKV,
    num_heads: int,
    mask: Bool[Array, "t t"] | None = None,
    precision: str = "highest",
    head_by_head: bool = False,
) -> Float[Array, "B t C"]:
    """Softmax attention of a transformer block.

    Args:
        qkv: three arrays [B t C], heads side by side.
        num_heads: H, which divides C.
        mask: True where a key may be seen; None for all.
        precision: of both matrix products, in JAX's words.
        head_by_head: map over heads instead of taking all in one product; the results are the same.
    """

    def together(queries: Array, keys: Array, values: Array) -> Array:
        scores = attention_scores(queries, keys, mask, precision=precision)  # [B H t t]
        # The maximum cancels in the quotient, so no gradient goes through it.
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True))).astype(values.dtype)
        # Append ones to the values: the same product also yields the softmax denominator.
        values = jnp.concatenate([values, jnp.ones_like(values[..., :1])], axis=-1)  # [B H t K+1]
        sums = jnp.einsum("bhts,bhsk->bhtk", weights, values, precision=precision, preferred_element_type=jnp.float32)
        return (sums[..., :-1] / sums[..., -1:]).astype(values.dtype)

    def one_by_one(*split: Array) -> Array:
        # [B H t K] -> [H B 1 t K]: one head at a time, as an axis of length 1.
        by_head = tuple(x.swapaxes(0, 1)[:, :, None] for x in split)
        return jax.lax.map(lambda head: together(*head)[:, 0], by_head).swapaxes(0, 1)

    split = (split_heads(x, num_heads) for x in qkv)
    # On processors the weights of all heads together overflow the cache (1.8 times slower).
    return merge_heads((one_by_one if head_by_head else together)(*split))


@typed
def resize_positions(
    positions: Float[Array, "n C"], grid: tuple[int, int], method: PositionResize = "bicubic", offset: float = 0.0
) -> Float[Array, "m C"]:
    """Resize a square table of patch positions to another grid as PyTorch's interpolate does.

    Args:
        positions: the table, row by row.
        grid: rows and columns of the result; that of the table returns it untouched.
        method: "bicubic" is align_corners=False with a = -0.75; "bicubic_antialias" is PyTorch's antialias=True, whose
            kernel has a = -0.5 (DINOv2 with registers, and timm).
        offset: 0 is interpolate(size=grid); another is interpolate(scale_factor=(grid + offset) / side), as the code of
            DINO and DINOv2 calls it, which samples a little to the left.
    """
    side = round(positions.shape[0] ** 0.5)
    if side * side != positions.shape[0]:
        raise ValueError(f"{positions.shape[0]} position embeddings do not form a square grid")
    if offset and method != "bicubic":
        raise ValueError(f"the position resize {method} has no offset, but {offset} is given")
    if grid == (side, side):
        return positions
    table = positions.astype(jnp.float32).reshape(side, side, -1)
    if offset:
        rows, columns = (bicubic_matrix(side, cells, (cells + offset) / side) for cells in grid)
        resized = jnp.einsum("yr,xc,rcd->yxd", rows, columns, table, precision="highest")
    else:
        kernel, antialias = {"bicubic": ("bicubic-pytorch", False), "bicubic_antialias": ("cubic", True)}[method]
        resized = jax.image.resize(table, (*grid, table.shape[-1]), method=kernel, antialias=antialias)
    return resized.reshape(grid[0] * grid[1], -1).astype(positions.dtype)


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


class PatchTokens(nn.Module):
    """Map pixels [B 3 h w] to tokens [B 1+registers+n C]: patch projection, class token, positions, registers."""

    width: int
    patch_size: int
    grid_side: int
    use_bias: bool
    registers: int = 0
    position_resize: PositionResize = "bicubic"
    position_offset: float = 0.0
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    @nn.compact
    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> Float[Array, "B t C"]:
        batch, channels, height, width = pixels.shape
        p = self.patch_size
        if height % p or width % p:
            raise ValueError(f"a {height}x{width} input does not divide into patches of {p}x{p}")
        rows, columns = height // p, width // p
        # A convolution of stride p is a product with every flattened patch: [B 3 h w] -> [B n 3pp].
        patches = pixels.reshape(batch, channels, rows, p, columns, p).transpose(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(batch, rows * columns, channels * p * p)
        tokens = nn.Dense(
            self.width, use_bias=self.use_bias, dtype=self.dtype, precision=self.precision, name="projection"
        )(patches)

        normal = nn.initializers.normal(0.02)
        cls_token = self.param("class_token", normal, (self.width,))
        cls_position = self.param("class_position", normal, (self.width,))
        positions = self.param("positions", normal, (self.grid_side**2, self.width))
        # A loaded checkpoint holds NumPy arrays, which only jit turns into the arrays of jax that are checked for.
        grid = rows, columns
        positions = resize_positions(jnp.asarray(positions), grid, self.position_resize, self.position_offset)
        tokens = tokens + positions.astype(self.dtype)[None]
        first = [(cls_token + cls_position)[None]]
        if self.registers:
            first.append(self.param("registers", normal, (self.registers, self.width)))
        first = jnp.concatenate(first).astype(self.dtype)
        return jnp.concatenate([jnp.broadcast_to(first[None], (batch, *first.shape)), tokens], axis=1)


class SelfAttention(nn.Module):
    """The four linear maps of an attention layer; the caller computes the attention between them."""

    width: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    def setup(self):
        self.query, self.key, self.value = (
            nn.Dense(self.width, use_bias=self.use_bias, dtype=self.dtype, precision=self.precision) for _ in range(3)
        )
        self.out = nn.Dense(self.width, dtype=self.dtype, precision=self.precision)

    def project_in(self, x: Float[Array, "B t C"]) -> QKV:
        """Queries, keys and values of x, each [B t C]."""
        return QKV(self.query(x), self.key(x), self.value(x))

    def project_out(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        """The output projection."""
        return self.out(x)


class Mlp(nn.Module):
    """The feed-forward half of a block. "swiglu" gates: down(silu(a) * b) with a, b = split(up(x))."""

    hidden: int
    activation: Activation
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"

    @nn.compact
    def __call__(self, x: Float[Array, "B t C"]) -> Float[Array, "B t C"]:
        gated = self.activation == "swiglu"
        width = self.hidden * (2 if gated else 1)
        hidden = nn.Dense(width, dtype=self.dtype, precision=self.precision, name="up")(x)
        if gated:
            # Both halves come from one product.
            gate, hidden = jnp.split(hidden, 2, axis=-1)
            hidden = jax.nn.silu(gate) * hidden
        elif self.activation == "quick_gelu":
            hidden = quick_gelu(hidden)
        else:
            hidden = gelu(hidden)
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
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    head_by_head: bool = False

    def setup(self):
        self.norm_1 = LayerNorm(self.eps, self.dtype)
        self.attention = SelfAttention(self.width, self.qkv_bias, self.dtype, self.precision)
        self.norm_2 = LayerNorm(self.eps, self.dtype)
        self.mlp = Mlp(self.hidden, self.activation, self.dtype, self.precision)
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

    def __call__(self, tokens: Float[Array, "B t C"], mask: Bool[Array, "t t"] | None = None) -> Float[Array, "B t C"]:
        qkv = self.project_in(tokens)
        attended = multi_head_attention(qkv, self.num_heads, mask, self.precision, self.head_by_head)
        return self.feed_forward(tokens + self.project_out(attended))


class Tower(nn.Module):
    """Fields that every tower has.

    spec: sizes of the tower; dtype: of its arrays, statistics stay float32; precision: of every matrix product, in
    JAX's words; head_by_head: map over attention heads instead of taking all in one product.
    """

    spec: Any
    dtype: jnp.dtype = jnp.float32
    precision: str = "highest"
    head_by_head: bool = False


def transformer_blocks(
    tower: Tower, activation: Activation, qkv_bias: bool = True, layer_scale: bool = False
) -> list[Block]:
    """The blocks of a tower, for its setup.

    Args:
        tower: its spec has width, num_heads, mlp_width, layer_norm_eps and depth.
        activation: of the feed-forward halves.
        qkv_bias: queries, keys and values have a bias.
        layer_scale: both halves end with a learned factor per channel.
    """
    spec = tower.spec
    return [
        Block(
            spec.width,
            spec.num_heads,
            spec.mlp_width,
            activation,
            spec.layer_norm_eps,
            qkv_bias,
            layer_scale,
            tower.dtype,
            tower.precision,
            tower.head_by_head,
        )
        for _ in range(spec.depth)
    ]
