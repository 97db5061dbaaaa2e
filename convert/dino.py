"""DINO under its published names: Hugging Face's ViTModel, torch.hub's files and training checkpoints."""

from collections.abc import Mapping

from gla_jax.checkpoints.model_folder import abstract_params
from gla_jax.convert.architecture import (
    Config,
    Converted,
    head_count,
    is_transformers,
    transformers_config,
    vision_sizes,
)
from gla_jax.convert.pixels import Pixels, refuse_other_pixels
from gla_jax.convert.rules import Drop, Routed, Rule, State, Table, dense, fit, fused_attention, norm, route
from gla_jax.support.errors import ConversionError
from gla_jax.towers.dino import DinoSpec

HEADS = {width: width // 64 for width in (192, 384, 768, 1024)}

# What training wraps around the backbone: DistributedDataParallel, and the model of backbone and head.
HUB_ROOT = r"(?:module\.)?(?:backbone\.)?"
HUGGING_FACE_ROOT = r"(?:vit\.)?"
# Saved models say encoder.layer; transformers 5 calls the same modules layers once they are loaded.
HUGGING_FACE_BLOCK = rf"{HUGGING_FACE_ROOT}(?:encoder\.layer|layers)\.(?P<i>\d+)"


def embedding_rules(root: str, hub_root: str) -> tuple[Rule, ...]:
    """Class token, patch projection and positions of DINO and DINOv2 under both kinds of names."""
    positions = ("patch_tokens/class_position", "patch_tokens/positions")
    projections = (rf"{root}embeddings\.patch_embeddings\.projection", rf"{hub_root}patch_embed\.proj")
    return (
        Rule(rf"{root}embeddings\.cls_token|{hub_root}cls_token", "patch_tokens/class_token", "vector"),
        Rule(rf"{root}embeddings\.position_embeddings|{hub_root}pos_embed", positions, "first and rest"),
        *(Rule(rf"{source}\.weight", "patch_tokens/projection/kernel", "patches") for source in projections),
        *(Rule(rf"{source}\.bias", "patch_tokens/projection/bias") for source in projections),
    )


def split_attention(source: str) -> tuple[Rule, ...]:
    """Hugging Face's attention as saved (attention.query, output.dense) and as loaded (q_proj, o_proj)."""
    names = {r"(?:attention\.query|q_proj)": "query", r"(?:attention\.key|k_proj)": "key"}
    names |= {r"(?:attention\.value|v_proj)": "value", r"(?:output\.dense|o_proj)": "out"}
    inside, onto = rf"{source}\.attention\.", f"{BLOCK}/attention/"
    return tuple(rule for name, part in names.items() for rule in dense(inside + name, onto + part))


def hub_block(source: str) -> tuple[Rule, ...]:
    """What a block of torch.hub's DINO and DINOv2 have in common."""
    return (
        *norm(rf"{source}\.norm1", f"{BLOCK}/norm_1"),
        *fused_attention(rf"{source}\.attn\.qkv\.", f"{BLOCK}/attention"),
        *dense(rf"{source}\.attn\.proj", f"{BLOCK}/attention/out"),
        *norm(rf"{source}\.norm2", f"{BLOCK}/norm_2"),
        *dense(rf"{source}\.mlp\.fc1", f"{BLOCK}/mlp/up"),
        *dense(rf"{source}\.mlp\.fc2", f"{BLOCK}/mlp/down"),
    )


BLOCK = "blocks_{i}"

RULES: Table = (
    *embedding_rules(HUGGING_FACE_ROOT, HUB_ROOT),
    # Hugging Face
    *norm(rf"{HUGGING_FACE_BLOCK}\.layernorm_before", f"{BLOCK}/norm_1"),
    *split_attention(HUGGING_FACE_BLOCK),
    *norm(rf"{HUGGING_FACE_BLOCK}\.layernorm_after", f"{BLOCK}/norm_2"),
    *dense(rf"{HUGGING_FACE_BLOCK}\.(?:intermediate\.dense|mlp\.fc1)", f"{BLOCK}/mlp/up"),
    *dense(rf"{HUGGING_FACE_BLOCK}\.(?:output\.dense|mlp\.fc2)", f"{BLOCK}/mlp/down"),
    *norm(rf"{HUGGING_FACE_ROOT}layernorm", "norm"),
    Drop(rf"{HUGGING_FACE_ROOT}pooler\.dense\.(?:weight|bias)", "pools for classification, features are tokens"),
    Drop(r"classifier\.(?:weight|bias)", "a classification head, features are tokens"),
    # torch.hub
    *hub_block(rf"{HUB_ROOT}blocks\.(?P<i>\d+)"),
    *norm(rf"{HUB_ROOT}norm", "norm"),
    Drop(r"(?:module\.)?head\..+", "the projection head of training, features are tokens"),
)


def position_offset(routed: Mapping[str, Routed]) -> float:
    """What the code that tensors of these names come from adds to the grid when it resizes positions.

    DINO's and DINOv2's own code, which torch.hub runs, adds 0.1 lest rounding lose a row; transformers adds nothing.
    """
    return 0.1 if routed["patch_tokens/positions"].source.endswith("pos_embed") else 0.0


def convert_dino(
    state: State, config: Config | None = None, *, num_heads: int | None = None, pixels: Pixels | None = None
) -> Converted:
    """A DINO tower from published tensors and, where there is one, its configuration.

    num_heads goes before what the configuration says.

    pixels: how they are normalised, if a file says so. Raises ConversionError when the tensors do not fit, the number
    of heads remains unsaid or pixels are not ImageNet's.
    """
    refuse_other_pixels(pixels)
    said = transformers_config(config, {"vit": "ViTConfig"}) if is_transformers(config) else None
    routed, records = route(state, RULES)
    sizes = vision_sizes(routed)
    if said is not None and said.hidden_act != "gelu":
        raise ConversionError(f"its activation {said.hidden_act!r} is not DINO's (gelu).")
    spec = DinoSpec(
        **sizes,
        num_heads=head_count(
            sizes["width"], HEADS, said.num_attention_heads if num_heads is None and said else num_heads, "--heads"
        ),
        qkv_bias="blocks_0/attention/query/bias" in routed,
        layer_norm_eps=said.layer_norm_eps if said else 1e-6,
        position_offset=position_offset(routed),
    )
    return Converted(spec, fit(routed, abstract_params(spec)), records)
