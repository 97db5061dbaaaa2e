"""TIPSv2's .npz files under the hub's names, which transformers reads, by tables of their own as in reference.py."""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from gla_jax.checkpoints.model_folder import ClipSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of a block of either tower of Scenic: the hub's names in images and in texts.
_LAYERS = {
    "LayerNorm_0": ("norm1", "ln_1"),
    "LayerNorm_1": ("norm2", "ln_2"),
    "MlpBlock_0/Dense_0": ("mlp.c_fc", "mlp.c_fc"),
    "MlpBlock_0/Dense_1": ("mlp.c_proj", "mlp.c_proj"),
    "MultiHeadDotProductAttention_0/out": ("attn.proj", "attn.out_proj"),
}
_NORMS = {"encoder/encoder_norm": "vision_encoder.norm", "text_encoder_norm": "text_encoder.ln_final"}
_TOKENS = "encoder/ToTokenSequence_0/"


def tips_tensors(state: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """The tensors of both files, of Scenic or of PyTorch, under the hub's names; width: of both towers."""
    named = dict(_scenic(state, width)) if "token_emb/emb_var" in state else dict(_pytorch(state))
    return {"temperature": np.ones(()), "vision_encoder.mask_token": np.zeros((1, width)), **named}


def _pytorch(state: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """The hub's names are those of PyTorch's modules with the tower in front."""
    for name, x in state.items():
        if not name.startswith("temperature"):
            texts = name.startswith(("transformer.", "token_embedding.", "ln_final."))
            yield f"{'text' if texts else 'vision'}_encoder.{name}", x


def _scenic(state: Mapping[str, np.ndarray], width: int) -> Iterator[tuple[str, np.ndarray]]:
    yield "text_encoder.token_embedding.weight", state["token_emb/emb_var"]
    classes, places = state[f"{_TOKENS}cls"], state[f"{_TOKENS}posembed_input"].reshape(1, -1, width)
    yield "vision_encoder.cls_token", classes[:, :1]
    yield "vision_encoder.register_tokens", classes[:, 1:]
    yield "vision_encoder.pos_embed", np.concatenate([np.zeros((1, 1, width)), places], axis=1)
    yield "vision_encoder.patch_embed.proj.weight", state[f"{_TOKENS}embedding/kernel"].transpose(3, 2, 0, 1)
    yield "vision_encoder.patch_embed.proj.bias", state[f"{_TOKENS}embedding/bias"]
    for theirs, ours in _NORMS.items():
        yield f"{ours}.weight", state[f"{theirs}/scale"]
        yield f"{ours}.bias", state[f"{theirs}/bias"]
    blocks = {
        match[0]: match for name in state if (match := re.match(r"(encoder/)?transformer/encoderblock_(\d+)", name))
    }
    for block, match in blocks.items():
        texts = match[1] is None
        ours = f"text_encoder.transformer.resblocks.{match[2]}" if texts else f"vision_encoder.blocks.{match[2]}"
        for theirs, names in _LAYERS.items():
            kernel = state[f"{block}/{theirs}/{'scale' if 'LayerNorm' in theirs else 'kernel'}"]
            if theirs.endswith("out"):  # [heads size out]
                kernel = kernel.reshape(-1, width)
            yield f"{ours}.{names[texts]}.weight", kernel.T
            yield f"{ours}.{names[texts]}.bias", state[f"{block}/{theirs}/bias"]
        parts = [f"{block}/MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value")]
        fused, dot = ("in_proj", "_") if texts else ("qkv", ".")
        kernels = [state[f"{part}/kernel"].reshape(width, -1).T for part in parts]
        yield f"{ours}.attn.{fused}{dot}weight", np.concatenate(kernels)
        yield f"{ours}.attn.{fused}{dot}bias", np.concatenate([state[f"{part}/bias"].reshape(-1) for part in parts])
        if not texts:
            yield from ((f"{ours}.ls{n}.gamma", np.ones(width)) for n in (1, 2))


def tips_config(spec: ClipSpec) -> "PreTrainedConfig":
    """The configuration of transformers' model of a spec."""
    import transformers

    both = [
        {
            "hidden_size": part.width,
            "num_hidden_layers": part.depth,
            "num_attention_heads": part.num_heads,
            "hidden_act": part.activation,
            "layer_norm_eps": part.layer_norm_eps,
        }
        for part in (spec.image, spec.text)
    ]
    image, text = spec.image, spec.text
    ratio = image.mlp_width / image.width
    return transformers.Tipsv2Config(
        vision_config={
            **both[0],
            "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "num_register_tokens": image.registers,
        },
        text_config={
            **both[1],
            "intermediate_size": text.mlp_width,
            "vocab_size": text.vocabulary,
            "max_position_embeddings": text.context,
        },
    )
