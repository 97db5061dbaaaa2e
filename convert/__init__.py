"""Published PyTorch weights to model folders, without PyTorch."""

from gla_jax.convert.clip import convert_clip_image
from gla_jax.convert.model_folder import convert
from gla_jax.convert.state import convert_state

__all__ = ["convert", "convert_clip_image", "convert_state"]
