"""The passes over a buffer that is split over the devices of a mesh: each device keeps its windows' queries, and the
shards of keys and values go round a ring (DESIGN 3.3). Runs inside jax.shard_map over the axis `window`.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

from gla_jax.attention import blockwise
from gla_jax.attention.anchors import AnchorSums
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization
from gla_jax.attention.one_key import Attended
from gla_jax.attention.pooling import PooledSums
from gla_jax.config import MethodConfig
from gla_jax.support.arrays import Array, Float, typed

WINDOW_AXIS = "window"
State = TypeVar("State")
Part = TypeVar("Part")


def sum_over_shards(partial: Array) -> Array:
    """Sum over the shards: one a device."""
    return jax.lax.psum(partial, WINDOW_AXIS)


def shard_index() -> Array:
    """Index of this device's shard."""
    return jax.lax.axis_index(WINDOW_AXIS)


def fold_shards(part: Part, step: Callable[[Part], State], merge: Callable[[State, State], State]) -> State:
    """Merge step(part) over the parts of all devices, which hold one of them at a time."""
    devices = jax.lax.axis_size(WINDOW_AXIS)
    ring = [(device, (device + 1) % devices) for device in range(devices)]

    def pass_on(part: Part) -> Part:
        return jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, WINDOW_AXIS, ring), part)

    def body(carry: tuple[State, Part], _: None) -> tuple[tuple[State, Part], None]:
        state, part = carry
        # The transfer runs while the step computes.
        following = pass_on(part)
        return (merge(state, step(part)), following), None

    # The first step has the device's own shard, which initialises the state.
    (state, _), _ = jax.lax.scan(body, (step(part), pass_on(part)), length=devices - 1)
    return state


@typed
def sum_positives(queries: Float[Array, "q D"], buffer: Buffer, method: MethodConfig) -> AnchorSums:
    """Positives of this device's queries among the keys of all devices."""
    keys = buffer._replace(values=buffer.values[:, :0])  # values stay at home
    return fold_shards(keys, lambda part: blockwise.sum_positives(queries, part, method), AnchorSums.merge)


@typed
def attend(
    queries: Float[Array, "q D"], norm: Normalization, buffer: Buffer, method: MethodConfig, counting: bool = False
) -> Attended:
    """blockwise.attend over the keys of all devices."""
    if method.weighs_by_similarity:
        sums = fold_shards(
            buffer, lambda part: blockwise.pool_partial(queries, part, method, counting), PooledSums.merge
        )
        return blockwise.attended(sums)
    partial = fold_shards(
        buffer,
        lambda part: blockwise.attend_partial(queries, norm, part, method, counting),
        lambda a, b: a.merge(b, method),
    )
    return blockwise.attended(partial)
