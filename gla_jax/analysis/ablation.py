"""The settings of an ablation: a method stage by stage, every baseline, or a grid over fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from gla_jax.config import (
    BASELINES,
    CALIBRATED,
    FIELD_ALIASES,
    MethodConfig,
    Number,
    SegmenterConfig,
    WindowConfig,
    without_gla,
)
from gla_jax.predict.model import check_settings
from gla_jax.settings.options import check_choice, with_fields
from gla_jax.support.errors import UserError
from gla_jax.window_tokens import SegmenterParams

MODEL = "model"
# Fields of a grid: model, windows, those of the method, the towers' batch, and what turns logits into labels.
LABEL_FIELDS = {"logit_scale": Number, "threshold": Number, "prune_below": Number, "background_margin": Number}
FIELDS: dict[str, Any] = (
    {MODEL: str}
    | get_type_hints(WindowConfig)
    | get_type_hints(MethodConfig)
    | {"tower_batch": int | None, **LABEL_FIELDS}
)


class Setting(NamedTuple):
    """One row of an ablation; model: the name of its model where a grid is over models."""

    name: str
    config: SegmenterConfig
    model: str | None = None

    def fields(self) -> dict[str, Any]:
        """The model and the fields of the settings, their windows and their method, by name."""
        parts = vars(self.config), vars(self.config.windows), vars(self.config.method)
        return {MODEL: self.model, **parts[0], **parts[1], **parts[2]}


@dataclass(frozen=True)
class Ablation:
    """The settings to compare, in order; axes: the values of each field of a grid, empty for stages and baselines."""

    title: str
    settings: tuple[Setting, ...]
    axes: Mapping[str, tuple[Any, ...]]

    def varied(self) -> tuple[str, ...]:
        """The fields in which the settings differ."""
        rows = [setting.fields() for setting in self.settings]
        return tuple(name for name in FIELDS if any(row[name] != rows[0][name] for row in rows))


def gla_baselines() -> tuple[str, ...]:
    """Names of the baselines that GLA is defined on, registered ones among them."""
    return tuple(name for name, row in BASELINES.items() if row.gla)


def _on_baseline(method: MethodConfig, baseline: str) -> MethodConfig:
    """A method on another baseline; one of CLIP's own heads keeps the published numbers, which suit no calibration."""
    moved = replace(method, baseline=baseline)
    if moved.reads_vfm or not method.calibration:
        return moved
    return replace(moved, **{name: getattr(MethodConfig(), name) for name in CALIBRATED})


def stages(base: SegmenterConfig, baseline: str, alone: bool = False) -> Ablation:
    """The paper's ablation: a baseline as published, then each part of GLA on top of the ones before.

    base: its method is the whole of GLA; alone: begin with MaskCLIP, under which no token sees another.
    """
    whole = _on_baseline(base.method, baseline)
    shared = replace(whole, proxy_anchors=False, row_mean=False, dynamic_shift=None, dynamic_scale=None)
    methods = {
        f"{baseline} as published": replace(shared, global_buffer=False, merge_overlaps=False),
        "+ global buffer": shared,
        "+ proxy anchors": replace(shared, proxy_anchors=True),
        "+ dynamic normalisation": whole,
    }
    if whole.calibrates:
        calibrated = {
            f"{baseline} as published": without_gla(baseline),
            "+ calibration": replace(shared, global_buffer=False),
        }
        methods = calibrated | {name: method for name, method in methods.items() if name not in calibrated}
    methods = ({"each token alone": without_gla("maskclip")} if alone else {}) | methods
    settings = tuple(Setting(name, replace(base, method=method)) for name, method in methods.items())
    return Ablation(f"GLA on {baseline}, stage by stage", settings, {})


def baselines(base: SegmenterConfig) -> Ablation:
    """Every baseline as published and, where GLA is defined on it, with GLA; base: its method is the whole of GLA."""
    settings = []
    for name, row in BASELINES.items():
        settings.append(Setting(name, replace(base, method=without_gla(name))))
        if row.gla:
            settings.append(Setting(f"{name} + GLA", replace(base, method=_on_baseline(base.method, name))))
    return Ablation("Baselines without and with GLA", tuple(settings), {})


def that_run(chosen: Ablation, params: SegmenterParams) -> tuple[Ablation, list[str]]:
    """The settings that a model can run, and the names of the others, which read what it lacks."""
    fit, unfit = [], []
    for setting in chosen.settings:
        try:
            check_settings(setting.config, params)
            fit.append(setting)
        except UserError:
            unfit.append(setting.name)
    return replace(chosen, settings=tuple(fit)), unfit


def grid(base: SegmenterConfig, baseline: str, axes: Mapping[str, tuple[Any, ...]]) -> Ablation:
    """All combinations of the axes on top of GLA on a baseline, the last axis fastest; base: as in stages.

    Raises UserError for a combination that the settings do not allow.
    """
    settings = []
    for values in product(*axes.values()):
        changes = dict(zip(axes, values, strict=True))
        name = ", ".join(f"{field} {value_text(value)}" for field, value in changes.items())
        own = changes.get("baseline", baseline)
        start = replace(base, method=_on_baseline(base.method, own if own in gla_baselines() else baseline))
        try:
            model = changes.pop(MODEL, None)
            settings.append(Setting(name, with_fields(start, changes), model))
        except UserError as error:
            raise UserError(f"the grid holds {name}: {error}") from None
    of_baseline = "" if "baseline" in axes else f" on {baseline}"
    return Ablation(f"GLA{of_baseline} over {' and '.join(axes)}", tuple(settings), axes)


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The axes of a grid from texts such as "anchor_threshold=0.4,0.5"; the paper's letters name fields too.

    Raises UserError.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not (equals and values):
            raise UserError(f'{text!r} is not a grid; write FIELD=VALUE,VALUE, such as "anchor_threshold=0.4,0.5".')
        field = check_choice(FIELD_ALIASES.get(name, name), FIELDS, "field of a grid")
        if field in axes:
            raise UserError(f"the field {field} has two grids; write all its values in one.")
        parsed = tuple(parse_value(field, value.strip()) for value in values.split(","))
        if len(set(parsed)) < len(parsed):
            raise UserError(f"the grid {text!r} names a value twice; name each value once.")
        axes[field] = parsed
    return axes


def parse_value(field: str, text: str) -> Any:
    """A value of a field as its type; its range is checked where settings are made of it.

    Raises UserError, which says what the field takes.
    """
    kind = FIELDS[field]
    if field == MODEL:
        return text
    literal = next((part for part in (kind, *get_args(kind)) if get_origin(part) is Literal), None)
    kinds = get_args(kind) or (kind,)
    optional = " or none" if NoneType in kinds else ""
    if optional and text == "none":
        return None
    if bool in kinds:
        return check_choice(text, ("true", "false"), f"value of {field}") == "true"
    if kind is str or literal:
        # The ring runs inside a mesh of devices alone, and computes the same.
        choices = BASELINES if kind is str else [choice for choice in get_args(literal) if choice != "ring"]
        return check_choice(text, choices, f"value of {field}")
    try:
        return int(text) if int in kinds else float(text)
    except ValueError:
        number = "a whole number" if int in kinds else "a number"
        raise UserError(f"{text[:40]!r} is not a value of {field}; give {number}{optional}.") from None


def value_text(value: Any) -> str:
    """A value as parse_value reads it."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
