"""Tokens whose attention keeps one single key, in whole numbers that add up over blocks, devices, steps and images.

A row keeps the keys that 3.2 of DESIGN says, or with a baseline's own weights those from its cutoff on.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from gla_jax.support.arrays import Array, Bool, Float, Int, typed


class Attended(NamedTuple):
    """Weighted values of some queries; kept: how many keys each row keeps, None where they are not counted."""

    values: Float[Array, "*B C"]
    kept: Int[Array, "*B"] | None = None


class OneKeyCount(NamedTuple):
    """Numbers of tokens that keep one single key, and of all: of any part of an image."""

    one: Int[Array, "*B"]
    tokens: Int[Array, "*B"]

    def merge(self, other: "OneKeyCount") -> "OneKeyCount":
        """The sums of both, as of two passes of a baseline."""
        return OneKeyCount(self.one + other.one, self.tokens + other.tokens)


@typed
def one_key_count(kept: Int[Array, "*B"] | None, valid: Bool[Array, "*#B"]) -> OneKeyCount | None:
    """The counts of every token by itself, 0 for padding; None without `kept`."""
    if kept is None:
        return None
    counted = jnp.broadcast_to(valid, kept.shape)
    return OneKeyCount(((kept == 1) & counted).astype(jnp.int32), counted.astype(jnp.int32))


def image_counts(counts: OneKeyCount | None, images: int) -> "list[OneKeyCount | None]":
    """The counts [B] of a batch, image by image, on the device; on a mesh, from a copy that this process holds."""
    if counts is None:
        return [None] * images
    one, tokens = (leaf.addressable_data(0) for leaf in counts)
    return [OneKeyCount(one[index], tokens[index]) for index in range(images)]


def host_count(counts: OneKeyCount | None, index: int) -> OneKeyCount | None:
    """One of image_counts on the host; waits for the batch."""
    # Taken apart on the device it would be two programs more for every image.
    return counts and OneKeyCount(*(np.asarray(leaf.addressable_data(0))[index] for leaf in counts))
