"""GLA-CLIP on JAX: training-free open-vocabulary segmentation. Everything public, loaded when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gla_jax.support.version import VERSION as __version__

if TYPE_CHECKING:
    from gla_jax.config import METHODS, PRESETS, MethodConfig, SegmenterConfig, WindowConfig
    from gla_jax.distributed.mesh import make_mesh
    from gla_jax.pipeline import SegmenterParams, segment_features, segment_logits
    from gla_jax.segmenter import Segmentation, Segmenter

_HOMES = {
    "METHODS": "config",
    "MethodConfig": "config",
    "PRESETS": "config",
    "Segmentation": "segmenter",
    "Segmenter": "segmenter",
    "SegmenterConfig": "config",
    "SegmenterParams": "pipeline",
    "WindowConfig": "config",
    "make_mesh": "distributed.mesh",
    "segment_features": "pipeline",
    "segment_logits": "pipeline",
}

__all__ = [
    "METHODS",
    "PRESETS",
    "MethodConfig",
    "Segmentation",
    "Segmenter",
    "SegmenterConfig",
    "SegmenterParams",
    "WindowConfig",
    "__version__",
    "make_mesh",
    "segment_features",
    "segment_logits",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gla_jax' has no attribute {name!r}")
    return getattr(import_module(f"gla_jax.{_HOMES[name]}"), name)
