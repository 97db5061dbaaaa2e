"""Many images over many machines by Ray, from Python `gla_jax.ray`; needs the extra `ray`."""

from gla_jax.cluster.ray_data import Segmenter

__all__ = ["Segmenter"]
