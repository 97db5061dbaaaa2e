"""The table of baselines: what each published method does in CLIP's last block. Data alone, as config.py."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax

from gla_jax.support.checks import check_number, check_switch

Side = Literal["queries", "keys"]
Feature = Literal["vfm", "queries", "keys", "dinoiser"]


def _all_of(values: Any, choices: list[Any]) -> bool:
    return isinstance(values, tuple) and all(value in choices for value in values)


@dataclass(frozen=True)
class Baseline:
    """One published method: what it does in CLIP's last block, and which features GLA compares for it (DESIGN 3.4).

    name: of the method as published; title: in figures; pairs: the softmax attentions summed inside a window, (left,
    right) of left right^T, none is the identity; whole_block: residual and MLP of the last block run; gla: name of the
    method that is GLA on this baseline, None where GLA is not defined; features: what GLA compares, "vfm", "dinoiser"
    (of CLIP-DINOiser's trained layers) or sides of CLIP's own heads (several: one pass each, summed); from_neighbours:
    its anchors start from means over neighbours, not from tokens; neighbourhood: std in patches of a Gaussian of the
    distance that is added before the softmax, None for none; cutoff: None for a softmax over values; a number for a
    method that averages joint features, after the projection, weighted by the similarities themselves from that one on;
    stitches: the last block of the foundation model attends over all windows, stitched; attention: a function of your
    own (qkv, num_heads) -> [W t C] in place of pairs.
    """

    name: str
    title: str
    pairs: tuple[tuple[Side, Side], ...] = ()
    whole_block: bool = False
    gla: str | None = None
    features: tuple[Feature, ...] = ()
    from_neighbours: bool = False
    neighbourhood: float | None = None
    cutoff: float | None = None
    stitches: bool = False
    attention: Callable[..., jax.Array] | None = None

    def __post_init__(self):
        for name in (self.name, *([] if self.gla is None else [self.gla])):
            if not (isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9-]*", name)):
                raise ValueError(f"{name!r} cannot name a method; use small letters, digits and hyphens")
        sides = ("queries", "keys")
        if not _all_of(self.pairs, [(left, right) for left in sides for right in sides]):
            raise ValueError(f'pairs of {self.name} are {self.pairs!r}; each is two of "queries" and "keys"')
        if not _all_of(self.features, choices := list(get_args(Feature))):
            raise ValueError(f"features of {self.name} are {self.features!r}; choose from {', '.join(choices)}")
        for name in ("whole_block", "from_neighbours", "stitches"):
            check_switch(f"{name} of {self.name}", getattr(self, name))
        check_number(f"neighbourhood of {self.name}", self.neighbourhood, above=0)
        check_number(f"cutoff of {self.name}", self.cutoff)
        if self.cutoff is not None and not self.attends_by_features:
            raise ValueError(f"{self.name} has a cutoff, which is of similarities; give features, and no attention")
        if bool(self.gla) != bool(self.features):
            raise ValueError(f"{self.name} needs both gla and features, or neither: GLA compares features")
        if self.attention is not None and (self.pairs or not callable(self.attention)):
            raise ValueError(f"attention of {self.name} is a function in place of pairs; give one of the two")

    @property
    def attends_by_features(self) -> bool:
        """True if the published method itself weighs values by the similarity of its features."""
        return bool(self.features) and not self.pairs and self.attention is None


BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline("clip", "CLIP", (("queries", "keys"),), whole_block=True),
        Baseline("vanilla", "CLIP, attention only", (("queries", "keys"),)),
        Baseline("maskclip", "MaskCLIP"),
        # Wang et al. publish the two attentions; GLA on top of them is our reading (two passes, summed).
        Baseline(
            "sclip",
            "SCLIP",
            (("queries", "queries"), ("keys", "keys")),
            whole_block=True,
            gla="gla-sclip",
            features=("queries", "keys"),
        ),
        Baseline(
            "clearclip",
            "ClearCLIP",
            (("queries", "queries"),),
            gla="gla-clearclip",
            features=("queries",),
            from_neighbours=True,
        ),
        Baseline("naclip", "NACLIP", (("keys", "keys"),), neighbourhood=5.0),
        Baseline("proxyclip", "ProxyCLIP", gla="gla", features=("vfm",)),
        # ProxyCLIP's rule with CLIP as its own foundation model: the last block's keys are what it compares.
        Baseline("proxyclip-clip", "ProxyCLIP on CLIP's keys", gla="gla-on-clip-keys", features=("keys",)),
        # Moon et al. (OV-Stitcher), from their description; ProxyCLIP's rule on the stitched features.
        Baseline("ov-stitcher", "OV-Stitcher", gla="gla-ov-stitcher", features=("vfm",), stitches=True),
        # Wysoczanska et al. train two layers; GLA on their correlations is our reading.
        Baseline(
            "clip-dinoiser",
            "CLIP-DINOiser",
            whole_block=True,
            gla="gla-clip-dinoiser",
            features=("dinoiser",),
            cutoff=0.2,
        ),
    )
}
