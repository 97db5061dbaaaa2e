"""CLIP under its published names: Hugging Face's CLIPModel, OpenAI's archives, open_clip's state dicts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gla_jax.checkpoints.model_folder import ClipSpec, Params, abstract_params
from gla_jax.convert.architecture import (
    Config,
    Converted,
    head_count,
    is_transformers,
    shape_of,
    transformer_sizes,
    transformers_config,
    vision_sizes,
)
from gla_jax.convert.pixels import Pixels, stated_pixels
from gla_jax.convert.rules import Drop, Routed, Rule, State, Table, dense, fit, fused_attention, norm, route, some
from gla_jax.support.errors import ConversionError
from gla_jax.towers.clip_image import ClipImage, ClipImageSpec
from gla_jax.towers.clip_text import ClipTextSpec

ACTIVATIONS = ("quick_gelu", "gelu")
# Every published width; OpenAI's heads are 64 channels wide, those of H/14, g/14 and bigG/14 80, 88 and 104.
IMAGE_HEADS = {256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 896: 14, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
TEXT_HEADS = {width: width // 64 for width in (256, 384, 512, 640, 768, 1024, 1280)}


def _hugging_face_blocks(source: str, target: str) -> tuple[Rule, ...]:
    source, target = rf"{source}\.encoder\.layers\.(?P<i>\d+)", target + "/blocks_{i}"
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    return (
        *(
            rule
            for a, b in attention.items()
            for rule in dense(rf"{source}\.self_attn\.{a}", f"{target}/attention/{b}")
        ),
        *norm(rf"{source}\.layer_norm1", f"{target}/norm_1"),
        *norm(rf"{source}\.layer_norm2", f"{target}/norm_2"),
        *dense(rf"{source}\.mlp\.fc1", f"{target}/mlp/up"),
        *dense(rf"{source}\.mlp\.fc2", f"{target}/mlp/down"),
    )


def _openai_blocks(source: str, target: str) -> tuple[Rule, ...]:
    source, target = rf"{source}transformer\.resblocks\.(?P<i>\d+)", target + "/blocks_{i}"
    return (
        *fused_attention(rf"{source}\.attn\.in_proj_", f"{target}/attention"),
        *dense(rf"{source}\.attn\.out_proj", f"{target}/attention/out"),
        *norm(rf"{source}\.ln_1", f"{target}/norm_1"),
        *norm(rf"{source}\.ln_2", f"{target}/norm_2"),
        *dense(rf"{source}\.mlp\.c_fc", f"{target}/mlp/up"),
        *dense(rf"{source}\.mlp\.c_proj", f"{target}/mlp/down"),
    )


ROOT = r"(?:module\.)?"  # training saves what DistributedDataParallel wraps
TEXT_ROOT = rf"{ROOT}(?:text\.)?"  # open_clip's CustomTextCLIP has a text tower of its own

IMAGE_RULES: Table = (
    # Hugging Face
    Rule(r"vision_model\.embeddings\.class_embedding", "image/patch_tokens/class_token"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image/patch_tokens/projection/kernel", "patches"),
    Rule(
        r"vision_model\.embeddings\.position_embedding\.weight",
        ("image/patch_tokens/class_position", "image/patch_tokens/positions"),
        "first and rest",
    ),
    *norm(r"vision_model\.pre_layrnorm", "image/norm_pre"),
    *_hugging_face_blocks(r"vision_model", "image"),
    *norm(r"vision_model\.post_layernorm", "image/norm_post"),
    Rule(r"visual_projection\.weight", "image/projection/kernel", "linear"),
    Drop(r"vision_model\.embeddings\.position_ids", "counts positions from 0"),
    # OpenAI and open_clip
    Rule(rf"{ROOT}visual\.class_embedding", "image/patch_tokens/class_token"),
    Rule(rf"{ROOT}visual\.conv1\.weight", "image/patch_tokens/projection/kernel", "patches"),
    Rule(
        rf"{ROOT}visual\.positional_embedding",
        ("image/patch_tokens/class_position", "image/patch_tokens/positions"),
        "first and rest",
    ),
    *norm(rf"{ROOT}visual\.ln_pre", "image/norm_pre"),
    *_openai_blocks(rf"{ROOT}visual\.", "image"),
    *norm(rf"{ROOT}visual\.ln_post", "image/norm_post"),
    Rule(rf"{ROOT}visual\.proj", "image/projection/kernel"),
    Drop(rf"{ROOT}input_resolution", "a size that the position table shows"),
)

TEXT_RULES: Table = (
    # Hugging Face
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/positions"),
    *_hugging_face_blocks(r"text_model", "text"),
    *norm(r"text_model\.final_layer_norm", "text/norm_final"),
    Rule(r"text_projection\.weight", "text/projection/kernel", "linear"),
    Drop(r"text_model\.embeddings\.position_ids", "counts positions from 0"),
    # OpenAI and open_clip
    Rule(rf"{TEXT_ROOT}token_embedding\.weight", "text/token_embedding/embedding"),
    Rule(rf"{TEXT_ROOT}positional_embedding", "text/positions"),
    *_openai_blocks(TEXT_ROOT, "text"),
    *norm(rf"{TEXT_ROOT}ln_final", "text/norm_final"),
    Rule(rf"{TEXT_ROOT}text_projection", "text/projection/kernel"),
    Drop(rf"{TEXT_ROOT}(?:transformer\.resblocks\.\d+\.)?attn_mask", "the causal mask, which the tower makes itself"),
    Drop(rf"{ROOT}(?:context_length|vocab_size)", "a size that the text tables show"),
)

RULES: Table = (
    *IMAGE_RULES,
    *TEXT_RULES,
    Drop(rf"{ROOT}logit_scale", "the scale of logits is a setting of the segmenter"),
)


@dataclass(frozen=True)
class Stated:
    """What shapes do not show, as far as a configuration or the user says it; None is unsaid."""

    image_heads: int | None = None
    text_heads: int | None = None
    image_activation: str | None = None
    text_activation: str | None = None
    layer_norm_eps: tuple[float, float] = (1e-5, 1e-5)  # image, text
    end_token: int | None = None


def stated(config: Config | None) -> Stated:
    """What a Hugging Face config.json or an open_clip_config.json states. Raises ConversionError."""
    if is_transformers(config):
        return _stated_by_transformers(config)
    model = (config or {}).get("model_cfg", config)
    return _stated_by_open_clip(model) if isinstance(model, dict) and "vision_cfg" in model else Stated()


def _stated_by_transformers(config: Config) -> Stated:
    complete = transformers_config(config, {"clip": "CLIPConfig"})
    image, text = complete.vision_config, complete.text_config
    return Stated(
        image_heads=image.num_attention_heads,
        text_heads=text.num_attention_heads,
        image_activation=image.hidden_act,
        text_activation=text.hidden_act,
        layer_norm_eps=(image.layer_norm_eps, text.layer_norm_eps),
        # Early configurations all say 2, whatever the vocabulary; CLIP then reads the largest id, which is the last.
        end_token=None if text.eos_token_id == 2 else text.eos_token_id,
    )


def _stated_by_open_clip(model: Config) -> Stated:
    image, text = model["vision_cfg"], model.get("text_cfg", {})
    if not isinstance(image, dict) or not isinstance(text, dict):
        raise ConversionError("its open_clip configuration does not describe two towers.")
    unusual = [key for key in _UNUSUAL if image.get(key) or text.get(key)]
    if unusual:
        raise ConversionError(f"its open_clip configuration asks for {some(unusual)}, which the towers do not have.")
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    width, head_width = image.get("width"), image.get("head_width", 64)
    return Stated(
        image_heads=width // head_width if isinstance(width, int) and head_width in range(1, width + 1) else None,
        text_heads=text.get("heads"),
        image_activation=activation,
        text_activation=activation,
    )


# Shapes would not betray these.
_UNUSUAL = ("act_kwargs", "norm_kwargs", "timm_model_name", "hf_model_name", "no_causal_mask", "attentional_pool")


def convert_clip(
    state: State,
    config: Config | None = None,
    *,
    activation: str | None = None,
    num_heads: int | None = None,
    text_heads: int | None = None,
    pixels: Pixels | None = None,
) -> Converted:
    """Both towers of a CLIP model from published tensors and, where there is one, its configuration.

    activation ("quick_gelu" or "gelu"), num_heads (image tower), text_heads and pixels (how they are normalised;
    OpenAI's way where nothing says) go before what the configuration says. Raises ConversionError when
    the tensors do not fit or something else remains unsaid.
    """
    said = _overridden(stated(config), activation, num_heads, text_heads)
    pixels = pixels or stated_pixels(config)
    routed, records = route(state, RULES)
    spec = ClipSpec(_image_spec(routed, said, pixels), _text_spec(routed, said))
    return Converted(spec, fit(routed, abstract_params(spec)), records)


def convert_clip_image(
    state: State, config: Config | None = None, *, activation: str | None = None, num_heads: int | None = None
) -> Converted:
    """The image tower alone, from tensors without a text tower; the spec is a ClipImageSpec, the tree its own."""
    routed, records = route(state, IMAGE_RULES)
    spec = _image_spec(routed, _overridden(stated(config), activation, num_heads, None), stated_pixels(config))
    return Converted(spec, fit(routed, {"image": _abstract_image(spec)})["image"], records)


def _abstract_image(spec: ClipImageSpec) -> Params:
    pixels = jnp.zeros((1, 3, spec.patch_size, spec.patch_size))
    return jax.eval_shape(partial(ClipImage(spec).init), jax.random.key(0), pixels)["params"]


def _overridden(said: Stated, activation: str | None, num_heads: int | None, text_heads: int | None) -> Stated:
    given: dict[str, Any] = {
        "image_heads": num_heads,
        "text_heads": text_heads,
        "image_activation": activation,
        "text_activation": activation,
    }
    return replace(said, **{name: value for name, value in given.items() if value is not None})


def _image_spec(routed: Mapping[str, Routed], said: Stated, pixels: Pixels | None) -> ClipImageSpec:
    sizes = vision_sizes(routed, "image/")
    normalised = {"pixel_mean": pixels.mean, "pixel_std": pixels.deviation} if pixels else {}
    return ClipImageSpec(
        **sizes,
        num_heads=head_count(sizes["width"], IMAGE_HEADS, said.image_heads, "--heads"),
        embed_dim=shape_of(routed, "image/projection/kernel", 2)[1],
        activation=_activation(said.image_activation),
        layer_norm_eps=said.layer_norm_eps[0],
        **normalised,
    )


def _text_spec(routed: Mapping[str, Routed], said: Stated) -> ClipTextSpec:
    vocabulary, width = shape_of(routed, "text/token_embedding/embedding", 2)
    end_token = vocabulary - 1 if said.end_token is None else said.end_token
    if not isinstance(end_token, int) or not 0 <= end_token < vocabulary:
        raise ConversionError(f"its end-of-text token {end_token} is not one of its {vocabulary} tokens.")
    return ClipTextSpec(
        vocabulary=vocabulary,
        context=shape_of(routed, "text/positions", 2)[0],
        width=width,
        **transformer_sizes(routed, "text/"),
        num_heads=head_count(width, TEXT_HEADS, said.text_heads, "--text-heads"),
        embed_dim=shape_of(routed, "text/projection/kernel", 2)[1],
        end_token=end_token,
        activation=_activation(said.text_activation),
        layer_norm_eps=said.layer_norm_eps[1],
    )


def _activation(name: str | None) -> str:
    if name is None:
        raise ConversionError(
            "nothing says which activation the model was trained with: choose --activation quick_gelu for "
            "the weights of OpenAI and MetaCLIP, --activation gelu for those of LAION."
        )
    if name not in ACTIVATIONS:
        raise ConversionError(f"the activation {name!r} is not one of a CLIP tower ({', '.join(ACTIVATIONS)}).")
    return name
