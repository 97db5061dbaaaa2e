"""Frozen protocols: for every benchmark and preset the prompts, sizes, threshold and logit scale.

The hash of a protocol stands in every result file, so that figures of different protocols are never put side by side.
A row that changes is another protocol: figures measured before cannot be compared with those measured after.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from gla_jax.config import (
    CALIBRATED,
    DEFAULT_PRESET,
    DTYPES,
    METHODS,
    PRESET_ALIASES,
    PRESETS,
    SegmenterConfig,
    WindowConfig,
    later_fields,
)
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, class_names
from gla_jax.settings.options import (
    METHOD_NUMBERS,
    PRESET_SUFFIX,
    check_calibrated,
    check_choice,
    method_name,
    named_preset,
    preset_name,
    read_preset,
    with_fields,
)
from gla_jax.support.errors import UserError
from gla_jax.support.places import place

if TYPE_CHECKING:
    from gla_jax.text.prompts import Classes

ClassPrompts = tuple[tuple[str, tuple[str, ...]], ...]  # (name, prompts) of every class
TUNED = "tuned"  # the setting of a row from a file of gla-jax tune


class PaperNumbers(NamedTuple):
    """A preset's list of prompts, its thresholds on BACKGROUNDS, and its sizes on Cityscapes."""

    prompts: str
    thresholds: tuple[float, float, float]
    cityscapes: dict[str, int]


BACKGROUNDS = ("voc21", "context60", "coco_object")
# The paper's CLIP-DINOiser setting, 448-448-224, renames nothing, as ClearCLIP; its thresholds are not published for
# this method: GLA's stand in.
PAPER_NUMBERS = {
    "336-224-112": PaperNumbers("sclip-prompts", (0.1, 0.1, 0.1), {"short_side": 560}),
    "448-336-112": PaperNumbers("proxyclip-prompts", (0.2, 0.15, 0.25), {"crop": 224}),
    "448-448-224": PaperNumbers("clearclip-prompts", (0.1, 0.1, 0.1), {}),
    "448-448-224-scale-50": PaperNumbers("clearclip-prompts", (0.5, 0.15, 0.4), {"crop": 224}),
}
# SCLIP's release deviates from GLA's rows, and its published figures were measured so; that SCLIP with GLA was
# measured likewise is this project's reading.
SCLIP_METHODS = ("sclip", "gla-sclip")
SCLIP_FIELDS = {
    "voc21": {"logit_scale": 65.0},
    "context60": {"logit_scale": 50.0},
    "coco_object": {"logit_scale": 50.0},
    "coco_stuff164k": {"short_side": 448},
}
SCLIP_AREA_THRESHOLDS = {"voc21": 0.1}
# CLIP-DINOiser's release: probabilities of tokens are averaged, and a trained layer finds the background.
DINOISER_METHODS = ("clip-dinoiser", "gla-clip-dinoiser")
DINOISER_PRESET = "448-448-224"
DINOISER_FIELDS = {"logit_scale": 100.0, "threshold": 0.0, "average": "probabilities"}
DINOISER_FOREGROUND_BELOW = 0.99  # where there is a background


@dataclass(frozen=True)
class Protocol:
    """One row: what a benchmark is measured with under a preset.

    setting: full name of the preset, or "tuned"; prompts: those of every class; settings: windows, logit scale,
    the rules of the background, which is class 0, and, of a tuned preset or numbers by name, the method's
    numbers; area_threshold: above 0, a class with at most that share of all pixels outside class 0 is taken away;
    tuned_for: method of a tuned preset.
    """

    benchmark: str
    setting: str
    classes: tuple[str, ...]
    prompts: tuple[tuple[str, ...], ...]
    settings: SegmenterConfig
    area_threshold: float = 0.0
    tuned_for: str | None = None

    @property
    def windows(self) -> WindowConfig:
        """Sizes of the image and its windows."""
        return self.settings.windows

    @property
    def sha256(self) -> str:
        """Hash of the whole row, over the names that keys and presets had when the first results were written."""
        method, sizes = self.settings.method, self.setting.partition("+")[0]
        content: dict[str, Any] = {
            "benchmark": self.benchmark,
            "setting": {new: old for old, new in PRESET_ALIASES.items()}.get(sizes, sizes),
            "classes": self.classes,
            "queries": self.prompts,
            "windows": asdict(self.windows),
            "threshold": self.settings.threshold,
            "logit_scale": self.settings.logit_scale,
            "area_threshold": self.area_threshold,
            "tuned": None,
        }
        content |= later_fields(self.settings)
        if self.tuned_for:
            numbers = [(name, getattr(method, name)) for name in METHOD_NUMBERS]
            former = {"gla-on-clip-keys": "gla-clip"}
            content["tuned"] = {"method": former.get(self.tuned_for, self.tuned_for), "numbers": numbers}
        else:
            published = PRESETS[DEFAULT_PRESET].method
            content |= {n: value for n in CALIBRATED if (value := getattr(method, n)) != getattr(published, n)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def vocabulary(self) -> "Classes":
        """Classes and prompts as the segmenter takes them."""
        from gla_jax.text.prompts import Classes

        class_of_prompt = tuple(index for index, synonyms in enumerate(self.prompts) for _ in synonyms)
        return Classes(self.classes, tuple(prompt for synonyms in self.prompts for prompt in synonyms), class_of_prompt)

    def config(self, method: str, dtype: str = "float32") -> SegmenterConfig:
        """The settings of a method under this protocol.

        Raises UserError for an unknown method or dtype, and for another method than the one that was tuned.
        """
        method = method_name(method)
        if self.tuned_for not in (None, method):  # numbers of one method say nothing about another
            raise UserError(
                f"the preset was tuned for the method {self.tuned_for}, not for {method}; choose {self.tuned_for} or "
                "another preset."
            )
        numbers = {name: getattr(self.settings.method, name) for name in CALIBRATED}
        chosen = self.settings.method if self.tuned_for else replace(METHODS[method], **numbers)
        config = replace(self.settings, method=chosen, dtype=check_choice(dtype, DTYPES, "dtype"))
        return check_calibrated(config, method)


def protocol(
    benchmark: str, setting: str = DEFAULT_PRESET, classes: ClassPrompts | None = None, method: str = "gla"
) -> Protocol:
    """The row of a benchmark under a preset or a file of gla-jax tune.

    Args:
        benchmark: key of a benchmark.
        setting: name of a preset, or path of a file.
        classes: (name, prompts) of every class for the benchmark `folder`, which brings them along.
        method: SCLIP has numbers of its own under the default preset, CLIP-DINOiser under 448-448-224.

    Raises UserError for an unknown benchmark or preset and for a file that cannot be used.
    """
    check_choice(benchmark, BENCHMARKS, "benchmark")
    if setting.endswith(PRESET_SUFFIX):
        settings, tuned_for, prompts = read_preset(place(setting))
        return Protocol(benchmark, TUNED, *_prompts(benchmark, prompts, classes), settings, tuned_for=tuned_for)
    setting = preset_name(setting)
    sizes, settings, area_threshold = setting.partition("+")[0], named_preset(setting), 0.0
    if settings == PRESETS[sizes]:  # the default rho by name is the same row
        setting = sizes
    numbers = PAPER_NUMBERS[sizes]
    fields = {"threshold": dict(zip(BACKGROUNDS, numbers.thresholds, strict=True)).get(benchmark, 0.0)}
    if benchmark == "cityscapes":
        fields |= numbers.cityscapes
    if sizes == DEFAULT_PRESET and method in SCLIP_METHODS:
        fields |= SCLIP_FIELDS.get(benchmark, {})
        area_threshold = SCLIP_AREA_THRESHOLDS.get(benchmark, 0.0)
    if sizes == DINOISER_PRESET and method in DINOISER_METHODS:
        fields |= DINOISER_FIELDS
        fields["foreground_below"] = DINOISER_FOREGROUND_BELOW if benchmark in BACKGROUNDS else 0.0
    names = _prompts(benchmark, numbers.prompts, classes)
    return Protocol(benchmark, setting, *names, with_fields(settings, fields), area_threshold)


def prompt_list(setting: str) -> str:
    """Name of the list of prompts that a preset or a file of gla-jax tune takes. Raises UserError."""
    if setting.endswith(PRESET_SUFFIX):
        return read_preset(place(setting)).prompts
    return PAPER_NUMBERS[preset_name(setting).partition("+")[0]].prompts


def _prompts(benchmark: str, prompts: str, classes: ClassPrompts | None) -> tuple[Any, Any]:
    """Classes and the prompts of each, by the name of a list of prompts."""
    if benchmark == FOLDER:
        return tuple(zip(*classes, strict=True))
    lists = class_names(benchmark)
    return lists.classes, lists.prompts.get(prompts.removesuffix("-prompts"), lists.prompts["sclip"])


def common_windows(benchmark: str) -> WindowConfig:
    """GLA's windows on a benchmark: boundaries of every run are also counted at their edges."""
    windows = PRESETS[DEFAULT_PRESET].windows
    return replace(windows, **PAPER_NUMBERS[DEFAULT_PRESET].cityscapes) if benchmark == "cityscapes" else windows


def duplicates(row: Protocol) -> tuple[str, ...]:
    """The prompts of class 0 that are another class's too: class 0 wins the tie, so that class is never seen."""
    others = {prompt for prompts in row.prompts[1:] for prompt in prompts}
    return tuple(prompt for prompt in row.prompts[0] if prompt in others)


def with_steps(row: Protocol, prune_below: float = 0.0, background_margin: float = 0.0) -> Protocol:
    """The row with steps of our own in its settings, which is another row where one is on.

    Raises UserError for numbers that are no probabilities, and for a margin on a benchmark without a background.
    """
    if background_margin and not BENCHMARKS[row.benchmark].background:
        raise UserError(f"{row.benchmark} has no class for the background, which the margin needs; leave it out.")
    steps = {"prune_below": prune_below, "background_margin": background_margin}
    return replace(row, settings=with_fields(row.settings, steps))


def without_duplicates(row: Protocol) -> Protocol:
    """The row without the prompts of class 0 that are another class's too; the same row where there are none."""
    kept = tuple(prompt for prompt in row.prompts[0] if prompt not in duplicates(row))
    return replace(row, prompts=(kept, *row.prompts[1:])) if kept else row
