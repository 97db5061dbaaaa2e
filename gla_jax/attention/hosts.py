"""The hosts: what each method does in CLIP's last block, and which features GLA compares for it (DESIGN 3.4)."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from gla_jax.config import Host
from gla_jax.shapes import Array, Float, typed
from gla_jax.towers.layers import Heads, attention_weights, merge_heads, split_heads

Side = Literal["queries", "keys"]
Feature = Literal["vfm", "queries", "keys"]


@dataclass(frozen=True)
class HostRow:
    """One host.

    pairs: the softmax attentions that are summed inside a window, (left, right) of left right^T; none is the identity.
    whole_block: residual and MLP of the last block run; features: what GLA compares, "vfm" or sides of CLIP's own heads
    (several: one pass each, summed), empty when GLA is not defined for the host.
    """

    pairs: tuple[tuple[Side, Side], ...]
    whole_block: bool
    features: tuple[Feature, ...]


HOSTS: dict[Host, HostRow] = {
    "clip": HostRow((("queries", "keys"),), whole_block=True, features=()),
    "vanilla": HostRow((("queries", "keys"),), whole_block=False, features=()),
    "maskclip": HostRow((), whole_block=False, features=()),
    # Zhang et al. and Wang et al. publish the two attentions; GLA on top of them is our reading (two passes, summed).
    "sclip": HostRow((("queries", "queries"), ("keys", "keys")), whole_block=True, features=("queries", "keys")),
    "clearclip": HostRow((("queries", "queries"),), whole_block=False, features=("queries",)),
    "proxyclip": HostRow((), whole_block=False, features=("vfm",)),
}


@typed
def window_attention(heads: Heads, host: HostRow, count: int) -> Float[Array, "W t C"]:
    """A host's own attention inside each window, CLS among the keys; count is the number of heads."""
    if not host.pairs:
        return heads.values
    values = split_heads(heads.values, count)
    weights = sum(
        attention_weights(split_heads(getattr(heads, left), count), split_heads(getattr(heads, right), count))
        for left, right in host.pairs
    )
    return merge_heads(jnp.einsum("whts,whsk->whtk", weights.astype(values.dtype), values))
