"""Numbers of the method that suit a foundation model's features: choosing a model chooses them (eval/RESULTS.md)."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gla_jax.checkpoints.model_folder import Checkpoint
from gla_jax.config import CALIBRATED, DEFAULT_PRESET, NUMBER_SETTINGS, MethodConfig, SegmenterConfig
from gla_jax.settings.options import names_numbers, with_fields
from gla_jax.towers.dino import DinoV2Spec


def measured_numbers(vfm: Checkpoint | None) -> str | None:
    """Name in NUMBER_SETTINGS of what was measured to suit a model's features; None: the published, or not measured.

    By the sizes of the tower, so that folders have them too.
    """
    spec = vfm and vfm.spec
    small = isinstance(spec, DinoV2Spec) and (spec.width, spec.depth, spec.registers) == (384, 12, 0)
    return "centred" if small else None


def suited(config: SegmenterConfig, vfm: Checkpoint | None) -> SegmenterConfig:
    """Settings with the numbers that were measured for a foundation model, which a warning says once.

    The same where none were, and for methods that do not compare its features by GLA.
    """
    name, method = measured_numbers(vfm), config.method
    if name is None or not _is_gla(method):
        return config
    warnings.warn(
        f"{vfm.folder.name} runs under --preset {DEFAULT_PRESET}+{name}, the numbers that were measured for its "
        "features; rho-0.55 in its place takes the published ones",
        stacklevel=2,
    )
    return replace(config, method=replace(method, **NUMBER_SETTINGS[name]))


def with_fields_suited(config: SegmenterConfig, fields: Mapping[str, Any]) -> SegmenterConfig:
    """with_fields, where another method keeps the calibration of the one before unless fields name its numbers."""
    before, config = config.method, with_fields(config, fields)
    if "method" not in fields or not before.calibration or not _is_gla(config.method) or names_numbers("", fields):
        return config
    return replace(config, method=replace(config.method, **{name: getattr(before, name) for name in CALIBRATED}))


def _is_gla(method: MethodConfig) -> bool:
    # Stitched features are others than those that were measured.
    return method.reads_vfm and method.global_buffer and method.proxy_anchors and not method.stitches
