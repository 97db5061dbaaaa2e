"""Published weights to model folders, without PyTorch."""

from gla_jax.convert.families import convert_clip_image, convert_state
from gla_jax.convert.model_folder import convert

__all__ = ["convert", "convert_clip_image", "convert_state"]
