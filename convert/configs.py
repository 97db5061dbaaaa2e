"""The fields of published configurations: the numbers that they state, and what the towers cannot follow, by name."""

import math
import os
import re
from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gla_jax.convert.fields import (
    ABSENT,
    OPEN_CLIP_MODEL,
    OPEN_CLIP_TEXT,
    OPEN_CLIP_VISION,
    TIMM_ARGUMENTS,
    TRANSFORMERS,
)
from gla_jax.convert.rules import first_names, short
from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD, Channels, are_pixel_numbers
from gla_jax.support.errors import ConversionError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Config = Mapping[str, Any]
MAX_LISTED = 30_000  # layers or labels; ImageNet-22k has 21,841


class Stated(NamedTuple):
    """A configuration's field and its value, which is a function of the tower's width where it depends on that."""

    field: str
    value: Any


Statements = dict[str, Stated]  # by the field of a spec, with its tower: "image/depth", "text/depth", "depth"


class Pixels(NamedTuple):
    """Mean and std of the pixels a model was trained on, RGB in 0..1."""

    mean: Channels
    std: Channels


def read_config(config: Config | None, model_types: Mapping[str, str]) -> Statements:
    """The statements of a configuration of transformers, open_clip or timm; none where there is no such configuration.

    model_types: the transformers configuration class of every model_type that the family has. Raises ConversionError
    for a model that the family does not have.
    """
    if config is None:
        return {}
    if is_transformers(config):
        return _read_transformers(_complete(config, model_types))
    model = config.get("model_cfg", config)
    if isinstance(model, dict) and "vision_cfg" in model:
        return _read_open_clip(model)
    return _read_timm(config) if is_timm(config) else {}


def is_transformers(config: Config | None) -> bool:
    """True for Hugging Face's configurations."""
    return config is not None and "model_type" in config


def is_timm(config: Config | None) -> bool:
    """True for timm's configurations."""
    return config is not None and not is_transformers(config) and "architecture" in config


def check_model_type(config: Config, model_types: Mapping[str, str]) -> None:
    """Raise ConversionError where a Hugging Face configuration is one of another family.

    model_types: those of the family, as in read_config.
    """
    kind = str(config["model_type"])
    if kind == "siglip2":
        raise ConversionError(
            "its config.json says it is a NaFlex model of SigLIP 2, which is not converted; take one of a fixed "
            "resolution, such as google/siglip2-base-patch16-224."
        )
    if kind not in model_types:
        own = f"this family ({' or '.join(model_types)})" if model_types else "this family"
        raise ConversionError(
            f"its config.json says it is a {short(kind)} model, which {own} is not; convert it as another family."
        )


def _complete(config: Config, model_types: Mapping[str, str]) -> "PreTrainedConfig":
    """A Hugging Face configuration with every field, those the file leaves out as transformers defines them."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is no news here
    import transformers

    kind = str(config["model_type"])
    check_model_type(config, model_types)
    if config.get("quantization_config"):
        raise ConversionError("its config.json has a quantization_config: quantised weights are not converted.")
    # transformers lists every layer and every label, and looks each layer up among those of a backbone.
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name in ("num_hidden_layers", "num_labels"):
            if type(part.get(name)) in (int, float) and part[name] > MAX_LISTED:
                raise ConversionError(f"its config.json has {name} = {short(part[name])}, more than any model.")
    unread = ("out_features", "out_indices", "_out_features", "_out_indices")
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of token ids that it fills in itself
    try:
        kept = {name: value for name, value in config.items() if name not in unread}
        return getattr(transformers, model_types[kind]).from_dict(kept)
    except Exception as error:  # whatever a validator of theirs raises, the file is what is wrong
        reason = first_line(error)
        if reason.endswith(":"):  # the field follows in the next line
            reason += f" {' '.join(str(error).split())[len(reason) :].strip()[:160]}"
        raise ConversionError(f"its config.json is not one transformers accepts ({reason}).") from error
    finally:
        transformers.logging.set_verbosity(verbosity)


def _read_transformers(config: "PreTrainedConfig") -> Statements:
    if hasattr(config, "vision_config"):
        image, text = (_fields(part, f"{part.base_config_key}.") for part in (config.vision_config, config.text_config))
        # CLIP's early configurations all say 2, whatever the vocabulary; it then reads the largest id, the last.
        if config.model_type == "clip" and text["end_token"].value == 2:
            del text["end_token"]
        towers = {"image/": image | _fields(config), "text/": text | _fields(config)}
        return {tower + name: stated for tower, fields in towers.items() for name, stated in fields.items()}
    stated = _fields(config)
    if getattr(config, "use_swiglu_ffn", False):
        two_thirds = int(int(config.hidden_size * config.mlp_ratio) * 2 / 3)
        stated["mlp_width"] = Stated("mlp_ratio", (two_thirds + 7) // 8 * 8)
        stated["activation"] = Stated("use_swiglu_ffn", "swiglu")
    return {"registers": Stated("num_register_tokens", 0), **stated} if config.model_type == "dinov2" else stated


def _fields(config: "PreTrainedConfig", where: str = "") -> Statements:
    """Statements of a configuration by the fields of its class; those no table has count where they are no default."""
    import transformers

    # Of the class: a file may give the part of a model another name.
    table, common = TRANSFORMERS[type(config).model_type], signature(transformers.PretrainedConfig).parameters
    own = {name: x.default for name, x in signature(type(config)).parameters.items() if name not in common}
    values = {name: getattr(config, name) for name in own if hasattr(config, name)}
    new = [name for name, value in values.items() if name not in table and value == own[name]]
    return _compared(where, {name: value for name, value in values.items() if name not in new}, table, ())


def _read_open_clip(model: Config) -> Statements:
    activation = Stated("quick_gelu", "quick_gelu" if model.get("quick_gelu") else "gelu")
    both = {"activation": activation, **_compared("", model, OPEN_CLIP_MODEL)}
    stated: Statements = {}
    for tower, name, table, default in (
        ("image/", "vision_cfg", OPEN_CLIP_VISION, {"head_width": 64}),  # what a file leaves out is what open_clip sets
        ("text/", "text_cfg", OPEN_CLIP_TEXT, {"heads": 8}),
    ):
        part = model.get(name, {})
        if not isinstance(part, dict):
            raise ConversionError("its open_clip configuration does not describe two towers.")
        norm = part.get("norm_kwargs") or {}
        norm = {"eps": 1e-5, **norm} if isinstance(norm, dict) else norm
        fields = both | _compared(f"{name}.", {**default, **part}, table)
        fields |= _compared(f"{name}.norm_kwargs.", norm, {"eps": "layer_norm_eps"}, ())
        stated |= {tower + ours: statement for ours, statement in fields.items()}
    heads = stated["image/num_heads"]
    stated["image/num_heads"] = _of_width(heads, lambda width, size: width // size if size else None)
    text = model.get("text_cfg", {})
    if text.get("pool_type") == "eos":
        stated["text/end_token"] = Stated("text_cfg.eos_id", text.get("eos_id", 2))
    return stated


def _of_width(stated: Stated, function: Any) -> Stated:
    """A statement whose value is function(width, value), None where the value is no number."""
    number = type(stated.value) in (int, float) and abs(stated.value) < 1e6
    return Stated(stated.field, (lambda width: function(width, stated.value)) if number else None)


def _compared(where: str, part: Any, table: Mapping[str, Any], absent: tuple = ABSENT) -> Statements:
    """Statements of a part of a configuration by a table of its fields.

    Raises ConversionError for a value that the towers do not follow and for a field that is not in the table, unless
    its value is one of absent.
    """
    if not isinstance(part, dict):
        raise ConversionError(f"its configuration has {short(part)} as {where.rstrip('.')}, where fields belong.")
    refused = [
        f"{where[:60]}{name[:60]} = {short(value)}"
        for name, value in part.items()
        if (isinstance(rule := table.get(name, absent), tuple) and value not in rule)
    ]
    if refused:
        raise ConversionError(f"its configuration asks for {first_names(refused)}, which the towers do not have.")
    stated = {
        ours: Stated(where + name, part[name]) for name, ours in table.items() if isinstance(ours, str) and name in part
    }
    if "mlp_ratio" in part:
        stated["mlp_width"] = _of_width(stated["mlp_width"], lambda width, ratio: int(width * ratio))
    return stated


# Plain ViTs, whose blocks differ in nothing that tensors do not show; others (rpn, relpos, rope, ...) do.
_TIMM = re.compile(
    r"(?:vit|deit)_[a-z]+_patch(?P<patch>\d+)(?:_reg(?P<registers>\d+))?_(?:\d+|dinov2)(?:_dino)?(?:\.\w+)?"
)


def _read_timm(config: Config) -> Statements:
    name = _TIMM.fullmatch(str(config["architecture"]))
    if name is None:
        raise ConversionError(
            f"its config.json says it is timm's {short(config['architecture'])}, which is no plain ViT."
        )
    stated = {"patch_size": Stated("architecture", int(name["patch"]))}
    if name["registers"]:
        stated["registers"] = Stated("architecture", int(name["registers"]))
    if "num_features" in config:
        stated["width"] = Stated("num_features", config["num_features"])
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        stated |= {"channels": Stated("input_size", size[0]), "image_size": Stated("input_size", size[1:])}
    fields = _compared("model_args.", config.get("model_args") or {}, TIMM_ARGUMENTS)
    # timm resizes position tables by PyTorch's antialiased kernel.
    return {**stated, **fields, "position_resize": Stated("architecture", "bicubic_antialias")}


def check_statements(stated: Statements, spec: Any, tower: str = "") -> None:
    """Raise ConversionError where a configuration states another number than the tensors of a tower have.

    Args:
        stated: of the whole configuration.
        spec: of the tower; its fields come from the tensors, or from these statements.
        tower: "image/" or "text/", empty for a model of one tower.
    """
    fields = {"channels": 3, "activation": "gelu"} | vars(spec)  # no tower has other channels, nor DINO another GELU
    for name, (field, value) in stated.items():
        if not name.startswith(tower) or "/" in name[len(tower) :]:
            continue  # of the other tower
        name = name[len(tower) :]
        value = value(spec.width) if callable(value) else value
        ours = fields[name]
        sides = value if name in ("image_size", "patch_size") and isinstance(value, list | tuple) else ()
        if sides and all(side == sides[0] for side in sides):
            value = value[0]
        if name == "image_size" and isinstance(value, int):
            value -= value % spec.patch_size  # a border narrower than a patch is not seen
        if value != ours or isinstance(value, bool) != isinstance(ours, bool):
            raise ConversionError(
                f"its configuration contradicts its tensors: {field} makes {name} {str(value)[:60]}, where they have "
                f"{ours}; take both from one model."
            )


def stated_pixels(config: Config | None) -> Pixels | None:
    """The pixel mean and std of an open_clip, preprocessor, processor or timm configuration, None where it has none.

    Raises ConversionError when it states something else than three means and three positive stds.
    """
    config = config or {}
    parts = (config.get(key) for key in ("preprocess_cfg", "pretrained_cfg"))
    pairs = [(part.get("mean"), part.get("std")) for part in parts if isinstance(part, dict)]
    processor = config.get("image_processor", config)
    if isinstance(processor, dict):
        factor = processor.get("rescale_factor", 1 / 255)
        if processor.get("do_rescale") is False or type(factor) is not float or abs(255 * factor - 1) > 1e-3:
            raise ConversionError(
                f"it rescales pixels by {short(factor)} (do_rescale, rescale_factor), and the towers by 1/255 alone."
            )
        unchanged = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        stated = (processor.get("image_mean"), processor.get("image_std"))
        pairs.append(unchanged if processor.get("do_normalize") is False else stated)
    mean, std = next((pair for pair in pairs if pair != (None, None)), (None, None))
    if mean is None and std is None:
        return None
    if not (_three_numbers(mean) and _three_numbers(std) and are_pixel_numbers(mean, std)):
        raise ConversionError(
            f"it gives {short(mean)} as mean and {short(std)} as std of pixels, which are not three numbers "
            "each, the former in 0..1, the latter above 0; download it again."
        )
    return Pixels(tuple(map(float, mean)), tuple(map(float, std)))


def _three_numbers(values: Any) -> bool:
    three = isinstance(values, list | tuple) and len(values) == 3
    return three and all(type(x) in (int, float) and math.isfinite(x) for x in values)


def refuse_other_pixels(pixels: Pixels | None) -> None:
    """Raise ConversionError unless pixels are normalised as for DINO and DINOv2, by ImageNet's numbers, or unsaid."""
    if pixels is not None and not np.allclose(pixels, (IMAGENET_MEAN, IMAGENET_STD), atol=1e-4):
        raise ConversionError(
            f"the files beside the weights normalise pixels by mean {list(pixels.mean)} and std {list(pixels.std)}, "
            "but the DINO and DINOv2 towers use ImageNet's alone; convert weights that were trained with those."
        )
