"""From what a user types to frozen settings: names are looked up, numbers checked, each fault one sentence."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gla_jax.config import (
    DEFAULT_PRESET,
    FIELD_ALIASES,
    METHOD_ALIASES,
    METHODS,
    PRESET_ALIASES,
    PRESETS,
    RHO_SETTINGS,
    MethodConfig,
    SegmenterConfig,
    WindowConfig,
)
from gla_jax.settings.names import check_choice, whole_number
from gla_jax.settings.preset_file import PRESET_SUFFIX, read_preset
from gla_jax.support.errors import UserError

NATIVE = "native"
WINDOW_FIELDS = tuple(field.name for field in dataclasses.fields(WindowConfig))
METHOD_FIELDS = tuple(field.name for field in dataclasses.fields(MethodConfig))
LABEL_FIELDS = ("logit_scale", "threshold", "dtype", "tower_batch")
REQUIRED_NUMBERS = {"anchor_threshold", "shift", "scale", "temperature", "logit_scale", "threshold"}


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
    """The name of a preset in full, WINDOWS or WINDOWS+RHO, after aliases. Raises UserError for an unknown one."""
    sizes, plus, rho = name.partition("+")
    if sizes in RHO_SETTINGS and not plus:
        sizes, plus, rho = DEFAULT_PRESET, "+", sizes
    if sizes in PRESET_ALIASES:
        warnings.warn(f"the preset {sizes} is called {PRESET_ALIASES[sizes]} now, by its sizes", stacklevel=3)
        sizes = PRESET_ALIASES[sizes]
    check_choice(sizes, [*PRESETS, *RHO_SETTINGS], "preset")
    return sizes + (f"+{check_choice(rho, RHO_SETTINGS, 'value of rho')}" if plus else "")


def named_preset(name: str) -> SegmenterConfig:
    """The settings of a preset by its full name; its method is GLA's, with the preset's rho."""
    sizes, _, rho = name.partition("+")
    base = PRESETS[sizes]
    return replace(base, method=replace(base.method, anchor_threshold=RHO_SETTINGS[rho])) if rho else base


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
        preset: name of windows, of a value of rho, both joined by a plus, or a file that ends with .json.
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
        base, tuned, _ = read_preset(Path(preset))
        if tuned != method:  # numbers of one method say nothing about another
            raise UserError(f"the preset {preset} is for the method {tuned}, not for {method}; add --method {tuned}.")
        chosen = base.method
    else:
        preset = preset_name(preset)
        base = named_preset(preset)
        if "+" in preset:
            chosen = replace(chosen, anchor_threshold=base.method.anchor_threshold)
    fields = {"short_side": short_side, "crop": crop, "stride": stride, "anchor_threshold": anchor_threshold}
    changes = {name: value for name, value in fields.items() if value is not None}
    return with_fields(replace(base, method=chosen), changes | {"dtype": dtype})


def with_fields(config: SegmenterConfig, fields: Mapping[str, Any]) -> SegmenterConfig:
    """Settings with some fields changed by name, of any of their parts; the paper's letters are accepted.

    fields: method, preset, windows and numbers, as `gla-jax segment` names them. Raises UserError.
    """
    fields = {FIELD_ALIASES.get(name, name): value for name, value in fields.items()}
    for name in fields:
        check_choice(name, ["method", *METHOD_FIELDS, *WINDOW_FIELDS, *LABEL_FIELDS], "setting")
    for name in REQUIRED_NUMBERS & fields.keys():
        if fields[name] is None:  # the classes take it, as the mark of a number that vmap does not map
            raise UserError(f"{name} is None; give a number.")
    method = METHODS[method_name(fields["method"])] if "method" in fields else config.method
    rho = fields.get("anchor_threshold")
    if isinstance(rho, int | float) and not -1.0 <= rho <= 1.0:
        raise UserError(f"anchor threshold {rho} is not a cosine; give a number from -1 to 1.")
    short_side = fields.get("short_side")
    if short_side == NATIVE:
        fields["short_side"] = None
    elif isinstance(short_side, str):
        fields["short_side"] = whole_number(short_side, "short side")

    def parts(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: fields[name] for name in names if name in fields}

    try:
        return replace(
            config,
            method=replace(method, **parts(METHOD_FIELDS)),
            windows=replace(config.windows, **parts(WINDOW_FIELDS)),
            **parts(LABEL_FIELDS),
        )
    except ValueError as error:
        raise UserError(f"{error}.") from None
