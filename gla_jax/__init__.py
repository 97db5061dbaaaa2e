"""GLA-CLIP on JAX: training-free open-vocabulary segmentation. Everything public, loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gla_jax.support.version import VERSION as __version__

if TYPE_CHECKING:
    from gla_jax.config import (
        BASELINES,
        METHODS,
        PRESETS,
        Baseline,
        MethodConfig,
        SegmenterConfig,
        WindowConfig,
        register_baseline,
    )
    from gla_jax.distributed.mesh import make_mesh
    from gla_jax.eval.datasets.by_example import classes_from
    from gla_jax.pipeline import SegmenterParams, segment_features, segment_logits
    from gla_jax.results.segmentation import Segmentation
    from gla_jax.segmenter import Segmenter, image_segmentation, segment

_MODULES = {
    "config": (
        "BASELINES",
        "METHODS",
        "PRESETS",
        "Baseline",
        "MethodConfig",
        "SegmenterConfig",
        "WindowConfig",
        "register_baseline",
    ),
    "distributed.mesh": ("make_mesh",),
    "eval.datasets.by_example": ("classes_from",),
    "pipeline": ("SegmenterParams", "segment_features", "segment_logits"),
    "results.segmentation": ("Segmentation",),
    "segmenter": ("Segmenter", "image_segmentation", "segment"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BASELINES",
    "METHODS",
    "PRESETS",
    "Baseline",
    "MethodConfig",
    "Segmentation",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterParams",
    "WindowConfig",
    "__version__",
    "classes_from",
    "image_segmentation",
    "make_mesh",
    "register_baseline",
    "segment",
    "segment_features",
    "segment_logits",
]


def __getattr__(name: str) -> Any:
    if name == "ray":  # a module, which asks for the extra of that name
        return import_module("gla_jax.cluster")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gla_jax' has no attribute {name!r}")
    return getattr(import_module(f"gla_jax.{_MODULE_OF[name]}"), name)
