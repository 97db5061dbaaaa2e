"""The hosts: what each method does in CLIP's last block, and which features GLA compares for it (DESIGN 3.4).

A new host is one row of HOSTS: its names, the methods and whatever compares hosts follow.
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from gla_jax.support.shapes import Array, Float, typed
from gla_jax.towers.layers import Heads, attention_weights, merge_heads, split_heads

Side = Literal["queries", "keys"]
Feature = Literal["vfm", "queries", "keys"]


@dataclass(frozen=True)
class HostRow:
    """One host.

    title: its name in figures; pairs: the softmax attentions that are summed inside a window, (left, right) of
    left right^T, none is the identity; whole_block: residual and MLP of the last block run; gla: the method that is GLA
    on this host, None where GLA is not defined, and features: what it compares, "vfm" or sides of CLIP's own heads
    (several: one pass each, summed); from_neighbours: its anchors start from means over neighbours, not from tokens;
    neighbourhood: deviation in patches of a Gaussian of the distance that is added before the softmax, None for none.
    """

    title: str
    pairs: tuple[tuple[Side, Side], ...]
    whole_block: bool
    gla: str | None = None
    features: tuple[Feature, ...] = ()
    from_neighbours: bool = False
    neighbourhood: float | None = None

    @property
    def gathers_by_features(self) -> bool:
        """Whether the host as published gathers by the similarity of its features, without queries and keys."""
        return bool(self.features) and not self.pairs


Q, K = "queries", "keys"
HOSTS: dict[str, HostRow] = {
    "clip": HostRow("CLIP", ((Q, K),), whole_block=True),
    "vanilla": HostRow("CLIP, attention only", ((Q, K),), whole_block=False),
    "maskclip": HostRow("MaskCLIP", (), whole_block=False),
    # Wang et al. publish the two attentions; GLA on top of them is our reading (two passes, summed).
    "sclip": HostRow("SCLIP", ((Q, Q), (K, K)), whole_block=True, gla="gla-sclip", features=(Q, K)),
    "clearclip": HostRow(
        "ClearCLIP", ((Q, Q),), whole_block=False, gla="gla-clearclip", features=(Q,), from_neighbours=True
    ),
    "naclip": HostRow("NACLIP", ((K, K),), whole_block=False, neighbourhood=5.0),
    "proxyclip": HostRow("ProxyCLIP", (), whole_block=False, gla="gla", features=("vfm",)),
    # ProxyCLIP's rule with CLIP as its own foundation model: the last block's keys are what it compares.
    "proxyclip-clip": HostRow("ProxyCLIP on CLIP's keys", (), whole_block=False, gla="gla-clip", features=(K,)),
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
