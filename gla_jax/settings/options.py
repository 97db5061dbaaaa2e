"""From what a user types to frozen settings: names, preset files and numbers, each fault one sentence."""

import dataclasses
import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gla_jax.config import (
    CALIBRATED,
    DEFAULT_PRESET,
    FIELD_ALIASES,
    METHOD_ALIASES,
    METHODS,
    NUMBER_SETTINGS,
    PRESET_ALIASES,
    PRESETS,
    MethodConfig,
    SegmenterConfig,
    WindowConfig,
)
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json
from gla_jax.support.places import place
from gla_jax.support.version import VERSION

MAX_CHOICES = 8  # in a sentence


def check_choice(name: str, choices: Iterable[str], what: str) -> str:
    """The name itself. Raises UserError, with the nearest choices, when it is not one of them."""
    choices = list(choices)
    if name in choices:
        return name
    close = difflib.get_close_matches(str(name), choices, n=1)
    more = f" and {len(choices) - MAX_CHOICES} more" if len(choices) > MAX_CHOICES else ""
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices[:MAX_CHOICES])}{more}."
    raise UserError(f"{name!r} is not a {what}; {hint}")


def join_or(names: Iterable[str]) -> str:
    """Names as a sentence lists them: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def whole_number(text: str, what: str) -> int:
    """A number of pixels. Raises UserError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise UserError(f"{what} {text!r} is not a number of pixels; give a whole number above 0.")
    return int(text)


PRESET_FORMAT = "gla-jax preset 1"
PRESET_SUFFIX = ".json"
# Whose names for the classes of a benchmark; a file may also say them without the ending, as until 0.1.
PROMPT_LISTS = ("sclip-prompts", "proxyclip-prompts", "clearclip-prompts")
DEFAULT_PROMPTS = "sclip-prompts"  # GLA's release takes SCLIP's
METHOD_NUMBERS = ("anchor_threshold", "dynamic_shift", "dynamic_scale")
# What a preset file holds, with the least and the largest value that makes sense.
NUMBERS = {
    "anchor_threshold": (-1.0, 1.0),
    "dynamic_shift": (0.0, 1e6),
    "dynamic_scale": (0.0, 1e6),
    "logit_scale": (0.0, 1e6),
    "threshold": (0.0, 1.0),
}


class TunedPreset(NamedTuple):
    """A file of gla-jax tune: settings, the name of their method, and of the list of prompts they were fitted on."""

    config: SegmenterConfig
    method: str
    prompts: str


def read_preset(path: Path) -> TunedPreset:
    """The settings in a file that gla-jax tune wrote. Raises UserError."""
    content = read_json(path, "the preset", "write it with gla-jax tune")
    if not isinstance(content, dict) or content.get("format") != PRESET_FORMAT:
        raise UserError(f"{path} is not a preset of this program; write one with gla-jax tune.")
    try:
        name, numbers = content["method"], dict(content["numbers"])
        # Until 0.1 GLA on CLIP's own keys was called gla-clip.
        name = "gla-on-clip-keys" if name == "gla-clip" else name
        method, windows = METHODS[name], WindowConfig(**content["windows"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the preset {path} is damaged ({error}); write it with gla-jax tune again.") from None
    if set(numbers) != set(NUMBERS):
        raise UserError(f"the preset {path} holds other numbers than {', '.join(NUMBERS)}; write it with gla-jax tune.")
    for field, (low, high) in NUMBERS.items():
        value = numbers[field]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise UserError(f"{field} is {value!r} in the preset {path}; it is a number from {low:g} to {high:g}.")
    of_method = {field: numbers.pop(field) for field in METHOD_NUMBERS}
    prompts = str(content.get("prompts", DEFAULT_PROMPTS))
    prompts = f"{prompts}-prompts" if f"{prompts}-prompts" in PROMPT_LISTS else prompts
    try:
        config = SegmenterConfig(replace(method, **of_method), windows, **numbers)
    except ValueError as error:
        raise UserError(f"the preset {path} cannot be used: {error}.") from None
    return TunedPreset(config, name, check_choice(prompts, PROMPT_LISTS, "list of prompts"))


def number(config: SegmenterConfig, name: str) -> float:
    """One of the numbers that a preset file holds."""
    return float(getattr(config.method if name in METHOD_NUMBERS else config, name))


def preset_content(config: SegmenterConfig, method: str, prompts: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """A preset file's content: settings, the name of their method and prompts, and how they were found."""
    return {
        "format": PRESET_FORMAT,
        "version": VERSION,
        "method": method,
        "prompts": prompts,
        "windows": asdict(config.windows),
        "numbers": {name: number(config, name) for name in NUMBERS},
        **report,
    }


NATIVE = "native"
WINDOW_FIELDS = tuple(field.name for field in dataclasses.fields(WindowConfig))
METHOD_FIELDS = tuple(field.name for field in dataclasses.fields(MethodConfig))
LABEL_FIELDS = (
    "logit_scale",
    "threshold",
    "prune_below",
    "background_margin",
    "foreground_below",
    "average",
    "dtype",
    "tower_batch",
)
REQUIRED_NUMBERS = {
    "anchor_threshold",
    "shift",
    "scale",
    "temperature",
    "logit_scale",
    "threshold",
    "prune_below",
    "background_margin",
}


def method_name(name: str) -> str:
    """The name of a method, after aliases. Raises UserError for an unknown one."""
    if isinstance(name, str) and name in METHOD_ALIASES:
        if name == "gla-clip":
            warnings.warn(
                "gla-clip is the paper's method, gla; GLA on CLIP's own keys is called gla-on-clip-keys now",
                stacklevel=3,
            )
        return METHOD_ALIASES[name]
    return check_choice(name, METHODS, "method")


def preset_name(name: str) -> str:
    """The name of a preset in full, WINDOWS or WINDOWS+NUMBERS, after aliases. Raises UserError for an unknown one."""
    sizes, plus, numbers = name.partition("+")
    if sizes in NUMBER_SETTINGS and not plus:
        sizes, plus, numbers = DEFAULT_PRESET, "+", sizes
    if sizes in PRESET_ALIASES:
        warnings.warn(f"the preset {sizes} is called {PRESET_ALIASES[sizes]} now, by its sizes", stacklevel=3)
        sizes = PRESET_ALIASES[sizes]
    check_choice(sizes, PRESETS if plus else [*PRESETS, *NUMBER_SETTINGS], "preset")
    return sizes + (f"+{check_choice(numbers, NUMBER_SETTINGS, 'setting of the numbers')}" if plus else "")


def named_preset(name: str) -> SegmenterConfig:
    """The settings of a preset by its full name; its method is GLA's, with the preset's numbers."""
    sizes, _, numbers = name.partition("+")
    base = PRESETS[sizes]
    return replace(base, method=replace(base.method, **NUMBER_SETTINGS[numbers])) if numbers else base


def names_numbers(preset: Any, fields: Iterable[str] = ()) -> bool:
    """True if a preset, a file or fields of the settings say what the numbers are, so that no model chooses them."""
    preset, names = str(preset), {FIELD_ALIASES.get(name, name) for name in fields}
    return "+" in preset or preset in NUMBER_SETTINGS or preset.endswith(PRESET_SUFFIX) or bool(names & {*CALIBRATED})


def check_calibrated(config: SegmenterConfig, method: str) -> SegmenterConfig:
    """The settings themselves. Raises UserError where their numbers suit a calibration that the method does not take.

    method: its name.
    """
    if config.method.calibration and not config.method.reads_vfm:
        raise UserError(
            f"{config.method.calibration} calibrates features of a vision foundation model, and the method {method} "
            "compares none; leave it out, or choose gla."
        )
    return config


def settings_from_options(
    *,
    method: str = "gla",
    preset: str | Path = DEFAULT_PRESET,
    short_side: str | int | None = None,
    crop: int | None = None,
    stride: int | None = None,
    dtype: str = "float32",
    anchor_threshold: float | None = None,
) -> SegmenterConfig:
    """A preset with options over it.

    Args:
        method: name of a method.
        preset: name of windows, of the method's numbers, both joined by a plus, or a file that ends with .json.
        short_side: pixels, or "native" for the image's own size.
        crop: side of a window in pixels.
        stride: step between windows in pixels.
        dtype: of the towers.
        anchor_threshold: rho, a cosine.

    Raises UserError for a name that does not exist, a file of another method and numbers that do not go together.
    """
    method, preset = method_name(method), str(preset)
    chosen = METHODS[method]
    if preset.endswith(PRESET_SUFFIX):
        base, tuned, _ = read_preset(place(preset))
        if tuned != method:  # numbers of one method say nothing about another
            raise UserError(f"the preset {preset} is for the method {tuned}, not for {method}; add --method {tuned}.")
        chosen = base.method
    else:
        preset = preset_name(preset)
        base = named_preset(preset)
        if "+" in preset:
            chosen = replace(chosen, **{name: getattr(base.method, name) for name in CALIBRATED})
    fields = {"short_side": short_side, "crop": crop, "stride": stride, "anchor_threshold": anchor_threshold}
    changes = {name: value for name, value in fields.items() if value is not None}
    return check_calibrated(with_fields(replace(base, method=chosen), changes | {"dtype": dtype}), method)


def with_fields(config: SegmenterConfig, fields: Mapping[str, Any]) -> SegmenterConfig:
    """Settings with some fields changed by name, of any of their parts; the paper's letters are accepted.

    fields: method, preset, windows and numbers, as `gla-jax segment` names them. Raises UserError.
    """
    for name in FIELD_ALIASES.keys() & fields.keys():
        if FIELD_ALIASES[name] in fields:
            raise UserError(f"{name} and {FIELD_ALIASES[name]} are two names of one setting; give one of them.")
    fields = {FIELD_ALIASES.get(name, name): value for name, value in fields.items()}
    for name in fields:
        check_choice(name, ["method", *METHOD_FIELDS, *WINDOW_FIELDS, *LABEL_FIELDS], "setting")
    for name in REQUIRED_NUMBERS & fields.keys():
        if fields[name] is None:  # the classes take it, as the mark of a number that vmap does not map
            raise UserError(f"{name} is None; give a number.")
    method = METHODS[method_name(fields["method"])] if "method" in fields else config.method
    rho = fields.get("anchor_threshold")
    if isinstance(rho, int | float | np.number) and not -1.0 <= rho <= 1.0:
        raise UserError(f"anchor threshold {rho} is not a cosine; give a number from -1 to 1.")
    short_side = fields.get("short_side")
    if isinstance(short_side, str):
        fields["short_side"] = None if short_side == NATIVE else whole_number(short_side, "short side")

    def parts(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: fields[name] for name in names if name in fields}

    try:
        changed = replace(
            config,
            method=replace(method, **parts(METHOD_FIELDS)),
            windows=replace(config.windows, **parts(WINDOW_FIELDS)),
            **parts(LABEL_FIELDS),
        )
    except ValueError as error:
        raise UserError(f"{error}.") from None
    # One that came with a preset goes without a word where a method of `fields` compares nothing.
    return check_calibrated(changed, fields.get("method", method.baseline)) if fields.get("calibration") else changed
