"""Published tensors in memory to a spec and parameters, in one way for every family: route, size, compare, fit."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gla_jax.checkpoints.model_folder import ClipSpec, Params, abstract_params
from gla_jax.convert import clip, dino, dinoiser, dinov3, siglip, tips
from gla_jax.convert.architecture import Facts
from gla_jax.convert.configs import Config, Pixels, Statements, check_statements, read_config, stated_pixels
from gla_jax.convert.rules import Record, Routed, State, Table, fit, route
from gla_jax.support.errors import ConversionError


class Family(NamedTuple):
    """One kind of models: rules of its tensors, and the function from (routed, facts, pixels) to its spec.

    model_types: {model_type: its configuration class in transformers}. options: {option of convert_state: fields of the
    spec that it sets}. shown: what names and shapes of its tensors state as a configuration would.
    """

    rules: Table
    model_types: Mapping[str, str]
    options: Mapping[str, tuple[str, ...]]
    spec: Callable[[dict[str, Routed], Facts, Pixels | None], Any]
    shown: Callable[[State], Statements] = lambda state: {}


_CLIP_OPTIONS = {
    "activation": ("image/activation", "text/activation"),
    "num_heads": ("image/num_heads",),
    "text_heads": ("text/num_heads",),
}
_SIGLIP_OPTIONS = {**_CLIP_OPTIONS, "end_token": ("text/end_token",), "pad_token": ("text/pad_token",)}
_HEADS = {"num_heads": ("num_heads",)}
_TIPS_OPTIONS = {"num_heads": ("image/num_heads",), "text_heads": ("text/num_heads",)}
FAMILIES: Mapping[str, Family] = {
    "clip": Family(clip.RULES, clip.MODEL_TYPES, _CLIP_OPTIONS, clip.clip_spec),
    "siglip": Family(siglip.RULES, siglip.MODEL_TYPES, _SIGLIP_OPTIONS, siglip.siglip_spec),
    "dino": Family(dino.DINO_RULES, dino.DINO_MODEL_TYPES, _HEADS, dino.dino_spec),
    "dinov2": Family(dino.DINOV2_RULES, dino.DINOV2_MODEL_TYPES, _HEADS, dino.dinov2_spec),
    "clip-dinoiser": Family(dinoiser.RULES, {}, {}, dinoiser.dinoiser_spec),
    "dinov3": Family(dinov3.RULES, dinov3.MODEL_TYPES, _HEADS, dinov3.dinov3_spec),
    "tipsv2": Family(tips.RULES, tips.MODEL_TYPES, _TIPS_OPTIONS, tips.tips_spec, tips.scenic_statements),
}
_CLIP_IMAGE = Family(clip.IMAGE_RULES, clip.MODEL_TYPES, _CLIP_OPTIONS, clip.image_spec)


class Converted(NamedTuple):
    """A model's spec and float32 parameters, what became of every source tensor, and what had to be assumed.

    assumed: {"num_heads": "12: as the published models of width 768", ...}, a value and the reason for it.
    """

    spec: Any
    params: Params
    records: dict[str, Record]
    assumed: dict[str, str]


def convert_state(
    family: str, state: State, config: Config | None = None, *, pixels: Pixels | None = None, **options: Any
) -> Converted:
    """Convert a model of a family from its tensors; parameters come out in float32.

    Args:
        family: one of FAMILIES.
        state: arrays by published name.
        config: a config.json of transformers or timm, or an open_clip_config.json.
        pixels: mean and std that they are normalised by; None leaves them to config.
        options: num_heads, for CLIP and SigLIP activation (of CLIP "quick_gelu" or "gelu") and text_heads, for SigLIP
            end_token and pad_token; they go before what config says, None leaves them to it and to the shapes.

    Raises ConversionError where tensors and configuration do not fit the family or each other, or leave a field open.
    """
    if family not in FAMILIES:
        raise ConversionError(f"{family!r} is not a family of models; there are {', '.join(FAMILIES)}.")
    foreign = sorted({name for name in options if options[name] is not None} - FAMILIES[family].options.keys())
    if foreign:
        raise ConversionError(f"{', '.join(foreign)} cannot be chosen for {family} weights; leave it out.")
    return _convert(FAMILIES[family], state, config, pixels, options, abstract_params)


def convert_clip_image(
    state: State, config: Config | None = None, *, activation: str | None = None, num_heads: int | None = None
) -> Converted:
    """The image tower alone, from tensors without a text tower; the spec is a ClipImageSpec, the tree its own."""
    options = {"activation": activation, "num_heads": num_heads}
    converted = _convert(_CLIP_IMAGE, state, config, None, options, _abstract_image)
    return converted._replace(params=converted.params["image"])


def _abstract_image(spec: Any) -> Params:
    return {"image": abstract_params(spec)}


def _convert(
    family: Family,
    state: State,
    config: Config | None,
    pixels: Pixels | None,
    options: Mapping[str, Any],
    expected: Callable[[Any], Params],
) -> Converted:
    """The one way of a conversion; expected gives shapes and dtypes of a spec's parameters."""
    options = {name: value for name, value in options.items() if value is not None}
    chosen = {field: value for name, value in options.items() for field in family.options[name]}
    facts = Facts(chosen, read_config(config, family.model_types) | family.shown(state))
    routed, records = route(state, family.rules)
    spec = family.spec(routed, facts, pixels or stated_pixels(config))
    if isinstance(spec, ClipSpec):
        check_statements(facts.stated, spec.image, "image/")
        check_statements(facts.stated, spec.text, "text/")
    else:
        check_statements(facts.stated, spec, "image/" if family is _CLIP_IMAGE else "")
    stored = sorted({str(leaf.dtype) for _, leaf in routed.values()} - {"float32"})
    if stored:
        kept = "rounds" if "float64" in stored else "keeps its numbers as they are"
        facts.assumed["dtype"] = f"float32: the source stores {' and '.join(stored)}, which {kept}"
    return Converted(spec, fit(routed, expected(spec)), records, facts.assumed)
