"""Transformers' models with random weights of realistic size, and what the converter makes of them."""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from safetensors.numpy import load_file

from gla_jax.checkpoints.model_folder import Params, Spec
from gla_jax.convert.families import convert_state


class Pair(NamedTuple):
    """One model twice: transformers' module and what the converter made of its tensors."""

    reference: transformers.PreTrainedModel
    spec: Spec
    params: Params


def clip_config(image: dict, text: dict, joint: int, activation: str) -> transformers.CLIPConfig:
    end = {"eos_token_id": text["vocab_size"] - 1, "bos_token_id": text["vocab_size"] - 2, "pad_token_id": 0}
    return transformers.CLIPConfig(
        projection_dim=joint,
        vision_config={**image, "hidden_act": activation},
        text_config={**text, **end, "hidden_act": activation},
    )


def metaclip2_config(image: dict, text: dict, joint: int, activation: str) -> transformers.MetaClip2Config:
    end = {"eos_token_id": 2, "bos_token_id": None, "pad_token_id": None}  # as released
    return transformers.MetaClip2Config(
        projection_dim=joint,
        vision_config={**image, "hidden_act": activation},
        text_config={**text, **end, "hidden_act": activation},
    )


def siglip_config(image: dict, text: dict) -> transformers.SiglipConfig:
    special = {"eos_token_id": 1, "bos_token_id": 2, "pad_token_id": 0, "projection_size": image["hidden_size"]}
    return transformers.SiglipConfig(
        vision_config=image, text_config={**text, "max_position_embeddings": 64, **special}
    )


def sizes(width: int, depth: int, heads: int, mlp: int | None = None, **others) -> dict:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": mlp or 4 * width,
        **others,
    }


def dino_config(width: int, depth: int, heads: int, patch: int, side: int = 224) -> transformers.ViTConfig:
    # The training code has 1e-6; the hub's configurations say 1e-12.
    return transformers.ViTConfig(**sizes(width, depth, heads, image_size=side, patch_size=patch, layer_norm_eps=1e-6))


def dinov2_config(width: int, depth: int, heads: int, side: int = 518, registers: int = 0, swiglu: bool = False):
    common = {"image_size": side, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": swiglu}
    common |= {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    if registers:
        return transformers.Dinov2WithRegistersConfig(**common, num_register_tokens=registers)
    return transformers.Dinov2Config(**common)


def dinov3_config(width: int, depth: int, heads: int, registers: int = 4, **others) -> transformers.DINOv3ViTConfig:
    return transformers.DINOv3ViTConfig(**sizes(width, depth, heads, num_register_tokens=registers, **others))


def tips_config(
    width: int, depth: int, heads: int, side: int = 448, vocabulary: int = 100
) -> transformers.Tipsv2Config:
    image = {"image_size": side, "patch_size": 14, "mlp_ratio": 3}
    image |= {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
    return transformers.Tipsv2Config(vision_config=image, text_config=sizes(width, 2, heads, vocab_size=100))


_KINDS = {
    "clip": ("clip", transformers.CLIPModel),
    "metaclip_2": ("clip", transformers.MetaClip2Model),
    "siglip": ("siglip", transformers.SiglipModel),
    "vit": ("dino", transformers.ViTModel),
    "dinov2": ("dinov2", transformers.Dinov2Model),
    "dinov2_with_registers": ("dinov2", transformers.Dinov2WithRegistersModel),
    "dinov3_vit": ("dinov3", transformers.DINOv3ViTModel),
    "tipsv2": ("tipsv2", transformers.Tipsv2Model),
}


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights under which every stage matters.

    transformers starts with weights of 0.02, zero biases, unit LayerNorms and tiny layer scales, so a swapped bias or a
    forgotten scale would drown below the tolerance. Here a linear map keeps its input's size, attention is neither flat
    nor a single token, and no bias, scale or position is near its neutral value.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean, deviation = _statistics(name, parameter)
        parameter.normal_(mean, deviation, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    for owner in (module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)):
        for module in owner.modules():
            if any(not name.endswith("position_ids") for name, _ in module.named_buffers(recurse=False)):
                owner._init_weights(module)  # rotary and sine positions, which are no parameters
    return model.eval()


def _statistics(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    if name.endswith("probe"):
        return 0.0, 1.0
    if name.endswith("lambda1"):
        return 0.5, 0.2
    if "norm" in name and name.endswith("weight"):
        return 1.0, 0.3
    if ("embedding" in name and "patch_embedding" not in name) or "token" in name:
        return 0.0, 0.5
    if parameter.ndim >= 2:
        return 0.0, (parameter.shape[0] / parameter.numel()) ** 0.5
    return 0.0, 0.2


def random_pair(config: transformers.PreTrainedConfig, seed: int = 0) -> Pair:
    """A random model and its conversion, by the names it is saved under and, above 50 MB, those it has when loaded."""
    family, kind = _KINDS[config.model_type]
    with torch.device("meta"):  # spares transformers' own initialisation
        empty = kind(config)
    reference = randomise(empty.to_empty(device="cpu"), seed)
    if sum(parameter.numel() for parameter in reference.parameters()) > 50e6 / 4:
        state = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
        return Pair(reference, *convert_state(family, state, config.to_dict())[:2])
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        state = load_file(Path(folder) / "model.safetensors")
        saved = json.loads((Path(folder) / "config.json").read_text())
    spec, params, *_ = convert_state(family, state, saved)
    return Pair(reference, spec, params)
