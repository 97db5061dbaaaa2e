"""Preset files: settings that gla-jax tune fitted, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.settings.names import check_choice
from gla_jax.support.errors import UserError
from gla_jax.support.files import read_json
from gla_jax.support.version import VERSION

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
