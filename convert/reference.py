"""The PyTorch side of a comparison: transformers' own models, and what they compute at every named stage.

Sources without a transformers configuration (OpenAI, open_clip, torch.hub) get one from our spec, and their tensors
are renamed by the tables below, which know nothing of the converter's rules: two independent readings must agree.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gla_jax.checkpoints.model_folder import ClipSpec, Spec
from gla_jax.convert.reference_tips import tips_config, tips_tensors
from gla_jax.support.arrays import Float, Int
from gla_jax.support.errors import ConversionError, first_line
from gla_jax.towers.clip import ClipImageSpec
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.towers.dinov3 import DinoV3Spec
from gla_jax.towers.siglip import SiglipImageSpec
from gla_jax.towers.tips import TipsImageSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

Stages = dict[str, np.ndarray]


# Published names to transformers', without ".weight" and ".bias"; # is a block, and several targets split evenly.
_CLIP_BLOCK: dict[str, str | tuple[str, ...]] = {
    "ln_1": "layer_norm1",
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_CLIP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
}
_TRANSPOSED = ("visual.proj", "text_projection")
_HUB = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    **dict.fromkeys(("register_tokens", "reg_token"), "embeddings.register_tokens"),
    "norm": "layernorm",
}
_HUB_ATTENTION = {
    "attn.qkv": tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
    "attn.proj": "attention.output.dense",
}
_DINO_BLOCK = {
    **_HUB_ATTENTION,
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINOV2_BLOCK = {
    **_HUB_ATTENTION,
    **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
    **{f"ls{n}.gamma": f"layer_scale{n}.lambda1" for n in (1, 2)},
}
_WRAPPED = r"(?:(?:module|model|teacher|student|backbone|text)\.)*(.+?)(?:[._](weight|bias))?"
# FSDP training nests blocks in chunks, numbered throughout: blocks.2.21 is block 21.
_BLOCK = r"(visual\.|)(?:transformer\.resblocks|blocks)\.(?:\d+\.)?(\d+)\.(.+)"


def rename(state: Mapping[str, np.ndarray], spec: Spec) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors under transformers' published names; what the tables lack is left out."""
    clip = isinstance(spec, ClipSpec)
    blocks = _CLIP_BLOCK if clip else _DINO_BLOCK if isinstance(spec, DinoSpec) else _DINOV2_BLOCK
    if getattr(spec, "activation", None) == "swiglu":  # timm packs the gate into its first layer
        blocks = blocks | {"mlp.fc1": "mlp.weights_in", "mlp.fc2": "mlp.weights_out"}
    taught = any("teacher." in source for source in state)
    for source, tensor in state.items():
        if taught and "student." in source:
            continue
        wrapped = re.fullmatch(_WRAPPED, source.replace("_orig_mod.", ""))
        stem, leaf = wrapped[1], f".{wrapped[2]}" if wrapped[2] else ""
        prefix, targets = "", (_CLIP if clip else _HUB).get(stem)
        if inside := re.fullmatch(_BLOCK, stem):
            tower = f"{'vision' if inside[1] else 'text'}_model.encoder.layers" if clip else "encoder.layer"
            prefix, targets = f"{tower}.{inside[2]}.", blocks.get(inside[3])
        targets = (targets,) if isinstance(targets, str) else targets or ()
        for target, part in zip(targets, np.split(tensor, len(targets)) if targets[1:] else (tensor,), strict=False):
            yield f"{prefix}{target}{leaf}", part.T if stem in _TRANSPOSED else part


def require_torch() -> None:
    """Raise ConversionError when PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError:
        raise ConversionError(
            "Verifying runs the weights in PyTorch too, which is not installed: install torch, or convert without "
            "--verify."
        ) from None


def load_reference(folder: Path, spec: Spec) -> "PreTrainedModel":
    """The model of a transformers folder in float32, ready to run. Raises ConversionError."""
    require_torch()
    return _load(_model_class(spec), spec, folder)


def build_reference(state: Mapping[str, np.ndarray], spec: Spec, timm: bool = False) -> "PreTrainedModel":
    """The transformers model of a spec with tensors that OpenAI, open_clip, torch.hub, timm or TIPSv2 name, in float32.

    timm: positions are resized as timm does, not as torch.hub's code. Raises ConversionError when the file does not
    fill the model.
    """
    require_torch()
    import torch

    if isinstance(spec, ClipSpec) and isinstance(spec.image, TipsImageSpec):
        named = tips_tensors(state, spec.image.width)
        return _load(_model_class(spec), spec, None, config=tips_config(spec), state_dict=_float32(named))
    if type(spec.image if isinstance(spec, ClipSpec) else spec) not in RENAMED:
        raise ConversionError("Verifying runs this family's files as transformers saves them; verify with those.")
    tensors = _float32(dict(rename(state, spec)))
    # transformers wants them too; no stage reads them.
    unread = {"logit_scale": ()} if isinstance(spec, ClipSpec) else {"embeddings.mask_token": (1, spec.width)}
    tensors |= {name: torch.zeros(shape) for name, shape in unread.items() if not isinstance(spec, DinoSpec)}
    table = tensors.get("embeddings.position_embeddings")
    if table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        # timm's tables for patches alone: the class token holds its own position.
        tensors["embeddings.position_embeddings"] = torch.nn.functional.pad(table, (0, 0, 1, 0))
    model = _load(_model_class(spec), spec, None, config=_config(spec), state_dict=tensors)
    if not isinstance(spec, ClipSpec) and (timm or not spec.registers):
        model.embeddings.interpolate_pos_encoding = partial(_resized_positions, model.embeddings, timm)
    return model


def _float32(tensors: Mapping[str, np.ndarray]) -> "dict[str, torch.Tensor]":
    import torch

    return {name: torch.from_numpy(np.array(tensor, np.float32, order="C")) for name, tensor in tensors.items()}


def _resized_positions(embeddings: Any, timm: bool, tokens: Any, height: int, width: int) -> Any:
    """The position table [1 1+n C] as timm's or else DINO's and DINOv2's code resizes it for height x width pixels.

    With registers the code of DINOv2 and that of transformers do the same.
    """
    import torch

    table = embeddings.position_embeddings
    side = math.isqrt(table.shape[1] - 1)
    grid = tuple(length // embeddings.patch_size for length in (height, width))
    if grid == (side, side):
        return table
    image = table[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    scale = {"scale_factor": tuple((cells + 0.1) / side for cells in grid)}
    resized = torch.nn.functional.interpolate(
        image, mode="bicubic", **({"size": grid, "antialias": True} if timm else scale)
    )
    if resized.shape[2:] != grid:
        raise ValueError(f"PyTorch resized positions to {tuple(resized.shape[2:])}, not to {grid}")
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _load(kind: type, spec: Spec, folder: Path | None, **given: Any) -> "PreTrainedModel":
    import torch
    from transformers import logging

    logging.set_verbosity(logging.CRITICAL)  # its report of a model that does not fit is a table of colours
    logging.disable_progress_bar()
    if isinstance(spec, DinoSpec):
        given["add_pooling_layer"] = False
    try:
        model, report = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **given
        )
    except Exception as error:  # of every kind, where tensors do not fit the model
        raise ConversionError(f"The source cannot be run in PyTorch for verifying ({first_line(error)}).") from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConversionError(f"The source cannot be run in PyTorch for verifying: it does not give {missing}.")
    return model.eval()


# The class of each image tower's models in transformers.
MODELS: Mapping[type, str] = {
    ClipImageSpec: "CLIPModel",
    DinoSpec: "ViTModel",
    DinoV2Spec: "Dinov2Model",
    DinoV3Spec: "DINOv3ViTModel",
    SiglipImageSpec: "SiglipModel",
    TipsImageSpec: "Tipsv2Model",
}
# Towers whose files of other projects the tables above rename for transformers.
RENAMED = (ClipImageSpec, DinoSpec, DinoV2Spec)


def _model_class(spec: Spec) -> type:
    import transformers

    if isinstance(spec, DinoV2Spec) and spec.registers:
        return transformers.Dinov2WithRegistersModel
    if _is_metaclip2(spec):
        return transformers.MetaClip2Model
    return getattr(transformers, MODELS[type(spec.image if isinstance(spec, ClipSpec) else spec)])


def _is_metaclip2(spec: Spec) -> bool:
    """True where CLIPModel, which takes an end token of 2 for the largest id, would read other tokens."""
    return isinstance(spec, ClipSpec) and isinstance(spec.image, ClipImageSpec) and spec.text.end_token == 2


def _config(spec: Spec) -> "PreTrainedConfig":
    import transformers

    def sizes(part: Any, **others: Any) -> dict[str, Any]:
        names = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
        names |= {"intermediate_size": "mlp_width", "hidden_act": "activation"}
        names |= {name: name for name in ("layer_norm_eps", "image_size", "patch_size")}
        return {theirs: getattr(part, ours) for theirs, ours in names.items() if hasattr(part, ours)} | others

    if isinstance(spec, ClipSpec):
        tokens = {"vocab_size": spec.text.vocabulary, "max_position_embeddings": spec.text.context}
        ends = {"eos_token_id": spec.text.end_token, "bos_token_id": None, "pad_token_id": None}
        kind = transformers.MetaClip2Config if _is_metaclip2(spec) else transformers.CLIPConfig
        return kind(
            projection_dim=spec.image.embed_dim,
            vision_config=sizes(spec.image),
            text_config=sizes(spec.text, **tokens, **ends),
        )
    if isinstance(spec, DinoSpec):
        return transformers.ViTConfig(**sizes(spec, qkv_bias=spec.qkv_bias))
    gated = spec.activation == "swiglu"
    options = {"use_swiglu_ffn": gated, "hidden_act": "gelu", "num_register_tokens": spec.registers}
    kind = transformers.Dinov2WithRegistersConfig if spec.registers else transformers.Dinov2Config
    config = kind(**sizes(spec, qkv_bias=spec.qkv_bias, **options))
    # Their gated MLP is two thirds of the ratio. Half a channel more, for they round the product down; set afterwards,
    # for their class accepts whole ratios alone.
    vars(config)["mlp_ratio"] = (spec.mlp_width * (1.5 if gated else 1) + 0.5) / spec.width
    return config


def reference_stages(
    model: "PreTrainedModel",
    pixels: Float[np.ndarray, "B 3 h w"],
    token_ids: Int[np.ndarray, "Q t"] | None = None,
) -> Stages:
    """Every named stage of a transformers model as float32 arrays; token_ids for CLIP's text tower."""
    import torch

    with torch.inference_mode():
        images = torch.from_numpy(pixels)
        if model.config.model_type not in TWO_TOWERS:
            stages = _feature_stages(model, images)
        else:
            image_stages, text_stages = TWO_TOWERS[model.config.model_type]
            stages = image_stages(model, images)
            if token_ids is not None:
                stages |= text_stages(model, torch.from_numpy(token_ids).long())
        return {name: tensor.float().numpy() for name, tensor in stages.items()}


def _feature_stages(model: Any, pixels: Any) -> dict[str, Any]:
    # DINOv2 always resizes its positions; ViT has to be asked.
    resize = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}
    out = model(pixels, output_hidden_states=True, **resize)
    first_patch = 1 + getattr(model.config, "num_register_tokens", 0)
    final = out.last_hidden_state
    return {
        **named_stages("embedded", "block", out.hidden_states),
        "class token": final[:, 0],
        "patch tokens": final[:, first_patch:],
    }


def _clip_image_stages(model: Any, pixels: Any) -> dict[str, Any]:
    tower = model.vision_model
    out = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
    hidden, last = out.hidden_states, tower.encoder.layers[-1]
    normal = last.layer_norm1(hidden[-2])
    attention = last.self_attn
    values = attention.v_proj(normal)

    def to_joint(tokens: Any) -> Any:
        tokens = tower.post_layernorm(tokens)
        if not hasattr(tower, "head"):
            return model.visual_projection(tokens)
        # SigLIP's head pools: every token as an image of its own.
        return tower.head(tokens.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])

    return {
        **named_stages("image embedded", "image block", hidden[:-1]),
        "image queries": attention.q_proj(normal),
        "image keys": attention.k_proj(normal),
        "image values": values,
        "image values, joint": to_joint(attention.out_proj(values)),
        "image tokens, joint": to_joint(hidden[-1]),
        "image feature": out.pooler_output if hasattr(tower, "head") else model.visual_projection(out.pooler_output),
    }


def _clip_text_stages(model: Any, token_ids: Any, **options: Any) -> dict[str, Any]:
    import torch

    out = model.text_model(input_ids=token_ids, output_hidden_states=True, **options)
    return {
        **named_stages("text embedded", "text block", out.hidden_states[:-1]),
        "text tokens": out.last_hidden_state,
        "text feature": getattr(model, "text_projection", torch.nn.Identity())(out.pooler_output),
    }


def _tips_image_stages(model: Any, pixels: Any) -> dict[str, Any]:
    tower = model.vision_model
    out = tower(pixels, output_hidden_states=True)
    hidden, last = out.hidden_states, tower.encoder.layer[-1]
    normal, attention = last.norm1(hidden[-2]), last.attention
    values = attention.v_proj(normal)
    final = out.last_hidden_state
    return {
        **named_stages("image embedded", "image block", hidden[:-1]),
        "image queries": attention.q_proj(normal),
        "image keys": attention.k_proj(normal),
        "image values": values,
        "image values, joint": tower.layernorm(last.layer_scale1(attention.o_proj(values))),
        "image tokens, joint": final,
        "image feature": out.pooler_output,
        "patch tokens": final[:, 1 + tower.config.num_register_tokens :],
    }


def _tips_text_stages(model: Any, token_ids: Any) -> dict[str, Any]:
    return _clip_text_stages(model, token_ids, attention_mask=(token_ids != 0).long())


# By model_type: the stages of images and of texts.
TWO_TOWERS: Mapping[str, tuple[Callable[[Any, Any], dict[str, Any]], ...]] = {
    **dict.fromkeys(("clip", "metaclip_2", "siglip"), (_clip_image_stages, _clip_text_stages)),
    "tipsv2": (_tips_image_stages, _tips_text_stages),
}


def named_stages(first: str, block: str, hidden: Sequence[Any]) -> dict[str, Any]:
    """The input of the first block by one name, and the output of every block by its number from 1."""
    return {first: hidden[0], **{f"{block} {i}": tokens for i, tokens in enumerate(hidden[1:], 1)}}
