"""Frozen settings. Numbers are pytree leaves, so they can be traced, vmapped and differentiated; structure is static.

The defaults are the released run of GLA-CLIP (rho is 0.55 there, although its script names 0.6).
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from gla_jax.attention.baselines import HOSTS

Host = Literal[*HOSTS]
Number = float | jax.Array
# Measured on processors (eval/RESULTS.md); elsewhere as much as keeps an accelerator busy.
BLOCK_SIZES, TOWER_BATCHES = {"cpu": 512, "other": 4096}, {"cpu": 2, "other": 16}


def _of_platform(choices: dict[str, int]) -> int:
    return choices.get(jax.default_backend(), choices["other"])


def skips_blocks() -> bool:
    """Whether blocks of keys are tested for entries that survive: a branch would stall an accelerator."""
    return jax.default_backend() == "cpu"


def static(default: Any) -> Any:
    """A field that decides structure: part of the pytree's definition, never traced."""
    return field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MethodConfig:
    """How patch values are gathered: the host and each stage of GLA on or off (DESIGN 3).

    host: whose last CLIP block runs; global_buffer: windows see each other's keys and values; proxy_anchors: queries
    are anchors (3.1); anchor_threshold is rho, anchor_iterations is T; row_mean: the mean of one similarity row,
    clipped at 0, instead of the mean of the whole matrix; dynamic_shift is alpha_beta, dynamic_scale is alpha_gamma,
    None falls back to the fixed shift (beta) and scale (gamma); masking: attention drops entries below the shift, as
    ProxyCLIP does; the softmax divides by temperature; mask_temperature: None for the published masks, a number t for
    sigmoids of width t in their place, which differentiate in every setting and become the masks as t goes to 0;
    block_size: queries and keys of a block at most, None for the platform's.
    """

    host: Host = static("proxyclip")
    global_buffer: bool = static(True)
    proxy_anchors: bool = static(True)
    anchor_iterations: int = static(2)
    anchor_threshold: Number = 0.55
    row_mean: bool = static(True)
    dynamic_shift: Number | None = 0.3
    dynamic_scale: Number | None = 30.0
    shift: Number = 1.2
    scale: Number = 3.0
    masking: bool = static(True)
    temperature: Number = 1.0
    mask_temperature: Number | None = None
    attention: Literal["streaming", "dense", "sharded"] = static("streaming")
    block_size: int | None = static(None)

    def __post_init__(self):
        if self.host not in HOSTS:
            raise ValueError(f"{self.host!r} is not a host; there are {', '.join(HOSTS)}")
        if self.anchor_iterations < 0:
            raise ValueError(f"anchor_iterations is {self.anchor_iterations}; it counts passes, so it is 0 or more")
        if self.block_size is not None and self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; it counts keys, so it is 1 or more")
        if self._uses_gla and HOSTS[self.host].gla is None:
            raise ValueError(f"GLA is not defined on the host {self.host}: it has no features to compare")

    @property
    def drops_entries(self) -> bool:
        """Whether attention leaves entries out; otherwise its softmax is an ordinary one over all keys."""
        return self.masking and self.mask_temperature is None

    @property
    def most_of_a_block(self) -> int:
        """Queries and keys of a block at most."""
        return _of_platform(BLOCK_SIZES) if self.block_size is None else self.block_size

    @property
    def _uses_gla(self) -> bool:
        dynamic = self.dynamic_shift is not None or self.dynamic_scale is not None
        return self.global_buffer or self.proxy_anchors or self.row_mean or dynamic

    @property
    def gathers_by_features(self) -> bool:
        """Whether values are gathered by feature similarity rather than by the host's own attention."""
        return HOSTS[self.host].gathers_by_features or self._uses_gla


def without_gla(host: Host) -> MethodConfig:
    """A host as published, each window alone: fixed shift and scale, one mean over the window's similarity matrix."""
    return MethodConfig(
        host=host, global_buffer=False, proxy_anchors=False, row_mean=False, dynamic_shift=None, dynamic_scale=None
    )


METHODS: dict[str, MethodConfig] = {
    **dict(sorted((row.gla, MethodConfig(host=host)) for host, row in HOSTS.items() if row.gla)),
    **{host: without_gla(host) for host in HOSTS},
}


@dataclass(frozen=True)
class WindowConfig:
    """Sizes in pixels: the image is resized to short_side (None keeps its size), then cut into crop x crop windows."""

    short_side: int | None = 336
    crop: int = 224
    stride: int = 112
    long_side: int = 2048

    def __post_init__(self):
        for name in ("short_side", "crop", "stride", "long_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it counts pixels, so it is 1 or more")
        if self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: pixels between windows are lost")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterConfig:
    """Everything a segmentation depends on besides weights, image and classes.

    threshold: pixels whose best class probability is below it become background (0 turns it off); dtype: of the towers,
    all statistics stay float32; tower_batch: windows that go through the towers together, None for the platform's.
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    windows: WindowConfig = field(default_factory=WindowConfig, metadata={"static": True})
    logit_scale: Number = 40.0
    threshold: Number = 0.0
    dtype: Literal["float32", "bfloat16"] = static("float32")
    tower_batch: int | None = static(None)

    @property
    def windows_at_once(self) -> int:
        """Windows that go through the towers together."""
        return _of_platform(TOWER_BATCHES) if self.tower_batch is None else self.tower_batch


PRESETS: dict[str, SegmenterConfig] = {
    "sclip": SegmenterConfig(),
    "proxyclip": SegmenterConfig(windows=WindowConfig(short_side=448, crop=336, stride=112)),
    "clearclip": SegmenterConfig(windows=WindowConfig(short_side=448, crop=448, stride=224), logit_scale=50.0),
    "clip-dinoiser": SegmenterConfig(windows=WindowConfig(short_side=448, crop=448, stride=224)),
}


def settings_as_dict(config: SegmenterConfig) -> dict[str, Any]:
    """The settings as plain JSON values, for result files and cache keys."""
    return dataclasses.asdict(config, dict_factory=lambda items: {k: _plain(v) for k, v in items})


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, jax.Array) else value
