"""The passes over the buffer in blocks: the same result as the dense form, O(N (D + C)) memory (DESIGN 3.3)."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from gla_jax.attention.anchors import AnchorSums, positive_sums, zero_sums
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import NOTHING, Logits, Normalization, attention_logits, ordinary_logits
from gla_jax.attention.one_key import Attended
from gla_jax.attention.pooling import PooledSums, no_sums, pooled_sums
from gla_jax.attention.products import for_anchors, for_attention, similarities, value_sums
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Float, Int, typed

ALIGNED, FROM_SIZE = 16, 2048  # entries of a block, from this largest block on
State = TypeVar("State")
Part = TypeVar("Part")


class SoftmaxPartial(NamedTuple):
    """A softmax over some of the keys of q queries.

    maximum [q] of the logits seen; total [q]: the sum of exp((a - maximum) / temperature) over the kept ones; weighted
    [q C]: the same sum times the values; kept [q]: the number of kept ones, None where it is not counted.
    """

    maximum: Float[Array, " q"]
    total: Float[Array, " q"]
    weighted: Float[Array, "q C"]
    kept: Int[Array, " q"] | None = None

    def merge(self, other: "SoftmaxPartial", method: MethodConfig) -> "SoftmaxPartial":
        """The softmax over both sets of keys.

        Where entries are dropped, a side whose maximum is negative kept only its best logits; they fall out when the
        other side has a larger one.
        """
        drops = method.drops_entries
        maximum = jnp.maximum(self.maximum, other.maximum)
        weights, kept = [], []
        # One comparison for both: a maximum that is worked out twice need not equal itself.
        first, last = self.maximum >= other.maximum, self.maximum <= other.maximum
        for side, largest in ((self, first), (other, last | ~first)):
            # Rescale to the common maximum, as in any online softmax.
            weight = jnp.exp((side.maximum - maximum) / (method.temperature if drops else 1.0))
            # Entries >= 0 always count; negative ones only where they are the maximum of the whole row.
            survives = (side.maximum >= 0) | largest
            weights.append(jnp.where(survives, weight, 0.0) if drops else weight)
            if side.kept is not None:
                kept.append(jnp.where(survives, side.kept, 0) if drops else side.kept)
        return SoftmaxPartial(
            maximum,
            weights[0] * self.total + weights[1] * other.total,
            weights[0][:, None] * self.weighted + weights[1][:, None] * other.weighted,
            sum(kept) if kept else None,
        )

    def average(self) -> Float[Array, "q C"]:
        """The weighted mean of the values; at least one valid key must have been seen."""
        return self.weighted / self.total[:, None]


@typed
def empty_softmax(queries: Float[Array, "q D"], width: int, counting: bool = False) -> SoftmaxPartial:
    """The softmax over no keys, which merge leaves as they are; width: C of the values; counting: kept keys too."""
    zeros = jnp.zeros_like(queries[:, 0])  # made from the queries, so that it is sharded as they are
    kept = zeros.astype(jnp.int32) if counting else None
    return SoftmaxPartial(zeros + NOTHING, zeros, jnp.zeros_like(queries, shape=(queries.shape[0], width)), kept)


def block_logits(similarity: Float[Array, "q b"], norm: Normalization, keys: Buffer, method: MethodConfig) -> Logits:
    """Logits of some queries over one block of keys, before the softmax; NOTHING where a key is not valid."""
    valid, (logits, kept, best) = keys.valid[None], attention_logits(similarity, norm, keys.valid)
    if method.drops_entries:
        return Logits(jnp.where(valid, logits, NOTHING), kept, best)
    logits = jnp.where(valid, ordinary_logits(logits, method), NOTHING)
    return Logits(logits, jnp.broadcast_to(valid, logits.shape), jax.lax.stop_gradient(logits.max(1)))


def softmax_partial(block: Logits, keys: Buffer, method: MethodConfig, counting: bool = False) -> SoftmaxPartial:
    """The softmax over one block of keys; counting: the kept ones too."""
    logits, kept, maximum = block
    # Any number in its place gives the same mean, so its gradient is 0; JAX's own is 0 / 0 where the compiler rounds
    # the logits of the maximum and those it is compared with in the backward pass differently.
    exponents = logits - maximum[:, None]
    weights = jnp.where(kept, jnp.exp(exponents / method.temperature if method.drops_entries else exponents), 0.0)
    weights = weights if keys.weights is None else weights * keys.weights[None]
    count = kept.sum(1, dtype=jnp.int32) if counting else None
    return SoftmaxPartial(maximum, weights.sum(1), value_sums(weights, for_attention(keys, method), method), count)


@typed
def attend_next_block(
    state: SoftmaxPartial, queries: Float[Array, "q D"], norm: Normalization, keys: Buffer, method: MethodConfig
) -> SoftmaxPartial:
    """The state merged with one more block of keys.

    With method.skip_blocks the values of a block are left alone where no entry survives: the more windows, the larger
    the shift and the fewer the blocks that a query looks at.

    Args:
        state: the softmax over the blocks so far; with kept keys that are counted, so is the result.
        queries: of one block of queries.
        norm: shift and scale of those queries.
        keys: one block of keys and values.
        method: which entries are dropped, and whether blocks are skipped.
    """
    similarity = similarities(queries, for_attention(keys, method))

    def merged() -> SoftmaxPartial:
        block = block_logits(similarity, norm, keys, method)
        return state.merge(softmax_partial(block, keys, method, counting=state.kept is not None), method)

    if not (method.drops_entries and method.skip_blocks):
        return merged()
    # A block matters if it has an entry >= 0 or a new maximum for any query; else its weights would all be 0.
    best = block_logits(similarity, norm, keys, method).best
    survives = (best >= 0) | (best >= state.maximum)
    return jax.lax.cond(survives.any(), merged, lambda: state)


def sum_over_shards(partial: Array) -> Array:
    """Sum over the shards of the buffer: there is one."""
    return partial


def fold_shards(part: Part, step: Callable[[Part], State], merge: Callable[[State, State], State]) -> State:
    """Merge step(part) over the shards of the buffer: there is one."""
    return step(part)


def shard_index() -> int:
    """Index of this device's shard: there is one."""
    return 0


def balanced(length: int, max_size: int) -> int:
    """Block size that splits `length` into the fewest equal blocks of at most `max_size`, so that little is padding.

    Larger ones than a processor's are multiples of ALIGNED: a GPU's fast products want rows of whole 16 bytes.
    """
    size = -(-length // -(-length // max_size))
    return size if max_size < FROM_SIZE else min(-(-size // ALIGNED) * ALIGNED, max_size)


def split_blocks(tree: State, size: int) -> State:
    """Every leaf [N ...] as [blocks size ...], zero-padded (so padded keys are not valid)."""

    def split(leaf: Array) -> Array:
        missing = -leaf.shape[0] % size
        leaf = jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))
        return leaf.reshape(len(leaf) // size, size, *leaf.shape[1:])

    return jax.tree.map(split, tree)


def key_blocks(buffer: Buffer, method: MethodConfig) -> Buffer:
    """The buffer in blocks of keys: leaves [blocks b ...]."""
    return split_blocks(buffer, balanced(buffer.keys.shape[0], method.max_block))


def fold_keys(further: Callable[[State, Buffer], State], start: State, keys: Buffer) -> State:
    """further(state, block) over all blocks [blocks b ...] of keys; gradients recompute a block's similarities."""

    def body(state: State, block: Buffer) -> tuple[State, None]:
        return further(state, block), None

    # Without checkpoint the gradient would keep the similarities of all blocks: an N x N array.
    return jax.lax.scan(jax.checkpoint(body), start, keys)[0]


@typed
def sum_positives(queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig) -> AnchorSums:
    """Positives of every query among all keys."""
    size = balanced(queries.shape[0], method.max_block)
    keys = key_blocks(for_anchors(buffer, method), method)

    def one_block(block: Array) -> AnchorSums:
        return fold_keys(lambda sums, part: sums.merge(positive_sums(block, part, method)), zero_sums(block), keys)

    sums = jax.lax.map(one_block, split_blocks(queries, size))
    return join_blocks(sums, queries.shape[0])


@typed
def attend_partial(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, method: MethodConfig, counting: bool = False
) -> SoftmaxPartial:
    """The softmax of the queries over one buffer, by a running maximum; partials of other buffers merge with it.

    Args:
        queries: of attention.
        norm: their shift and scale.
        buffer: keys and values.
        method: which entries are dropped.
        counting: the kept keys of every query too.
    """
    size = balanced(queries.shape[0], method.max_block)
    keys = key_blocks(for_attention(buffer, method), method)

    def one_block(block: tuple[Array, Normalization]) -> SoftmaxPartial:
        return fold_keys(
            lambda state, part: attend_next_block(state, *block, part, method),
            empty_softmax(block[0], buffer.values.shape[1], counting),
            keys,
        )

    return join_blocks(jax.lax.map(one_block, split_blocks((queries, norm), size)), queries.shape[0])


@typed
def attend(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, method: MethodConfig, counting: bool = False
) -> Attended:
    """Softmax over the kept keys, or a baseline's own weights, times the values; arguments as in attend_partial."""
    if method.weighs_by_similarity:
        return attended(pool_partial(queries, buffer, method, counting))
    return attended(attend_partial(queries, norm, buffer, method, counting))


def attended(sums: SoftmaxPartial | PooledSums) -> Attended:
    """The values of rows that have seen all keys, and the keys that they keep."""
    return Attended(sums.average(), sums.kept)


@typed
def pool_partial(
    queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig, counting: bool = False
) -> PooledSums:
    """The weighted sums of the queries over one buffer; those over other buffers add up with them.

    Args:
        queries: of attention.
        buffer: keys and values.
        method: the baseline.
        counting: the keys of every query from the cutoff on too.
    """
    size = balanced(queries.shape[0], method.max_block)
    keys = key_blocks(for_attention(buffer, method), method)

    def one_block(block: Array) -> PooledSums:
        start = no_sums(block, buffer.values.shape[1], counting)
        return fold_keys(lambda sums, part: sums.merge(pooled_sums(block, part, method, counting)), start, keys)

    return join_blocks(jax.lax.map(one_block, split_blocks(queries, size)), queries.shape[0])


def join_blocks(tree: State, length: int) -> State:
    """The inverse of split_blocks: leaves [blocks size ...] as [length ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:length], tree)
