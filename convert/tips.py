"""TIPSv2 under its published names: the hub's, which transformers writes too, and transformers' own once loaded."""

from collections.abc import Mapping

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.architecture import Facts, shape_of, transformer_sizes, vision_sizes
from gla_jax.convert.clip import hugging_face_blocks
from gla_jax.convert.configs import Pixels
from gla_jax.convert.dino import SPLIT_ATTENTION
from gla_jax.convert.rules import Drop, Routed, Rule, Table, fused_attention, layer, layers
from gla_jax.towers.tips import TipsImageSpec, TipsTextSpec

MODEL_TYPES = {"tipsv2": "Tipsv2Config"}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}
CONTEXT = 64  # of every published model

_IMAGE, _TEXT = r"vision_encoder\.", r"text_encoder\."
_BLOCK = {
    "norm1": "norm_1",
    "norm2": "norm_2",
    r"attn\.proj": "attention/out",
    r"mlp\.c_fc": "mlp/up",
    r"mlp\.c_proj": "mlp/down",
}
_LOADED, _LOADED_BLOCK = r"vision_model\.embeddings\.", r"vision_model\.encoder\.layer\.(?P<i>\d+)\."
_IMAGE_BLOCK, _TEXT_BLOCK = rf"{_IMAGE}blocks\.(?P<i>\d+)\.", rf"{_TEXT}transformer\.resblocks\.(?P<i>\d+)\."

RULES: Table = (
    Rule(rf"{_IMAGE}cls_token", "image/patch_tokens/class_token", "vector"),
    Rule(rf"{_IMAGE}register_tokens", "image/patch_tokens/registers", "rows"),
    Rule(
        rf"{_IMAGE}pos_embed",
        ("image/patch_tokens/class_position", "image/patch_tokens/positions"),
        "first and rest",
    ),
    Rule(rf"{_IMAGE}patch_embed\.proj\.weight", "image/patch_tokens/projection/kernel", "patches"),
    Rule(rf"{_IMAGE}patch_embed\.proj\.bias", "image/patch_tokens/projection/bias"),
    Drop(rf"{_IMAGE}mask_token", "stands for masked patches in training"),
    *fused_attention(rf"{_IMAGE_BLOCK}attn\.qkv\.", "image/blocks_{i}/attention"),
    *layers(_IMAGE_BLOCK, "image/blocks_{i}", _BLOCK),
    Rule(rf"{_IMAGE_BLOCK}ls(?P<n>[12])\.gamma", "image/blocks_{i}/scale_{n}/factor"),
    *layer(rf"{_IMAGE}norm", "image/norm"),
    Rule(rf"{_TEXT}token_embedding\.weight", "text/token_embedding/embedding"),
    *fused_attention(rf"{_TEXT_BLOCK}attn\.in_proj_", "text/blocks_{i}/attention"),
    *layers(
        _TEXT_BLOCK,
        "text/blocks_{i}",
        {
            "ln_1": "norm_1",
            "ln_2": "norm_2",
            r"attn\.out_proj": "attention/out",
            r"mlp\.c_fc": "mlp/up",
            r"mlp\.c_proj": "mlp/down",
        },
    ),
    *layer(rf"{_TEXT}ln_final", "text/norm_final"),
    # as loaded
    Rule(rf"{_LOADED}cls_token", "image/patch_tokens/class_token", "vector"),
    Rule(rf"{_LOADED}register_tokens", "image/patch_tokens/registers", "rows"),
    Rule(
        rf"{_LOADED}position_embeddings",
        ("image/patch_tokens/class_position", "image/patch_tokens/positions"),
        "first and rest",
    ),
    Rule(rf"{_LOADED}patch_embeddings\.projection\.weight", "image/patch_tokens/projection/kernel", "patches"),
    Rule(rf"{_LOADED}patch_embeddings\.projection\.bias", "image/patch_tokens/projection/bias"),
    Drop(rf"{_LOADED}mask_token", "stands for masked patches in training"),
    *layers(
        _LOADED_BLOCK,
        "image/blocks_{i}",
        {**SPLIT_ATTENTION, "norm1": "norm_1", "norm2": "norm_2", r"mlp\.fc1": "mlp/up", r"mlp\.fc2": "mlp/down"},
    ),
    Rule(rf"{_LOADED_BLOCK}layer_scale(?P<n>[12])\.lambda1", "image/blocks_{i}/scale_{n}/factor"),
    *layer(r"vision_model\.layernorm", "image/norm"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding"),
    *hugging_face_blocks("text_model", "text"),
    *layer(r"text_model\.final_layer_norm", "text/norm_final"),
    Drop(r"text_model\.embeddings\.(?:position_ids|position_embedding\.weights)", "places, as the tower makes them"),
    Drop(r"temperature", "the scale of logits is a setting"),
)


def tips_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipSpec:
    """The spec of both towers."""
    sizes = vision_sizes(routed, "image/")
    width = sizes["width"]
    if pixels is None:
        pixels = Pixels(TipsImageSpec.pixel_mean, TipsImageSpec.pixel_std)
        facts.assumed["pixels"] = "0 to 1 as they are: no file beside the weights says how pixels are normalised"
    registers = "image/patch_tokens/registers"
    image = TipsImageSpec(
        **sizes,
        num_heads=facts.num_heads("image/", width, HEADS, "--heads"),
        registers=shape_of(routed, registers, 2)[0] if registers in routed else 0,
        layer_norm_eps=facts.layer_norm_eps("image/", width, 1e-6),
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
    )
    vocabulary, width = shape_of(routed, "text/token_embedding/embedding", 2)
    text = TipsTextSpec(
        vocabulary=vocabulary,
        context=facts.get("text/context", width, CONTEXT, "as the published models: no tensor shows it"),
        width=width,
        **transformer_sizes(routed, "text/"),
        num_heads=facts.num_heads("text/", width, HEADS, "--text-heads"),
        layer_norm_eps=facts.layer_norm_eps("text/", width, 1e-5),
    )
    return ClipSpec(image, text)
