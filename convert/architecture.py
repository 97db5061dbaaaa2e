"""What routed tensors and a published configuration say about a model: sizes from shapes, the rest from the file."""

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gla_jax.checkpoints.model_folder import Params
from gla_jax.convert.rules import Record, Routed, first_line
from gla_jax.support.errors import ConversionError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Config = Mapping[str, Any]


class Converted(NamedTuple):
    """A model's spec and float32 parameters, and what became of every source tensor."""

    spec: Any
    params: Params
    records: dict[str, Record]


def shape_of(routed: Mapping[str, Routed], path: str, axes: int) -> tuple[int, ...]:
    """The shape of a target with that many axes. Raises ConversionError when it is missing or of another rank."""
    if path not in routed:
        raise ConversionError(f"nothing in the source gives {path}.")
    source, leaf = routed[path]
    if len(leaf.shape) != axes:
        raise ConversionError(f"{source} gives {path} the wrong number of axes: {len(leaf.shape)}, not {axes}.")
    return tuple(leaf.shape)


def transformer_sizes(routed: Mapping[str, Routed], tower: str = "") -> dict[str, int]:
    """depth and mlp_width of a transformer whose paths begin with tower; mlp_width is what the second layer reads."""
    blocks = [path.removeprefix(f"{tower}blocks_") for path in routed if path.startswith(f"{tower}blocks_")]
    if not blocks:
        raise ConversionError(f"nothing in the source gives {tower}blocks_0.")
    depth = 1 + max(int(block.partition("/")[0]) for block in blocks)
    return {"depth": depth, "mlp_width": shape_of(routed, f"{tower}blocks_0/mlp/down/kernel", 2)[0]}


def vision_sizes(routed: Mapping[str, Routed], tower: str = "") -> dict[str, int]:
    """image_size, patch_size, width, depth and mlp_width of a vision tower, in pixels and channels."""
    pixels, width = shape_of(routed, f"{tower}patch_tokens/projection/kernel", 2)
    places, _ = shape_of(routed, f"{tower}patch_tokens/positions", 2)
    patch_size, grid_side = math.isqrt(pixels // 3), math.isqrt(places)
    if 3 * patch_size**2 != pixels:
        raise ConversionError(f"its patches hold {pixels} numbers, which are not a square of RGB pixels.")
    if grid_side**2 != places:
        raise ConversionError(f"its {places} patch positions do not form a square.")
    sizes = {"image_size": grid_side * patch_size, "patch_size": patch_size, "width": width}
    return {**sizes, **transformer_sizes(routed, tower)}


def head_count(width: int, known: Mapping[int, int], given: int | None, option: str) -> int:
    """Attention heads of a tower: given if it is, else those of the published models of that width.

    Shapes do not show them. Raises ConversionError, naming the option, for an unknown width or a count that does not
    divide it.
    """
    num_heads = known.get(width) if given is None else given
    if num_heads is None:
        raise ConversionError(f"tensors of width {width} do not say how many attention heads they are: give {option}.")
    if not isinstance(num_heads, int) or num_heads < 1 or width % num_heads:
        raise ConversionError(f"{num_heads} attention heads do not divide the width {width}: give another {option}.")
    return num_heads


def transformers_config(config: Config, kinds: Mapping[str, str]) -> "PreTrainedConfig":
    """A Hugging Face configuration with every field, those the file leaves out as transformers defines them.

    kinds: the configuration class of every model_type the family has. Raises ConversionError.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is no news here
    import transformers

    kind = str(config["model_type"])
    if kind not in kinds:
        raise ConversionError(
            f"its config.json says it is a {kind!r} model, which this family ({' or '.join(kinds)}) is not; convert it "
            "as another family."
        )
    try:
        return getattr(transformers, kinds[kind]).from_dict(dict(config))
    except Exception as error:  # whatever a validator of theirs raises, the file is what is wrong
        raise ConversionError(f"its config.json is not one transformers accepts ({first_line(error)}).") from error


def is_transformers(config: Config | None) -> bool:
    """Whether a configuration is Hugging Face's; others (timm's, say) tell the converter nothing."""
    return config is not None and "model_type" in config
