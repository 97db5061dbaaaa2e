"""Frozen protocols: for every benchmark and setting of the paper the prompts, sizes, threshold and logit scale.

The hash of a protocol stands in every result file, so that figures of different protocols are never put side by side.
A row that changes is another protocol: figures measured before cannot be compared with those measured after.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gla_jax.config import METHODS, PRESETS, SegmenterConfig, WindowConfig
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, class_names
from gla_jax.settings.options import DTYPES, METHOD_NUMBERS, PRESET_SUFFIX, check_choice, read_preset
from gla_jax.support.errors import UserError

if TYPE_CHECKING:
    from gla_jax.text.prompts import Classes

TUNED = "tuned"  # the setting of a row from a file of gla-jax tune

# Whose prompts a setting uses: the paper's CLIP-DINOiser setting renames nothing, as ClearCLIP.
PROMPT_LISTS = {"sclip": "sclip", "proxyclip": "proxyclip", "clearclip": "clearclip", "clip-dinoiser": "clearclip"}
# CLIP-DINOiser's thresholds are not published for this method: GLA's own stand in.
THRESHOLDS = {
    "sclip": {"voc21": 0.1, "context60": 0.1, "coco_object": 0.1},
    "proxyclip": {"voc21": 0.2, "context60": 0.15, "coco_object": 0.25},
    "clearclip": {"voc21": 0.5, "context60": 0.15, "coco_object": 0.4},
    "clip-dinoiser": {"voc21": 0.1, "context60": 0.1, "coco_object": 0.1},
}
# The released configurations treat Cityscapes by itself.
CITYSCAPES = {"sclip": {"short_side": 560}, "proxyclip": {"crop": 224}, "clearclip": {"crop": 224}}

# SCLIP's own release deviates from GLA's rows, and its published figures were measured so; that SCLIP with GLA was
# measured likewise is this project's reading.
SCLIP_METHODS = ("sclip", "gla-sclip")
SCLIP_NUMBERS = {
    "voc21": {"logit_scale": 65.0, "area_threshold": 0.1},
    "context60": {"logit_scale": 50.0},
    "coco_object": {"logit_scale": 50.0},
}
SCLIP_SHORT_SIDES = {"coco_stuff164k": 448}


@dataclass(frozen=True)
class Tuned:
    """What gla-jax tune fitted of a method: (field, number) pairs."""

    method: str
    numbers: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Protocol:
    """One row: prompts holds those of every class; a threshold above 0 sends pixels below it to class 0.

    An area_threshold above 0 takes a class away from an image where it has at most that share of all pixels outside
    class 0; tuned: the method's numbers where they are not the published ones.
    """

    benchmark: str
    setting: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    windows: WindowConfig
    threshold: float
    logit_scale: float
    area_threshold: float = 0.0
    tuned: Tuned | None = None

    @property
    def sha256(self) -> str:
        """The hash of the whole row."""
        row = asdict(self)
        row["queries"] = row.pop("prompts")  # the hashes of results that exist were taken with this name
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    @property
    def vocabulary(self) -> "Classes":
        """Classes and prompts as the segmenter takes them."""
        from gla_jax.text.prompts import Classes

        flat = [(prompt, index) for index, synonyms in enumerate(self.prompts) for prompt in synonyms]
        return Classes(
            names=self.classes,
            prompts=tuple(prompt for prompt, _ in flat),
            class_of_prompt=tuple(index for _, index in flat),
        )

    def config(self, method: str, dtype: str = "float32") -> SegmenterConfig:
        """The settings of a method under this protocol.

        Raises UserError for an unknown method or dtype, and for another method than the one that was tuned.
        """
        chosen = METHODS[check_choice(method, METHODS, "method")]
        if self.tuned:
            if self.tuned.method != method:  # numbers of one method say nothing about another
                raise UserError(
                    f"the preset was tuned for the method {self.tuned.method}, not for {method}; choose "
                    f"{self.tuned.method} or another preset."
                )
            chosen = replace(chosen, **dict(self.tuned.numbers))
        return SegmenterConfig(
            method=chosen,
            windows=self.windows,
            logit_scale=self.logit_scale,
            threshold=self.threshold,
            dtype=check_choice(dtype, DTYPES, "dtype"),
        )


def protocol(
    benchmark: str,
    setting: str = "sclip",
    classes: tuple[tuple[str, tuple[str, ...]], ...] | None = None,
    method: str = "gla",
) -> Protocol:
    """The row of a benchmark under a setting of the paper or a file of gla-jax tune.

    classes: (name, prompts) of every class for the benchmark `folder`, which has none of its own; method: SCLIP has
    numbers of its own under the setting sclip. Raises UserError for an unknown benchmark or setting and for a file that
    cannot be used.
    """
    check_choice(benchmark, BENCHMARKS, "benchmark")
    if setting.endswith(PRESET_SUFFIX):
        config, tuned_method, own_prompts = read_preset(Path(setting))
        tuned = Tuned(tuned_method, tuple((name, getattr(config.method, name)) for name in METHOD_NUMBERS))
        names, prompts = _prompts(benchmark, own_prompts, classes)
        return Protocol(
            benchmark, TUNED, names, prompts, config.windows, config.threshold, config.logit_scale, tuned=tuned
        )
    check_choice(setting, PRESETS, "preset")
    names, prompts = _prompts(benchmark, PROMPT_LISTS[setting], classes)
    windows = PRESETS[setting].windows
    if benchmark == "cityscapes":
        windows = replace(windows, **CITYSCAPES.get(setting, {}))
    threshold = THRESHOLDS[setting].get(benchmark, 0.0)
    row = Protocol(benchmark, setting, names, prompts, windows, threshold, PRESETS[setting].logit_scale)
    if setting == "sclip" and method in SCLIP_METHODS:
        windows = replace(windows, short_side=SCLIP_SHORT_SIDES.get(benchmark, windows.short_side))
        row = replace(row, windows=windows, **SCLIP_NUMBERS.get(benchmark, {}))
    return row


def prompt_list(setting: str) -> str:
    """Whose prompts a setting of the paper or a file of gla-jax tune takes. Raises UserError."""
    return read_preset(Path(setting)).prompts if setting.endswith(PRESET_SUFFIX) else PROMPT_LISTS[setting]


def _prompts(
    benchmark: str, prompt_list: str, classes: tuple[tuple[str, tuple[str, ...]], ...] | None
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Classes and the prompts of each, by one of PROMPT_LISTS."""
    if benchmark == FOLDER:
        names, prompts = zip(*classes, strict=True)
        return names, prompts
    lists = class_names(benchmark)
    return lists.classes, lists.prompts.get(prompt_list, lists.prompts["sclip"])


def common_windows(benchmark: str) -> WindowConfig:
    """GLA's own windows on a benchmark: whatever windows a run has, boundaries are also counted at their edges."""
    windows = PRESETS["sclip"].windows
    return replace(windows, **CITYSCAPES["sclip"]) if benchmark == "cityscapes" else windows


def duplicates(row: Protocol) -> tuple[str, ...]:
    """The prompts of class 0 that are another class's too: class 0 wins the tie, so that class is never seen."""
    others = {prompt for prompts in row.prompts[1:] for prompt in prompts}
    return tuple(prompt for prompt in row.prompts[0] if prompt in others)


def without_duplicates(row: Protocol) -> Protocol:
    """The row without the prompts of class 0 that are another class's too; the same row where there are none."""
    kept = tuple(prompt for prompt in row.prompts[0] if prompt not in duplicates(row))
    return replace(row, prompts=(kept, *row.prompts[1:])) if kept else row
