"""DINO and DINOv2 under their published names: Hugging Face's, torch.hub's, timm's and those of training."""

from collections.abc import Mapping
from typing import Any

from gla_jax.convert.architecture import Facts, registers_of, shape_of, vision_sizes
from gla_jax.convert.configs import Pixels, refuse_other_pixels
from gla_jax.convert.rules import (
    NORMS,
    Drop,
    Routed,
    Rule,
    Table,
    fused_attention,
    layer,
    layers,
    patch_projection,
    position_table,
)
from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD
from gla_jax.towers.dino import DinoSpec, DinoV2Spec

DINO_MODEL_TYPES = {"vit": "ViTConfig"}
DINOV2_MODEL_TYPES = {"dinov2": "Dinov2Config", "dinov2_with_registers": "Dinov2WithRegistersConfig"}
HEADS = {width: width // 64 for width in (192, 384, 768, 1024, 1536)}

HUGGING_FACE_ROOT = r"(?:vit\.)?"
# Saved models say encoder.layer; transformers 5 calls the same modules layers once they are loaded.
HUGGING_FACE_BLOCK = rf"{HUGGING_FACE_ROOT}(?:encoder\.layer|layers)\.(?P<i>\d+)"


def embedding_rules(root: str) -> tuple[Rule, ...]:
    """Class token, patch projection and positions of DINO and DINOv2 under both kinds of names."""
    projections = (rf"{root}embeddings\.patch_embeddings\.projection", r"patch_embed\.proj")
    return (
        Rule(rf"{root}embeddings\.cls_token|cls_token", "patch_tokens/class_token", "vector"),
        position_table(rf"{root}embeddings\.position_embeddings|pos_embed", "patch_tokens", "positions"),
        *(rule for source in projections for rule in patch_projection(source)),
    )


BLOCK = "blocks_{i}"
# Hugging Face's attention as saved (attention.query, output.dense) and as loaded (q_proj, o_proj).
SPLIT_ATTENTION = {
    r"attention\.(?:attention\.query|q_proj)": "attention/query",
    r"attention\.(?:attention\.key|k_proj)": "attention/key",
    r"attention\.(?:attention\.value|v_proj)": "attention/value",
    r"attention\.(?:output\.dense|o_proj)": "attention/out",
}
HUB_MLP = {r"mlp\.(?:fc1|w12)": "mlp/up", r"mlp\.(?:fc2|w3)": "mlp/down"}


def hub_blocks(source: str, target: str, mlp: Mapping[str, str]) -> tuple[Rule, ...]:
    """The blocks of a tower of the projects' own code without layer scales; mlp: the names of its two layers."""
    fused = fused_attention(rf"{source}attn\.qkv\.", f"{target}/attention")
    return (*fused, *layers(source, target, {**NORMS, r"attn\.proj": "attention/out", **mlp}))


DINO_RULES: Table = (
    *embedding_rules(HUGGING_FACE_ROOT),
    *layers(
        rf"{HUGGING_FACE_BLOCK}\.",
        BLOCK,
        {
            **SPLIT_ATTENTION,
            "layernorm_before": "norm_1",
            "layernorm_after": "norm_2",
            r"(?:intermediate\.dense|mlp\.fc1)": "mlp/up",
            r"(?:output\.dense|mlp\.fc2)": "mlp/down",
        },
    ),
    *layer(rf"{HUGGING_FACE_ROOT}layernorm", "norm"),
    Drop(rf"{HUGGING_FACE_ROOT}pooler\.dense\.(?:weight|bias)", "pools for classification, features are tokens"),
    Drop(r"classifier\.(?:weight|bias)", "a classification head, features are tokens"),
    # torch.hub
    *hub_blocks(r"blocks\.(?P<i>\d+)\.", BLOCK, HUB_MLP),
    *layer(r"norm", "norm"),
    Drop(r"(?:head|dino_loss)\..+", "the projection head of training, features are tokens"),
)


# Large models are trained with their blocks in chunks, numbered throughout: blocks.2.21 is block 21.
DINOV2_HUB_BLOCK = r"blocks\.(?:\d+\.)?(?P<i>\d+)\."
DINOV2_ROOT = r"(?:dinov2\.|dinov2_with_registers\.)?"
DINOV2_BLOCK = rf"{DINOV2_ROOT}encoder\.layer\.(?P<i>\d+)\."
DINOV2_MLP = {r"mlp\.(?:fc1|weights_in)": "mlp/up", r"mlp\.(?:fc2|weights_out)": "mlp/down"}

DINOV2_RULES: Table = (
    *embedding_rules(DINOV2_ROOT),
    Rule(  # reg_token is timm's
        rf"{DINOV2_ROOT}embeddings\.register_tokens|register_tokens|reg_token", "patch_tokens/registers", "rows"
    ),
    Drop(rf"{DINOV2_ROOT}embeddings\.mask_token|mask_token", "stands for masked patches in training"),
    # Hugging Face
    *layers(DINOV2_BLOCK, BLOCK, {**SPLIT_ATTENTION, **NORMS, **DINOV2_MLP}),
    Rule(rf"{DINOV2_BLOCK}layer_scale(?P<n>[12])\.lambda1", BLOCK + "/scale_{n}/factor"),
    *layer(rf"{DINOV2_ROOT}layernorm", "norm"),
    Drop(r"classifier\.(?:weight|bias)", "a classification head, features are tokens"),
    # torch.hub
    *hub_blocks(DINOV2_HUB_BLOCK, BLOCK, HUB_MLP),
    Rule(rf"{DINOV2_HUB_BLOCK}ls(?P<n>[12])\.gamma", BLOCK + "/scale_{n}/factor"),
    *layer(r"norm", "norm"),
    Drop(
        r"(?:dino_head|ibot_head|head|dino_loss|ibot_patch_loss)\..+", "of training or of a head, features are tokens"
    ),
)


def dino_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> DinoSpec:
    """The spec of a DINO tower."""
    return DinoSpec(**common_fields(routed, facts, pixels, offset=0.1))


def dinov2_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> DinoV2Spec:
    """The spec of a DINOv2 tower; gated MLPs and registers show in the shapes."""
    registers = registers_of(routed)
    # The models with registers were released with another resize, which needs no offset.
    fields = common_fields(routed, facts, pixels, offset=0.0 if registers else 0.1)
    gated = shape_of(routed, "blocks_0/mlp/up/kernel", 2)[1] == 2 * fields["mlp_width"]
    return DinoV2Spec(**fields, activation="swiglu" if gated else "gelu", registers=registers)


def common_fields(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None, offset: float) -> dict[str, Any]:
    """The fields of a spec that DINO and DINOv2 have in common.

    Args:
        routed: tensors at their target paths.
        facts: what the user and the configuration say besides.
        pixels: how they are normalised, if a file says so; the towers use ImageNet's numbers alone.
        offset: what the projects' own code, which torch.hub runs, adds to the grid when it resizes positions, lest
            rounding lose a row. transformers and timm add nothing.

    Raises ConversionError when the number of heads remains open or pixels are not ImageNet's.
    """
    refuse_other_pixels(pixels)
    facts.pixels(pixels, Pixels(IMAGENET_MEAN, IMAGENET_STD), "ImageNet's mean and std")  # for its note alone
    sizes = vision_sizes(routed)
    resize = facts.stated.get("position_resize")
    if resize is None and not routed["patch_tokens/positions"].source.endswith("pos_embed"):
        offset = 0.0  # Hugging Face's name, whose code the configuration tells apart
    elif resize is None and offset:
        facts.assumed["position_offset"] = f"{offset}: the tensors have the names of torch.hub, whose code adds it"
    return {
        **sizes,
        **facts.blocks("", sizes["width"], HEADS, 1e-6),
        "qkv_bias": "blocks_0/attention/query/bias" in routed,
        "position_offset": 0.0 if resize else offset,
        "position_resize": resize.value if resize else None,
    }
