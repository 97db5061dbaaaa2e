"""DINOv2 under its published names: Hugging Face's Dinov2Model and Dinov2WithRegistersModel, torch.hub's files."""

from gla_jax.checkpoints.model_folder import abstract_params
from gla_jax.convert.architecture import (
    Config,
    Converted,
    head_count,
    is_transformers,
    shape_of,
    transformers_config,
    vision_sizes,
)
from gla_jax.convert.dino import BLOCK, embedding_rules, hub_block, position_offset, split_attention
from gla_jax.convert.pixels import Pixels, refuse_other_pixels
from gla_jax.convert.rules import Drop, Rule, State, Table, dense, fit, norm, route
from gla_jax.support.errors import ConversionError
from gla_jax.towers.dinov2 import DinoV2Spec

HEADS = {width: width // 64 for width in (384, 768, 1024, 1536)}
CONFIGS = {"dinov2": "Dinov2Config", "dinov2_with_registers": "Dinov2WithRegistersConfig"}

HUB_ROOT = r"(?:module\.)?(?:backbone\.)?"
# Large models are trained with their blocks in chunks, numbered throughout: blocks.2.21 is block 21.
HUB_BLOCK = rf"{HUB_ROOT}blocks\.(?:\d+\.)?(?P<i>\d+)"
HUGGING_FACE_ROOT = r"(?:dinov2\.|dinov2_with_registers\.)?"
HUGGING_FACE_BLOCK = rf"{HUGGING_FACE_ROOT}encoder\.layer\.(?P<i>\d+)"
MASK_REASON = "stands for masked patches in training"

RULES: Table = (
    *embedding_rules(HUGGING_FACE_ROOT, HUB_ROOT),
    Rule(
        rf"{HUGGING_FACE_ROOT}embeddings\.register_tokens|{HUB_ROOT}register_tokens", "patch_tokens/registers", "rows"
    ),
    Drop(rf"{HUGGING_FACE_ROOT}embeddings\.mask_token|{HUB_ROOT}mask_token", MASK_REASON),
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
    *norm(rf"{HUB_ROOT}norm", "norm"),
    Drop(r"(?:module\.)?(?:dino_head|ibot_head)\..+", "a projection head of training, features are tokens"),
)


def convert_dinov2(
    state: State, config: Config | None = None, *, num_heads: int | None = None, pixels: Pixels | None = None
) -> Converted:
    """A DINOv2 tower from published tensors and, where there is one, its configuration.

    num_heads goes before what the configuration says.

    Gated MLPs and registers show in the shapes; pixels: how they are normalised, if a file says so. Raises
    ConversionError when the tensors do not fit, the number of heads remains unsaid or pixels are not ImageNet's.
    """
    refuse_other_pixels(pixels)
    said = transformers_config(config, CONFIGS) if is_transformers(config) else None
    routed, records = route(state, RULES)
    sizes = vision_sizes(routed)
    gated = shape_of(routed, "blocks_0/mlp/up/kernel", 2)[1] == 2 * sizes["mlp_width"]
    if said is not None and not gated and said.hidden_act != "gelu":
        raise ConversionError(f"its activation {said.hidden_act!r} is not DINOv2's (gelu).")
    registers = "patch_tokens/registers"
    spec = DinoV2Spec(
        **sizes,
        num_heads=head_count(
            sizes["width"], HEADS, said.num_attention_heads if num_heads is None and said else num_heads, "--heads"
        ),
        activation="swiglu" if gated else "gelu",
        registers=shape_of(routed, registers, 2)[0] if registers in routed else 0,
        qkv_bias="blocks_0/attention/query/bias" in routed,
        layer_norm_eps=said.layer_norm_eps if said else 1e-6,
        # The models with registers were released with another resize, which needs none.
        position_offset=0.0 if registers in routed else position_offset(routed),
    )
    return Converted(spec, fit(routed, abstract_params(spec)), records)
