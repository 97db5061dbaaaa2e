"""DINOv2 under its published names: Hugging Face's Dinov2Model and Dinov2WithRegistersModel, torch.hub's files."""

from collections.abc import Mapping

from gla_jax.convert.architecture import Facts, shape_of, vision_sizes
from gla_jax.convert.configs import Pixels
from gla_jax.convert.dino import BLOCK, common_fields, embedding_rules, hub_block, split_attention
from gla_jax.convert.rules import Drop, Routed, Rule, Table, dense, norm
from gla_jax.support.errors import ConversionError
from gla_jax.towers.dinov2 import DinoV2Spec

MODEL_TYPES = {"dinov2": "Dinov2Config", "dinov2_with_registers": "Dinov2WithRegistersConfig"}

# Large models are trained with their blocks in chunks, numbered throughout: blocks.2.21 is block 21.
HUB_BLOCK = r"blocks\.(?:\d+\.)?(?P<i>\d+)"
HUGGING_FACE_ROOT = r"(?:dinov2\.|dinov2_with_registers\.)?"
HUGGING_FACE_BLOCK = rf"{HUGGING_FACE_ROOT}encoder\.layer\.(?P<i>\d+)"

RULES: Table = (
    *embedding_rules(HUGGING_FACE_ROOT),
    Rule(  # reg_token is timm's
        rf"{HUGGING_FACE_ROOT}embeddings\.register_tokens|register_tokens|reg_token", "patch_tokens/registers", "rows"
    ),
    Drop(rf"{HUGGING_FACE_ROOT}embeddings\.mask_token|mask_token", "stands for masked patches in training"),
    # Hugging Face
    *norm(rf"{HUGGING_FACE_BLOCK}\.norm1", f"{BLOCK}/norm_1"),
    *split_attention(HUGGING_FACE_BLOCK),
    Rule(rf"{HUGGING_FACE_BLOCK}\.layer_scale(?P<n>[12])\.lambda1", BLOCK + "/scale_{n}/factor"),
    *norm(rf"{HUGGING_FACE_BLOCK}\.norm2", f"{BLOCK}/norm_2"),
    *dense(rf"{HUGGING_FACE_BLOCK}\.mlp\.(?:fc1|weights_in)", f"{BLOCK}/mlp/up"),
    *dense(rf"{HUGGING_FACE_BLOCK}\.mlp\.(?:fc2|weights_out)", f"{BLOCK}/mlp/down"),
    *norm(rf"{HUGGING_FACE_ROOT}layernorm", "norm"),
    Drop(r"classifier\.(?:weight|bias)", "a classification head, features are tokens"),
    # torch.hub
    *hub_block(HUB_BLOCK),
    Rule(rf"{HUB_BLOCK}\.ls(?P<n>[12])\.gamma", BLOCK + "/scale_{n}/factor"),
    *dense(rf"{HUB_BLOCK}\.mlp\.w12", f"{BLOCK}/mlp/up"),
    *dense(rf"{HUB_BLOCK}\.mlp\.w3", f"{BLOCK}/mlp/down"),
    *norm(r"norm", "norm"),
    Drop(
        r"(?:dino_head|ibot_head|head|dino_loss|ibot_patch_loss)\..+", "of training or of a head, features are tokens"
    ),
)


def dinov2_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> DinoV2Spec:
    """The spec of a DINOv2 tower; gated MLPs and registers show in the shapes."""
    sizes = vision_sizes(routed)
    gated = shape_of(routed, "blocks_0/mlp/up/kernel", 2)[1] == 2 * sizes["mlp_width"]
    activation = facts.stated.get("activation")
    if activation is not None and activation.value not in ("gelu", "swiglu"):
        raise ConversionError(f"its activation {activation.value!r} is not DINOv2's (gelu).")
    registers = shape_of(routed, "patch_tokens/registers", 2)[0] if "patch_tokens/registers" in routed else 0
    # The models with registers were released with another resize, which needs no offset.
    fields = common_fields(routed, facts, pixels, sizes["width"], offset=0.0 if registers else 0.1)
    return DinoV2Spec(**sizes, **fields, activation="swiglu" if gated else "gelu", registers=registers)
