"""Tiny models with random weights in the files and under the names that publishers use."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import transformers

State = dict[str, torch.Tensor]

VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 8,
}
VOCABULARY = {"a": 0, "b": 1, "a</w>": 2, "b</w>": 3, "ab</w>": 4, "<|startoftext|>": 5, "<|endoftext|>": 6}
TEXT = {
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 56,
    "vocab_size": len(VOCABULARY),
    "max_position_embeddings": 9,
}


@torch.no_grad()
def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every number is its own: transformers starts with equal biases and scales, which could be swapped unseen."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(generator=generator)
    return model


def clip_model(vocabulary: int = len(VOCABULARY), kind: str = "CLIP", **text) -> transformers.PreTrainedModel:
    ends = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(
        projection_dim=16, vision_config=VISION, text_config={**TEXT, **ends, "vocab_size": vocabulary, **text}
    )
    return randomise(getattr(transformers, f"{kind}Model")(config))


def metaclip2_model(**text) -> transformers.MetaClip2Model:
    """As released: the end token is XLM-V's, and no other special token is named."""
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": None}
    return clip_model(kind="MetaClip2", **ends, **text)


def siglip_model(vision: dict | None = None, **text) -> transformers.SiglipModel:
    """The widths of images and texts differ, as in the largest model."""
    sizes = {**TEXT, "projection_size": VISION["hidden_size"], "bos_token_id": 5, "eos_token_id": 6, **text}
    config = transformers.SiglipConfig(vision_config=VISION | (vision or {}), text_config=sizes)
    return randomise(transformers.SiglipModel(config))


def dino_model(**options) -> transformers.ViTModel:
    return randomise(transformers.ViTModel(transformers.ViTConfig(**VISION, **options)))


def dinov2_model(registers: int = 0, swiglu: bool = False) -> transformers.PreTrainedModel:
    sizes = {name: size for name, size in VISION.items() if name != "intermediate_size"}
    sizes |= {"mlp_ratio": 3, "use_swiglu_ffn": swiglu}
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        return randomise(transformers.Dinov2WithRegistersModel(config))
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**sizes)))


def tips_model(**text) -> transformers.Tipsv2Model:
    image = {name: size for name, size in VISION.items() if name != "intermediate_size"} | {"mlp_ratio": 1.5}
    text = {**TEXT, "hidden_size": 32, "num_attention_heads": 4, **text}
    return randomise(transformers.Tipsv2Model(transformers.Tipsv2Config(vision_config=image, text_config=text)))


def dinov3_model(**options) -> transformers.DINOv3ViTModel:
    return randomise(
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VISION, num_register_tokens=2, **options))
    )


def saved(model: transformers.PreTrainedModel, folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The tensors and the configuration of a model as transformers saves them."""
    from safetensors.numpy import load_file

    model.save_pretrained(folder)
    return load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())


def tips_arrays(model: transformers.Tipsv2Model, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Images and texts under the names of the release's PyTorch modules; folder takes transformers' files."""
    state, _ = saved(model, folder)
    images, texts = (
        {name.removeprefix(tower): x for name, x in state.items() if name.startswith(tower)}
        for tower in ("vision_encoder.", "text_encoder.")
    )
    return images, {**texts, "temperature": np.float32(0.005)}


def write_tokenizer(folder: Path) -> None:
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")


def openai_names(state: Mapping[str, np.ndarray]) -> State:
    """A CLIPModel's tensors under OpenAI's and open_clip's names."""
    towers = {"vision_model": "visual.", "text_model": ""}
    inside = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    named = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    norms = {"vision_model.pre_layrnorm": "visual.ln_pre", "vision_model.post_layernorm": "visual.ln_post"}
    norms["text_model.final_layer_norm"] = "ln_final"
    for leaf in ("weight", "bias"):
        named |= {f"{ours}.{leaf}": state[f"{theirs}.{leaf}"] for theirs, ours in norms.items()}
        for tower, prefix in towers.items():
            for i in range({"vision_model": VISION, "text_model": TEXT}[tower]["num_hidden_layers"]):
                theirs, ours = f"{tower}.encoder.layers.{i}", f"{prefix}transformer.resblocks.{i}"
                named |= {f"{ours}.{b}.{leaf}": state[f"{theirs}.{a}.{leaf}"] for a, b in inside.items()}
                parts = [state[f"{theirs}.self_attn.{part}_proj.{leaf}"] for part in "qkv"]
                named[f"{ours}.attn.in_proj_{leaf}"] = np.concatenate(parts)
    return as_torch(named)


def hub_names(state: Mapping[str, np.ndarray]) -> State:
    """The tensors of a saved ViTModel, Dinov2Model or Dinov2WithRegistersModel under torch.hub's names."""
    simple = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.register_tokens": "register_tokens",
        "embeddings.position_embeddings": "pos_embed",
    }
    modules = {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
        "attention.output.dense": "attn.proj",
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
        **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    }
    named = {}
    for name, tensor in state.items():
        block, _, inside = name.removeprefix("encoder.layer.").partition(".")
        prefix = f"blocks.{block}." if name.startswith("encoder.layer.") else ""
        stem, _, leaf = (inside if prefix else name).rpartition(".")
        if name in simple:
            named[simple[name]] = tensor
        elif stem.startswith("layer_scale"):
            named[f"{prefix}ls{stem[-1]}.gamma"] = tensor
        elif stem == "attention.attention.query":
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            named[f"{prefix}attn.qkv.{leaf}"] = np.concatenate(parts)
        elif stem in modules:
            named[f"{prefix}{modules[stem]}.{leaf}"] = tensor
    return as_torch(named)


def as_torch(state: Mapping[str, np.ndarray]) -> State:
    return {name: torch.from_numpy(np.array(tensor)) for name, tensor in state.items()}


def as_numpy(state: State) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.items()}


def torchscript(
    state: State, buffers: Mapping[str, torch.Tensor], modules: Mapping[str, torch.nn.Module] | None = None
) -> torch.jit.ScriptModule:
    """Modules whose attributes spell the names of a state dict, as in OpenAI's archives; modules bring code."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    for name, inside in (modules or {}).items():
        root.add_module(name, inside)
    for name, tensor in buffers.items():
        root.register_buffer(name, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # archives as OpenAI's are what is read here
        return torch.jit.script(root)
