"""The two passes over the buffer in blocks: the same result as the dense form, O(N (D + C)) memory (DESIGN 3.3)."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from gla_jax.attention.anchors import AnchorSums, no_positives, positive_sums
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization, attention_logits, ordinary_logits
from gla_jax.config import MethodConfig, skips_blocks
from gla_jax.support.shapes import Array, Float, typed

State = TypeVar("State")
Part = TypeVar("Part")
# Lower than any attention logit, yet finite: differences of two such maxima stay numbers.
NOTHING = -1e30


class SoftmaxPartial(NamedTuple):
    """A softmax over some of the keys of q queries.

    maximum [q] of the logits seen; total [q]: the sum of exp((a - maximum) / temperature) over the kept ones; gathered
    [q C]: the same sum times the values.
    """

    maximum: Float[Array, " q"]
    total: Float[Array, " q"]
    gathered: Float[Array, "q C"]

    def merge(self, other: "SoftmaxPartial", config: MethodConfig) -> "SoftmaxPartial":
        """The softmax over both sets of keys.

        Where entries are dropped, a side whose maximum is negative kept only its best logits; they fall out when the
        other side has a larger one.
        """
        drops = config.drops_entries
        maximum = jnp.maximum(self.maximum, other.maximum)
        weights = []
        for side in (self, other):
            weight = jnp.exp((side.maximum - maximum) / (config.temperature if drops else 1.0))
            survives = (side.maximum >= 0) | (side.maximum == maximum)
            weights.append(jnp.where(survives, weight, 0.0) if drops else weight)
        return SoftmaxPartial(
            maximum,
            weights[0] * self.total + weights[1] * other.total,
            weights[0][:, None] * self.gathered + weights[1][:, None] * other.gathered,
        )

    def average(self) -> Float[Array, "q C"]:
        """The weighted mean of the values; at least one valid key must have been seen."""
        return self.gathered / self.total[:, None]


@typed
def nothing_gathered(queries: Float[Array, "q D"], width: int) -> SoftmaxPartial:
    """The neutral element of merge, for values of some width."""
    zeros = jnp.zeros_like(queries[:, 0])  # of the queries, so that it is sharded as they are
    return SoftmaxPartial(zeros + NOTHING, zeros, jnp.zeros_like(queries, shape=(queries.shape[0], width)))


def block_logits(
    queries: Float[Array, "q D"], norm: Normalization, keys: Buffer, config: MethodConfig
) -> Float[Array, "q b"]:
    """What the softmax of some queries over one block of keys is taken of; NOTHING where a key is not valid."""
    logits = attention_logits(queries, norm, keys.keys)
    if not config.drops_entries:
        logits = ordinary_logits(logits, config)
    return jnp.where(keys.valid[None], logits, NOTHING)


def softmax_partial(logits: Float[Array, "q b"], keys: Buffer, config: MethodConfig) -> SoftmaxPartial:
    """The softmax over one block of keys."""
    drops, valid = config.drops_entries, keys.valid[None]
    maximum = logits.max(1)
    exponents = logits - maximum[:, None]
    keep = (logits >= jnp.minimum(maximum, 0.0)[:, None]) & valid if drops else valid
    weights = jnp.where(keep, jnp.exp(exponents / config.temperature if drops else exponents), 0.0)
    return SoftmaxPartial(maximum, weights.sum(1), jnp.einsum("qk,kc->qc", weights, keys.values, precision="highest"))


@typed
def gather_block(
    queries: Float[Array, "q D"], norm: Normalization, keys: Buffer, config: MethodConfig
) -> SoftmaxPartial:
    """The softmax of some queries over one block of keys."""
    return softmax_partial(block_logits(queries, norm, keys, config), keys, config)


@typed
def gather_further(
    state: SoftmaxPartial, queries: Float[Array, "q D"], norm: Normalization, keys: Buffer, config: MethodConfig
) -> SoftmaxPartial:
    """The state merged with one more block of keys; on processors nothing more is done where no entry survives.

    The more windows, the larger the shift and the fewer the blocks that a query looks at.
    """
    logits = block_logits(queries, norm, keys, config)

    def merged() -> SoftmaxPartial:
        return state.merge(softmax_partial(logits, keys, config), config)

    if not (config.drops_entries and skips_blocks()):
        return merged()
    best = logits.max(1)
    survives = (best >= 0) | (best >= state.maximum)
    return jax.lax.cond(survives.any(), merged, lambda: state)


def total(partial: Array) -> Array:
    """The sum over all parts of the buffer: there is one."""
    return partial


def every_part(part: Part, step: Callable[[Part], State], merge: Callable[[State, State], State]) -> State:
    """Merge step(part) over all parts of the buffer: there is one."""
    return step(part)


def balanced(length: int, most: int) -> int:
    """The size of as few equal blocks of at most `most` as hold `length`: next to nothing is padding."""
    return -(-length // -(-length // most))


def split_blocks(tree: State, size: int) -> State:
    """Every leaf [N ...] as [blocks size ...], zero-padded (so padded keys are not valid)."""

    def split(leaf: Array) -> Array:
        missing = -leaf.shape[0] % size
        leaf = jnp.pad(leaf, ((0, missing), *((0, 0),) * (leaf.ndim - 1)))
        return leaf.reshape(-1, size, *leaf.shape[1:])

    return jax.tree.map(split, tree)


def fold_keys(further: Callable[[State, Buffer], State], start: State, keys: Buffer) -> State:
    """further(state, block) over all blocks [blocks b ...] of keys; gradients recompute a block's similarities."""

    def body(state: State, block: Buffer) -> tuple[State, None]:
        return further(state, block), None

    return jax.lax.scan(jax.checkpoint(body), start, keys)[0]


@typed
def sum_positives(queries: Float[Array, "q D"], buffer: Buffer, config: MethodConfig) -> AnchorSums:
    """Positives of every query among all keys."""
    size = balanced(queries.shape[0], config.most_of_a_block)
    keys = split_blocks(buffer, balanced(buffer.keys.shape[0], config.most_of_a_block))

    def one_block(block: Array) -> AnchorSums:
        return fold_keys(lambda sums, part: sums.merge(positive_sums(block, part, config)), no_positives(block), keys)

    sums = jax.lax.map(one_block, split_blocks(queries, size))
    return join_blocks(sums, queries.shape[0])


@typed
def gather_partial(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, config: MethodConfig
) -> SoftmaxPartial:
    """The softmax of the queries over one buffer, by a running maximum; partials of other buffers merge with it."""
    size = balanced(queries.shape[0], config.most_of_a_block)
    keys = split_blocks(buffer, balanced(buffer.keys.shape[0], config.most_of_a_block))

    def one_block(block: tuple[Array, Normalization]) -> SoftmaxPartial:
        return fold_keys(
            lambda state, part: gather_further(state, *block, part, config),
            nothing_gathered(block[0], buffer.values.shape[1]),
            keys,
        )

    return join_blocks(jax.lax.map(one_block, split_blocks((queries, norm), size)), queries.shape[0])


@typed
def gather(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, config: MethodConfig
) -> Float[Array, "q C"]:
    """Softmax over the kept keys, times the values."""
    return gather_partial(queries, norm, buffer, config).average()


def join_blocks(tree: State, length: int) -> State:
    """The inverse of split_blocks: leaves [blocks size ...] as [length ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:length], tree)
