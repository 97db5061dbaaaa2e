"""The hosts: what each method does in CLIP's last block, and which features GLA compares for it (DESIGN 3.4)."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

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
    (several: one pass each, summed), empty when GLA is not defined for the host; neighbourhood: deviation in patches of
    a Gaussian of the distance that is added before the softmax, None for none.
    """

    pairs: tuple[tuple[Side, Side], ...]
    whole_block: bool
    features: tuple[Feature, ...]
    neighbourhood: float | None = None


HOSTS: dict[Host, HostRow] = {
    "clip": HostRow((("queries", "keys"),), whole_block=True, features=()),
    "vanilla": HostRow((("queries", "keys"),), whole_block=False, features=()),
    "maskclip": HostRow((), whole_block=False, features=()),
    # Zhang et al. and Wang et al. publish the two attentions; GLA on top of them is our reading (two passes, summed).
    "sclip": HostRow((("queries", "queries"), ("keys", "keys")), whole_block=True, features=("queries", "keys")),
    "clearclip": HostRow((("queries", "queries"),), whole_block=False, features=("queries",)),
    "naclip": HostRow((("keys", "keys"),), whole_block=False, features=(), neighbourhood=5.0),
    "proxyclip": HostRow((), whole_block=False, features=("vfm",)),
    # ProxyCLIP's rule with CLIP as its own foundation model: the last block's keys are what it compares.
    "proxyclip-clip": HostRow((), whole_block=False, features=("keys",)),
}


def neighbourhood_bias(tokens: int, deviation: float) -> Float[np.ndarray, "t t"]:
    """exp(-d^2 / (2 deviation^2)) of the distance d between patches of a square window; 0 from and to CLS, token 0.

    NACLIP (Hajimiri et al. 2025) adds it to the scaled scores.
    """
    side = round((tokens - 1) ** 0.5)
    place = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)
    distance = np.square(place[:, None] - place[None]).sum(-1)
    return np.pad(np.exp(distance / (-2 * deviation**2)), ((1, 0), (1, 0))).astype(np.float32)


@typed
def window_attention(heads: Heads, host: HostRow, count: int) -> Float[Array, "W t C"]:
    """A host's own attention inside each window, CLS among the keys; count is the number of heads."""
    if not host.pairs:
        return heads.values
    values = split_heads(heads.values, count)
    bias = None
    if host.neighbourhood is not None:
        bias = jnp.asarray(neighbourhood_bias(heads.values.shape[1], host.neighbourhood))
    weights = sum(
        attention_weights(
            split_heads(getattr(heads, left), count), split_heads(getattr(heads, right), count), bias=bias
        )
        for left, right in host.pairs
    )
    return merge_heads(jnp.einsum("whts,whsk->whtk", weights.astype(values.dtype), values))
