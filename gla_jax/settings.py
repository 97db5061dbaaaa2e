"""From what a user types to frozen settings: names are looked up, numbers checked, each fault one sentence."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gla_jax.config import METHODS, PRESETS, SegmenterConfig
from gla_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
NATIVE = "native"
PRESET_FORMAT = "gla-jax preset 1"
TUNED_FIELDS = ("anchor_threshold", "dynamic_shift", "dynamic_scale")  # of the method, in a preset file


def one_of(given: str, choices: Iterable[str], what: str) -> str:
    """The choice itself. Raises UserError, with the nearest choices, when there is no such one."""
    choices = list(choices)
    if given in choices:
        return given
    close = difflib.get_close_matches(given, choices, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices)}."
    raise UserError(f"{given!r} is not a {what}; {hint}")


def whole_number(given: str, what: str) -> int:
    """A number of pixels. Raises UserError."""
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{what} {given!r} is not a number of pixels; give a whole number above 0.")
    return int(given)


def read_preset(name: str) -> SegmenterConfig:
    """A preset by its name, or the file of one that gla-jax tune wrote. Raises UserError."""
    path = Path(name)
    if path.suffix != ".json":
        return PRESETS[one_of(name, PRESETS, "preset")]
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the preset {path} cannot be read ({error}); write it with gla-jax tune.") from None
    if not isinstance(content, dict) or content.get("format") != PRESET_FORMAT:
        raise UserError(f"{path} is not a preset of this program; write one with gla-jax tune.")
    try:
        base = PRESETS[content["base"]]
        numbers = {name: float(content["method"][name]) for name in TUNED_FIELDS}
        labels = {name: float(content[name]) for name in ("logit_scale", "threshold")}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the preset {path} is damaged at {error}; write it with gla-jax tune again.") from None
    return replace(base, method=replace(base.method, **numbers), **labels)


def settings_from_options(
    *,
    method: str = "gla",
    preset: str = "sclip",
    short_side: str | None = None,
    crop: int | None = None,
    stride: int | None = None,
    dtype: str = "float32",
) -> SegmenterConfig:
    """A preset with the options over it; short_side is a number of pixels or "native" for the image's own size.

    Raises UserError for a name that does not exist and for numbers that do not go together.
    """
    base = read_preset(preset)
    chosen = METHODS[one_of(method, METHODS, "method")]
    numbers = {name: getattr(base.method, name) for name in TUNED_FIELDS}
    if chosen.proxy_anchors:
        chosen = replace(chosen, **numbers)
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
