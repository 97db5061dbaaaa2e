"""From what a user types to frozen settings: names are looked up, numbers checked, each fault one sentence."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from gla_jax.config import METHODS, PRESETS, SegmenterConfig, WindowConfig
from gla_jax.support.errors import UserError

DTYPES = ("float32", "bfloat16")
NATIVE = "native"
PRESET_FORMAT = "gla-jax preset 1"
PRESET_SUFFIX = ".json"
PROMPT_LISTS = ("sclip", "proxyclip", "clearclip")  # whose names for the classes of a benchmark
OWN_PROMPTS = "sclip"  # GLA's release takes SCLIP's
METHOD_NUMBERS = ("anchor_threshold", "dynamic_shift", "dynamic_scale")
# What a preset file holds, with the least and the largest value that makes sense.
NUMBERS = {
    "anchor_threshold": (-1.0, 1.0),
    "dynamic_shift": (0.0, 1e6),
    "dynamic_scale": (0.0, 1e6),
    "logit_scale": (0.0, 1e6),
    "threshold": (0.0, 1.0),
}


def one_of(given: str, choices: Iterable[str], what: str) -> str:
    """The choice itself. Raises UserError, with the nearest choices, when there is no such one."""
    choices = list(choices)
    if given in choices:
        return given
    close = difflib.get_close_matches(given, choices, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices)}."
    raise UserError(f"{given!r} is not a {what}; {hint}")


def either(names: Iterable[str]) -> str:
    """Names as a sentence lists them: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def whole_number(given: str, what: str) -> int:
    """A number of pixels. Raises UserError."""
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{what} {given!r} is not a number of pixels; give a whole number above 0.")
    return int(given)


class TunedPreset(NamedTuple):
    """A file of gla-jax tune: settings, the name of their method, and of the list of prompts they were fitted on."""

    config: SegmenterConfig
    method: str
    prompts: str


def read_preset(path: Path) -> TunedPreset:
    """What a file that gla-jax tune wrote holds. Raises UserError."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"the preset {path} cannot be read ({error.strerror}); write it with gla-jax tune.") from None
    except ValueError as error:
        raise UserError(f"the preset {path} is no JSON ({error}); write it with gla-jax tune.") from None
    if not isinstance(content, dict) or content.get("format") != PRESET_FORMAT:
        raise UserError(f"{path} is not a preset of this program; write one with gla-jax tune.")
    try:
        name, numbers = content["method"], dict(content["numbers"])
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
    config = SegmenterConfig(replace(method, **of_method), windows, **numbers)
    return TunedPreset(config, name, one_of(str(content.get("prompts", OWN_PROMPTS)), PROMPT_LISTS, "list of prompts"))


def settings_from_options(
    *,
    method: str = "gla",
    preset: str = "sclip",
    short_side: str | None = None,
    crop: int | None = None,
    stride: int | None = None,
    dtype: str = "float32",
    anchor_threshold: float | None = None,
) -> SegmenterConfig:
    """A preset with the options over it; short_side is a number of pixels or "native" for the image's own size.

    preset: a name or a file that ends with .json. Raises UserError for a name that does not exist, a file of another
    method and numbers that do not go together.
    """
    chosen = METHODS[one_of(method, METHODS, "method")]
    if preset.endswith(PRESET_SUFFIX):
        base, tuned, _ = read_preset(Path(preset))
        if tuned != method:  # numbers of one method say nothing about another
            raise UserError(f"the preset {preset} is for the method {tuned}, not for {method}; add --method {tuned}.")
        chosen = base.method
    else:
        base = PRESETS[one_of(preset, PRESETS, "preset")]
    if anchor_threshold is not None:
        low, high = NUMBERS["anchor_threshold"]
        if not low <= anchor_threshold <= high:
            raise UserError(
                f"anchor threshold {anchor_threshold} is no cosine; give a number from {low:g} to {high:g}."
            )
        chosen = replace(chosen, anchor_threshold=anchor_threshold)
    windows = {name: value for name, value in (("crop", crop), ("stride", stride)) if value is not None}
    if short_side is not None:
        windows["short_side"] = None if short_side == NATIVE else whole_number(short_side, "short side")
    try:
        return replace(
            base,
            method=chosen,
            windows=replace(base.windows, **windows) if windows else base.windows,
            dtype=one_of(dtype, DTYPES, "dtype"),
        )
    except ValueError as error:
        raise UserError(f"{error}.") from None
