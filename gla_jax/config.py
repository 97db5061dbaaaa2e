"""Frozen settings: data alone, which loads neither Flax nor towers.

Numbers are pytree leaves, so they can be traced, vmapped and differentiated; structure is static. The defaults are the
released run of GLA-CLIP: rho is 0.55 there, since its script names 0.6 and never passes it.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from gla_jax.baseline_table import BASELINES, Baseline
from gla_jax.support.checks import MAX_NUMBER, check_number, check_switch

Number = float | jax.Array
Form = Literal["blockwise", "dense", "ring"]
PartDtype = Literal["float16", "bfloat16"]
TowerAttention = Literal["together", "head_by_head", "chunked", "cudnn"]  # towers/attention.py
DTYPES = ("float32", "bfloat16")
PRECISIONS = ("highest", "high", "fast")  # DESIGN 5
MAX_SIDE = 2**16  # pixels; more is a slip of the finger
CENTRED_MEAN = 0.3  # eta of the calibration "centred" (attention/calibrate.py)
MAX_ITERATIONS = 1000  # of anchors; each takes all similarities, inside one program that cannot be interrupted


def static(default: Any) -> Any:
    """A field that decides structure: part of the pytree's definition, never traced."""
    return field(default=default, metadata={"static": True})


class PlatformNumbers(NamedTuple):
    """Numbers that depend on the device and change results by rounding alone.

    block_size: queries and keys of an attention block at most; tower_batch: windows that go through the towers
    together, None: as many as the device's memory takes (towers/placement.py); skip_blocks: blocks of keys are tested
    for entries that survive; tower_attention: form of the towers' attention; scan_blocks: the blocks of a tower are one
    program that is scanned, from parameters that are stacked when a model is placed; part_dtype: of the parts into
    which keys and queries are split below the precision highest (attention/products.py).
    """

    block_size: int
    tower_batch: int | None
    skip_blocks: bool
    tower_attention: TowerAttention
    scan_blocks: bool
    part_dtype: PartDtype


# Without a platform, as in a pure function that is given a config of no model.
REFERENCE = PlatformNumbers(512, 2, False, "together", scan_blocks=False, part_dtype="float16")
# Measured on processors and on an H100 (eval/RESULTS.md). On accelerators a branch would stall the chip. In a scan XLA
# leaves biases out of a GPU's products, which then take 4 % longer.
PLATFORMS = {
    "cpu": PlatformNumbers(512, 2, True, "head_by_head", scan_blocks=False, part_dtype="float16"),
    "cuda": PlatformNumbers(16384, None, False, "cudnn", scan_blocks=False, part_dtype="float16"),
}
# TPUs multiply bfloat16 alone. Their block size moves few bytes by the compiler's plan, which no chip has confirmed.
ACCELERATOR = PlatformNumbers(4096, None, False, "chunked", scan_blocks=True, part_dtype="bfloat16")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MethodConfig:
    """The rule by which patch values are combined: the baseline and each stage of GLA on or off (DESIGN 3).

    baseline: whose last CLIP block runs; global_buffer: windows see each other's keys and values; proxy_anchors:
    queries are anchors (3.1); anchor_threshold is rho, anchor_iterations is T; row_mean: the mean of one similarity
    row, clipped at 0, instead of the mean of the whole matrix; dynamic_shift is alpha_beta, dynamic_scale is
    alpha_gamma, None falls back to the fixed shift (beta) and scale (gamma); masking: attention drops entries below the
    shift, as ProxyCLIP does; the softmax divides by temperature; mask_temperature: None for the published masks, a
    number t for sigmoids of width t in their place, which differentiate in every setting and become the masks as t goes
    to 0; calibration: None as published, "centred" (ours, attention/calibrate.py) for other features than DINO's;
    merge_overlaps: tokens of several windows at one pixel are one token (ours, DESIGN 3.7). How it is computed:
    attention, one of three forms of one method; precision of every matrix product (DESIGN 5), block_size, skip_blocks
    and part_dtype, None until a model is placed on its devices.
    """

    baseline: str = static("proxyclip")
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
    calibration: Literal["centred"] | None = static(None)
    mask_temperature: Number | None = None
    merge_overlaps: bool = static(False)
    attention: Form = static("blockwise")
    precision: Literal["highest", "high", "fast"] | None = static(None)
    block_size: int | None = static(None)
    skip_blocks: bool | None = static(None)
    part_dtype: PartDtype | None = static(None)

    def __post_init__(self):
        if not isinstance(self.baseline, str) or self.baseline not in BASELINES:
            raise ValueError(f"{self.baseline!r} is not a baseline; there are {', '.join(BASELINES)}")
        if not isinstance(self.attention, str) or self.attention not in ("blockwise", "dense", "ring"):
            raise ValueError(f"attention {self.attention!r} is not blockwise, dense or ring")
        if self.calibration not in (None, "centred"):
            raise ValueError(f"calibration {self.calibration!r:.60} is not centred or none")
        if self.precision == "default":  # until 0.1, for JAX's word
            warnings.warn('the precision "default" is called "fast" now', stacklevel=3)
            object.__setattr__(self, "precision", "fast")
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(PRECISIONS)}")
        if self.part_dtype not in (None, *get_args(PartDtype)):
            raise ValueError(f"part_dtype {self.part_dtype!r:.60} is not float16 or bfloat16")
        for name in ("global_buffer", "proxy_anchors", "row_mean", "masking", "merge_overlaps", "skip_blocks"):
            check_switch(name, getattr(self, name), optional=name == "skip_blocks")
        check_number("anchor_iterations", self.anchor_iterations, at_least=0, at_most=MAX_ITERATIONS, whole=True)
        if self.block_size is not None:
            check_number("block_size", self.block_size, at_least=1, whole=True)
        # A tree of axes for vmap has None for numbers that are not mapped, and 0 for those that are.
        if not any(n is None for n in (self.anchor_threshold, self.shift, self.scale, self.temperature)):
            for name in ("anchor_threshold", "shift", "scale", "dynamic_shift", "dynamic_scale"):
                check_number(name, getattr(self, name))
            for name in ("temperature", "mask_temperature"):
                check_number(name, getattr(self, name), above=0)
                check_number(name, getattr(self, name), at_least=1 / MAX_NUMBER)
        if self._uses_gla and BASELINES[self.baseline].gla is None:
            raise ValueError(f"GLA is not defined on the baseline {self.baseline}: it has no features to compare")
        if self.merge_overlaps and not self.global_buffer:
            raise ValueError("merge_overlaps is for methods with a global buffer, where windows see each other")

    @property
    def drops_entries(self) -> bool:
        """True if attention leaves entries out; otherwise its softmax is an ordinary one over all keys."""
        return self.masking and self.mask_temperature is None

    @property
    def products(self) -> Literal["highest", "high", "fast"]:
        """The precision of the attention's products."""
        return self.precision or "highest"

    @property
    def plain_precision(self) -> Literal["highest", "default"]:
        """The precision of every other product, in JAX's words: only `fast` gives any of it up."""
        return "default" if self.precision == "fast" else "highest"

    @property
    def max_block(self) -> int:
        """Queries and keys of an attention block at most."""
        return self.block_size or REFERENCE.block_size

    @property
    def parts(self) -> PartDtype:
        """The dtype of the parts of keys and queries."""
        return self.part_dtype or REFERENCE.part_dtype

    @property
    def _uses_gla(self) -> bool:
        dynamic = self.dynamic_shift is not None or self.dynamic_scale is not None
        return self.global_buffer or self.proxy_anchors or self.row_mean or dynamic

    @property
    def attends_by_features(self) -> bool:
        """True if values are weighed by feature similarity rather than by the baseline's own attention."""
        return BASELINES[self.baseline].attends_by_features or self._uses_gla

    @property
    def calibrates(self) -> bool:
        """True if similarities are calibrated: those of CLIP's own heads never are."""
        return self.calibration is not None and self.reads_vfm

    @property
    def reads_vfm(self) -> bool:
        """True if features of a vision foundation model are compared."""
        return "vfm" in BASELINES[self.baseline].features

    @property
    def reads_dinoiser(self) -> bool:
        """True if features of CLIP-DINOiser's trained layers are compared."""
        return "dinoiser" in BASELINES[self.baseline].features

    @property
    def stitches(self) -> bool:
        """True if the last block of the foundation model attends over all windows."""
        return BASELINES[self.baseline].stitches

    @property
    def pools_joint(self) -> bool:
        """True if what is averaged are joint features, which nothing projects afterwards."""
        return BASELINES[self.baseline].cutoff is not None

    @property
    def weighs_by_similarity(self) -> bool:
        """True if weights are similarities from the baseline's cutoff on; any normalisation of GLA has a softmax."""
        dynamic = self.dynamic_shift is not None or self.dynamic_scale is not None
        return self.pools_joint and not (self.row_mean or dynamic)


def without_gla(baseline: str) -> MethodConfig:
    """A baseline as published, each window alone: fixed shift and scale, one mean over the window's similarities."""
    off = dict.fromkeys(("global_buffer", "proxy_anchors", "row_mean"), False)
    return MethodConfig(baseline=baseline, dynamic_shift=None, dynamic_scale=None, **off)


METHODS: dict[str, MethodConfig] = {
    **dict(sorted((row.gla, MethodConfig(baseline=row.name)) for row in BASELINES.values() if row.gla)),
    **{name: without_gla(name) for name in BASELINES},
}
# Other names of a method. gla-clip, the paper's own, was GLA on CLIP's keys until 0.1.
METHOD_ALIASES = {"gla-clip": "gla"}


def register_baseline(row: Baseline) -> None:
    """Add a baseline of your own: methods, command line, errors and ablations know it from here on.

    Raises ValueError when a name is taken.
    """
    for name in filter(None, (row.name, row.gla)):
        if name in METHODS or name in METHOD_ALIASES or name in BASELINES:
            raise ValueError(f"{name!r} names a method already; choose another name")
    BASELINES[row.name] = row
    METHODS[row.name] = without_gla(row.name)
    if row.gla:
        METHODS[row.gla] = MethodConfig(baseline=row.name)


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
            if value is not None or name != "short_side":
                check_number(name, value, at_least=1, at_most=MAX_SIDE, whole=True)
        if (self.short_side or 0) > self.long_side:
            raise ValueError(
                f"short_side {self.short_side} is larger than {self.long_side}, the most that the other side may have; "
                "give a smaller one, or none to keep the image's own size"
            )
        if self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: pixels between windows are lost")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterConfig:
    """Everything a segmentation depends on besides weights, image and classes.

    threshold: pixels whose best class probability is below it become background (0 turns it off); prune_below: classes
    whose best probability over all pixels is below it leave the softmax (0: none; our own); background_margin: pixels
    whose best class leads the second by less become background (0: none; our own); foreground_below: tokens whose best
    class probability is below it become background where CLIP-DINOiser's trained layer calls them so (0 turns it off);
    average: what is brought to pixels and averaged where windows overlap, logits or, as CLIP-DINOiser does, the
    probabilities of tokens; dtype: of the towers, all statistics stay float32; tower_batch and tower_attention are
    PlatformNumbers, None until a model is placed on its devices.
    """

    method: MethodConfig = field(default_factory=MethodConfig)
    windows: WindowConfig = field(default_factory=WindowConfig, metadata={"static": True})
    logit_scale: Number = 40.0
    threshold: Number = 0.0
    dtype: Literal["float32", "bfloat16"] = static("float32")
    tower_batch: int | None = static(None)
    tower_attention: TowerAttention | None = static(None)
    prune_below: float = static(0.0)
    background_margin: float = static(0.0)
    foreground_below: float = static(0.0)
    average: Literal["logits", "probabilities"] = static("logits")

    def __post_init__(self):
        # None, 0 and objects of JAX's own stand for a whole MethodConfig in trees of axes.
        if not isinstance(self.method, MethodConfig) and type(self.method) not in (int, object, type(None)):
            raise ValueError(f"method is {self.method!r:.60}; give a MethodConfig, as METHODS holds them by name")
        if not isinstance(self.windows, WindowConfig):
            raise ValueError(f"windows is {self.windows!r:.60}; give a WindowConfig")
        check_number("logit_scale", self.logit_scale, above=0)
        for name in ("threshold", "prune_below", "background_margin", "foreground_below"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        if self.average not in ("logits", "probabilities"):
            raise ValueError(f"average {self.average!r:.60} is not logits or probabilities")
        if self.foreground_below and self.average != "probabilities":
            raise ValueError("foreground_below sets probabilities of tokens; give average probabilities with it")
        if not isinstance(self.dtype, str) or self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.tower_batch is not None:
            check_number("tower_batch", self.tower_batch, at_least=1, whole=True)
        if self.tower_attention not in (None, *(forms := get_args(TowerAttention))):
            raise ValueError(f"tower_attention {self.tower_attention!r:.60} is not one of {', '.join(forms)}")

    @property
    def background_rules(self) -> dict[str, float]:
        """Numbers above 0 by which pixels become background, by the names of their fields."""
        rules = {name: float(getattr(self, name)) for name in ("threshold", "background_margin", "foreground_below")}
        return {name: value for name, value in rules.items() if value}

    @property
    def max_tower_batch(self) -> int:
        """Windows that go through the towers together at most."""
        return self.tower_batch or REFERENCE.tower_batch


# Fields that protocols and runs of before do not have: hashes and records leave them out where they are off.
LATER_FIELDS = ("prune_below", "background_margin", "foreground_below", "average")
LATER_METHOD_FIELDS = ("calibration", "merge_overlaps")  # the same, of the method


def later_fields(config: SegmenterConfig) -> dict[str, Any]:
    """Values of those of LATER_FIELDS that are on."""
    values = {name: getattr(config, name) for name in LATER_FIELDS}
    return {name: value for name, value in values.items() if value != getattr(SegmenterConfig(), name)}


def on_platform(config: SegmenterConfig, platform: str) -> SegmenterConfig:
    """The settings with what depends on the platform (of towers/placement.py) as numbers; what is set stays."""
    numbers = PLATFORMS.get(platform, ACCELERATOR)

    def filled(part: Any) -> Any:
        return replace(part, **{k: v for k, v in numbers._asdict().items() if getattr(part, k, 0) is None})

    method = filled(config.method)
    precision = method.precision or ("highest" if platform == "cpu" else "high")
    return replace(filled(config), method=replace(method, precision=precision))


def with_plain_numbers(config: SegmenterConfig) -> SegmenterConfig:
    """The settings with arrays of one number as numbers, which are checked as such.

    Raises ValueError for what is no number: several in an array, a list, None where a number belongs.
    """

    def plain(part: Any) -> dict[str, float]:
        numbers = {}
        for row in dataclasses.fields(part):
            value = getattr(part, row.name)
            optional = value is None and row.name in ("dynamic_shift", "dynamic_scale", "mask_temperature")
            if row.metadata.get("static") or row.name == "method" or optional:
                continue
            try:
                numbers[row.name] = float(value)
            except (TypeError, ValueError):
                raise ValueError(f"{row.name} is {value!r:.60}; give a number") from None
        return numbers

    if not isinstance(config, SegmenterConfig) or not isinstance(config.method, MethodConfig):
        raise ValueError(f"the settings are {config!r:.60}; give a SegmenterConfig, whose method is a MethodConfig")
    return replace(config, method=replace(config.method, **plain(config.method)), **plain(config))


# Windows and logit scale of the four settings that the paper measures, by short side, crop and stride.
PRESETS: Mapping[str, SegmenterConfig] = {
    "336-224-112": SegmenterConfig(),
    "448-336-112": SegmenterConfig(windows=WindowConfig(448, 336, 112)),
    "448-448-224": SegmenterConfig(windows=WindowConfig(448, 448, 224)),
    "448-448-224-scale-50": SegmenterConfig(windows=WindowConfig(448, 448, 224), logit_scale=50.0),
}
DEFAULT_PRESET = "336-224-112"
# Until 0.1 a preset had the name of the method whose release has these windows.
PRESET_ALIASES = {
    "sclip": "336-224-112",
    "proxyclip": "448-336-112",
    "clip-dinoiser": "448-448-224",
    "clearclip": "448-448-224-scale-50",
}
# Numbers of the method by name. rho of the released run, and of the paper by notes on it; published comparisons use
# both. "centred" is ours, for foundation models whose cosines are spread otherwise than DINO's (eval/RESULTS.md).
NUMBER_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "rho-0.55": {"anchor_threshold": 0.55},
    "rho-0.6": {"anchor_threshold": 0.6},
    "centred": {"calibration": "centred", "anchor_threshold": 0.9, "temperature": 0.05},
}
CALIBRATED = ("anchor_threshold", "temperature", "calibration")  # fields of them
# The paper's letters for fields of the method.
FIELD_ALIASES = {
    "rho": "anchor_threshold",
    "alpha_beta": "dynamic_shift",
    "alpha_gamma": "dynamic_scale",
    "host": "baseline",
}


def settings_as_dict(config: SegmenterConfig) -> dict[str, Any]:
    """The settings as plain JSON values, for result files and cache keys."""

    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: value.item() if isinstance(value, jax.Array | np.generic) else value for name, value in items}

    return dataclasses.asdict(config, dict_factory=plain)
