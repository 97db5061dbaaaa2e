"""Mean and std of pixels that towers were trained on, RGB in 0..1, and the normalisation by them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from gla_jax.support.shapes import Array, Float

Channels = tuple[float, float, float]
# Of the images OpenAI trained CLIP on; most CLIPs since have taken them over.
OPENAI_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD: Channels = (0.26862954, 0.26130258, 0.27577711)
CLIP_MEAN, CLIP_STD = np.array(OPENAI_MEAN, np.float32), np.array(OPENAI_STD, np.float32)
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)


def are_pixel_numbers(mean: Sequence[float], std: Sequence[float]) -> bool:
    """True for a mean and a std that pixels in 0..1 can have; far from these float32 would lose or overflow them."""
    return all(0 <= number <= 1 for number in mean) and all(1e-4 <= number <= 1e4 for number in std)


def normalise(
    pixels: Float[Array, "W 3 c c"], mean: Channels | np.ndarray, std: Channels | np.ndarray
) -> Float[Array, "W 3 c c"]:
    """(pixels - mean) / std per channel."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 3, 1, 1) for x in (mean, std))
    return (pixels - mean) / std
