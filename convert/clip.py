"""CLIP under its published names: Hugging Face's CLIPModel and MetaClip2Model, OpenAI's archives, open_clip's."""

from collections.abc import Mapping

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.architecture import Facts, shape_of, text_sizes, vision_sizes
from gla_jax.convert.configs import Pixels
from gla_jax.convert.rules import Drop, Routed, Rule, Table, fused_attention, layer, layers, position_table, short
from gla_jax.images.windows import OPENAI_MEAN, OPENAI_STD
from gla_jax.support.errors import ConversionError
from gla_jax.towers.clip import ClipImageSpec, ClipTextSpec

MODEL_TYPES = {"clip": "CLIPConfig", "metaclip_2": "MetaClip2Config"}
ACTIVATIONS = ("quick_gelu", "gelu")
# Every published width; OpenAI's heads are 64 channels wide, those of H/14, g/14 and bigG/14 80, 88 and 104.
IMAGE_HEADS = {256: 4, 384: 6, 512: 8, 640: 10, 768: 12, 896: 14, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
TEXT_HEADS = {width: width // 64 for width in (256, 384, 512, 640, 768, 1024, 1280)}


_HUGGING_FACE_BLOCK = {
    r"self_attn\.q_proj": "attention/query",
    r"self_attn\.k_proj": "attention/key",
    r"self_attn\.v_proj": "attention/value",
    r"self_attn\.out_proj": "attention/out",
    "layer_norm1": "norm_1",
    "layer_norm2": "norm_2",
    r"mlp\.fc1": "mlp/up",
    r"mlp\.fc2": "mlp/down",
}
_OPENAI_BLOCK = {
    r"attn\.out_proj": "attention/out",
    "ln_1": "norm_1",
    "ln_2": "norm_2",
    r"mlp\.c_fc": "mlp/up",
    r"mlp\.c_proj": "mlp/down",
}


def hugging_face_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """The blocks of a tower of CLIPModel, MetaClip2Model or SiglipModel; source is a regex."""
    return layers(rf"{source}\.encoder\.layers\.(?P<i>\d+)\.", target + "/blocks_{i}", _HUGGING_FACE_BLOCK)


def openai_blocks(source: str, target: str) -> tuple[Rule, ...]:
    """The blocks of a tower of OpenAI's code; source is a regex."""
    source, target = rf"{source}transformer\.resblocks\.(?P<i>\d+)\.", target + "/blocks_{i}"
    fused = fused_attention(rf"{source}attn\.in_proj_", f"{target}/attention")
    return (*fused, *layers(source, target, _OPENAI_BLOCK))


# The text tower of Hugging Face's models but for its positions.
HUGGING_FACE_TEXT: Table = (
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding"),
    *hugging_face_blocks("text_model", "text"),
    *layer(r"text_model\.final_layer_norm", "text/norm_final"),
)
TEXT_ROOT = r"(?:text\.)?"  # open_clip's CustomTextCLIP has a text tower of its own

IMAGE_RULES: Table = (
    # Hugging Face
    Rule(r"vision_model\.embeddings\.class_embedding", "image/patch_tokens/class_token"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image/patch_tokens/projection/kernel", "patches"),
    position_table(r"vision_model\.embeddings\.position_embedding\.weight", "image/patch_tokens"),
    *layer(r"vision_model\.pre_layrnorm", "image/norm_pre"),
    *hugging_face_blocks(r"vision_model", "image"),
    *layer(r"vision_model\.post_layernorm", "image/norm_post"),
    Rule(r"visual_projection\.weight", "image/projection/kernel", "linear"),
    Drop(r"vision_model\.embeddings\.position_ids", "counts positions from 0"),
    # OpenAI and open_clip
    Rule(r"visual\.class_embedding", "image/patch_tokens/class_token"),
    Rule(r"visual\.conv1\.weight", "image/patch_tokens/projection/kernel", "patches"),
    position_table(r"visual\.positional_embedding", "image/patch_tokens"),
    *layer(r"visual\.ln_pre", "image/norm_pre"),
    *openai_blocks(r"visual\.", "image"),
    *layer(r"visual\.ln_post", "image/norm_post"),
    Rule(r"visual\.proj", "image/projection/kernel"),
    Drop(r"input_resolution", "a size that the position table shows"),
)

TEXT_RULES: Table = (
    # Hugging Face
    *HUGGING_FACE_TEXT,
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/positions"),
    Rule(r"text_projection\.weight", "text/projection/kernel", "linear"),
    Drop(r"text_model\.embeddings\.position_ids", "counts positions from 0"),
    # OpenAI and open_clip
    Rule(rf"{TEXT_ROOT}token_embedding\.weight", "text/token_embedding/embedding"),
    Rule(rf"{TEXT_ROOT}positional_embedding", "text/positions"),
    *openai_blocks(TEXT_ROOT, "text"),
    *layer(rf"{TEXT_ROOT}ln_final", "text/norm_final"),
    Rule(rf"{TEXT_ROOT}text_projection", "text/projection/kernel"),
    Drop(rf"{TEXT_ROOT}(?:transformer\.resblocks\.\d+\.)?attn_mask", "the causal mask, which the tower makes itself"),
    Drop(r"context_length|vocab_size", "a size that the text tables show"),
)

RULES: Table = (
    *IMAGE_RULES,
    *TEXT_RULES,
    Drop(r"logit_scale|logit_bias", "the scale of logits is a setting, and a bias moves all classes alike"),
)


def clip_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipSpec:
    """The spec of both towers."""
    return ClipSpec(image_spec(routed, facts, pixels), _text_spec(routed, facts))


def image_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipImageSpec:
    """The spec of the image tower; pixels are normalised OpenAI's way where nothing says how."""
    sizes = vision_sizes(routed, "image/")
    normalised = facts.pixels(pixels, Pixels(OPENAI_MEAN, OPENAI_STD), "OpenAI's mean and std")
    return ClipImageSpec(
        **sizes,
        **facts.blocks("image/", sizes["width"], IMAGE_HEADS, 1e-5),
        embed_dim=shape_of(routed, "image/projection/kernel", 2)[1],
        activation=_activation(facts, "image/", sizes["width"]),
        **normalised,
    )


def _text_spec(routed: Mapping[str, Routed], facts: Facts) -> ClipTextSpec:
    sizes = text_sizes(routed)
    vocabulary, width = sizes["vocabulary"], sizes["width"]
    end_token = facts.get("text/end_token", width, vocabulary - 1, "the last token of the vocabulary")
    if type(end_token) is not int or not 0 <= end_token < vocabulary:
        raise ConversionError(f"its end-of-text token {short(end_token)} is not one of its {vocabulary} tokens.")
    return ClipTextSpec(
        **sizes,
        context=shape_of(routed, "text/positions", 2)[0],
        **facts.blocks("text/", width, TEXT_HEADS, 1e-5),
        embed_dim=shape_of(routed, "text/projection/kernel", 2)[1],
        end_token=end_token,
        activation=_activation(facts, "text/", width),
    )


def _activation(facts: Facts, tower: str, width: int) -> str:
    name = facts.get(f"{tower}activation", width, None, "")
    if name is None:
        raise ConversionError(
            "nothing says which activation the model was trained with: choose --activation quick_gelu for "
            "the weights of OpenAI and MetaCLIP, --activation gelu for those of LAION."
        )
    if name not in ACTIVATIONS:
        raise ConversionError(f"the activation {short(name)} is not one of a CLIP tower ({', '.join(ACTIVATIONS)}).")
    return name
