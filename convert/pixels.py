"""How a model's pixels are normalised, as the files beside its weights say it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD
from gla_jax.support.errors import ConversionError
from gla_jax.towers.clip_image import Channels


class Pixels(NamedTuple):
    """Mean and deviation of the pixels a model was trained on, RGB in 0..1."""

    mean: Channels
    deviation: Channels


def stated_pixels(config: Mapping[str, Any] | None) -> Pixels | None:
    """What an open_clip_config.json, a preprocessor_config.json or a processor_config.json states, None for nothing.

    Raises ConversionError when it states something else than three means and three positive deviations.
    """
    config = config or {}
    if isinstance(config.get("preprocess_cfg"), dict):
        mean, deviation = (config["preprocess_cfg"].get(name) for name in ("mean", "std"))
    else:
        processor = config.get("image_processor", config)
        if not isinstance(processor, dict):
            return None
        mean, deviation = (processor.get(name) for name in ("image_mean", "image_std"))
        if processor.get("do_normalize") is False:
            mean, deviation = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if mean is None and deviation is None:
        return None
    if not (_three_numbers(mean) and _three_numbers(deviation) and min(deviation) > 0):
        raise ConversionError(
            f"it gives {mean} as mean and {deviation} as deviation of pixels, which are not three numbers each, the "
            "latter above 0; download it again."
        )
    return Pixels(tuple(map(float, mean)), tuple(map(float, deviation)))


def _three_numbers(values: Any) -> bool:
    three = isinstance(values, list | tuple) and len(values) == 3
    return three and all(type(x) in (int, float) and math.isfinite(x) for x in values)


def refuse_other_pixels(pixels: Pixels | None) -> None:
    """Raise ConversionError unless pixels are normalised as for DINO and DINOv2, by ImageNet's numbers, or unsaid."""
    if pixels is not None and not np.allclose(pixels, (IMAGENET_MEAN, IMAGENET_STD), atol=1e-4):
        raise ConversionError(
            f"the files beside the weights normalise pixels by mean {list(pixels.mean)} and deviation "
            f"{list(pixels.deviation)}, but the DINO and DINOv2 towers know ImageNet's alone; convert weights "
            "that were trained with those."
        )
