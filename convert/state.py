"""One entry for every family: published tensors in memory to a spec and parameters."""

from collections.abc import Callable, Mapping
from typing import Any

from gla_jax.convert.architecture import Config, Converted
from gla_jax.convert.clip import convert_clip
from gla_jax.convert.dino import convert_dino
from gla_jax.convert.dinov2 import convert_dinov2
from gla_jax.convert.rules import State
from gla_jax.support.errors import ConversionError

CONVERTERS: Mapping[str, Callable[..., Converted]] = {
    "clip": convert_clip,
    "dino": convert_dino,
    "dinov2": convert_dinov2,
}


def convert_state(family: str, state: State, config: Config | None = None, **options: Any) -> Converted:
    """A model of a family ("clip", "dino" or "dinov2") from its tensors: (spec, params, records), params in float32.

    config is a Hugging Face config.json or an open_clip_config.json as a dictionary; options are those of the family's
    own function (num_heads and pixels, and for CLIP activation and text_heads), None leaves them to the configuration
    and the shapes.
    Raises ConversionError.
    """
    if family not in CONVERTERS:
        raise ConversionError(f"{family!r} is not a family of models; there are {', '.join(CONVERTERS)}.")
    given = {name: value for name, value in options.items() if value is not None}
    foreign = sorted(given.keys() - (CONVERTERS[family].__kwdefaults__ or {}).keys())
    if foreign:
        raise ConversionError(f"{', '.join(foreign)} cannot be chosen for {family} weights; leave it out.")
    return CONVERTERS[family](state, config, **given)
