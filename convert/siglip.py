"""SigLIP and SigLIP 2 under the names of Hugging Face's SiglipModel, and the texts that their tokenizers were given."""

from collections.abc import Mapping
from typing import Any

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.architecture import Facts, shape_of, transformer_sizes, vision_sizes
from gla_jax.convert.clip import hugging_face_blocks
from gla_jax.convert.configs import Pixels
from gla_jax.convert.rules import Drop, Routed, Rule, Table, fused_attention, layer, short
from gla_jax.support.errors import ConversionError, first_line
from gla_jax.towers.siglip import HALF, SiglipImageSpec, SiglipTextSpec

MODEL_TYPES = {"siglip": "SiglipConfig"}
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "quick_gelu")
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
GEMMA_VOCABULARY = 256_000

RULES: Table = (
    Rule(r"vision_model\.embeddings\.patch_embedding\.weight", "image/patch_tokens/projection/kernel", "patches"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.bias", "image/patch_tokens/projection/bias"),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image/patch_tokens/positions"),
    *hugging_face_blocks("vision_model", "image"),
    *layer(r"vision_model\.post_layernorm", "image/norm_post"),
    Rule(r"vision_model\.head\.probe", "image/head/probe", "vector"),
    *fused_attention(r"vision_model\.head\.attention\.in_proj_", "image/head/attention"),
    *layer(r"vision_model\.head\.attention\.out_proj", "image/head/attention/out"),
    *layer(r"vision_model\.head\.layernorm", "image/head/norm"),
    *layer(r"vision_model\.head\.mlp\.fc1", "image/head/mlp/up"),
    *layer(r"vision_model\.head\.mlp\.fc2", "image/head/mlp/down"),
    Rule(r"text_model\.embeddings\.token_embedding\.weight", "text/token_embedding/embedding"),
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/positions"),
    *hugging_face_blocks("text_model", "text"),
    *layer(r"text_model\.final_layer_norm", "text/norm_final"),
    *layer(r"text_model\.head", "text/projection"),
    Drop(r"(?:vision|text)_model\.embeddings\.position_ids", "counts positions from 0"),
    Drop(r"logit_scale|logit_bias", "the scale of logits is a setting, and a bias moves all classes alike"),
)


def siglip_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipSpec:
    """The spec of both towers; pixels are normalised by 0.5 where nothing says how."""
    sizes = vision_sizes(routed, "image/")
    if pixels is None:
        pixels = Pixels(HALF, HALF)
        facts.assumed["pixels"] = "mean and std 0.5: no file beside the weights says how pixels are normalised"
    image = SiglipImageSpec(
        **sizes,
        **_blocks(facts, "image/", sizes["width"], "--heads"),
        pixel_mean=pixels.mean,
        pixel_std=pixels.std,
    )
    vocabulary, width = shape_of(routed, "text/token_embedding/embedding", 2)
    text = SiglipTextSpec(
        vocabulary=vocabulary,
        context=shape_of(routed, "text/positions", 2)[0],
        width=width,
        **transformer_sizes(routed, "text/"),
        embed_dim=shape_of(routed, "text/projection/kernel", 2)[1],
        end_token=facts.get("text/end_token", width, 1, "as every published SigLIP"),
        pad_token=facts.get("text/pad_token", width, int(vocabulary != GEMMA_VOCABULARY), "by the vocabulary's size"),
        **_blocks(facts, "text/", width, "--text-heads"),
    )
    if text.embed_dim != image.embed_dim:
        raise ConversionError(
            f"its texts have features of width {text.embed_dim} and its images of {image.embed_dim}, which no product "
            "compares; take both towers from one model."
        )
    return ClipSpec(image, text)


def _blocks(facts: Facts, tower: str, width: int, option: str) -> dict[str, Any]:
    activation = facts.get(f"{tower}activation", width, ACTIVATIONS[0], "as every published SigLIP")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConversionError(f"the activation {short(activation)} is not one of a SigLIP tower ({known}).")
    return {
        "num_heads": facts.num_heads(tower, width, HEADS, option),
        "activation": activation,
        "layer_norm_eps": facts.layer_norm_eps(tower, width, 1e-6),
    }


PUNCTUATION = r"[!-/:-@\[-`{-~]"  # of ASCII


def trained_tokenizer(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, int]]:
    """The tokenizer files of a SigLIP as it was trained with them, and the ids that end and pad its texts.

    SigLIP 2 read Gemma's tokens of texts in lower case, SigLIP those of a vocabulary with </s> of texts without
    punctuation too; both ended by the end token alone. tokenizer.json need not say so: transformers adds it when it
    loads one. Raises ConversionError for no tokenizer and for one that is neither.
    """
    from tokenizers import Regex, Tokenizer, normalizers, processors

    if "tokenizer.json" not in files:
        raise ConversionError("no tokenizer.json lies beside the weights; put the model's own there.")
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises bare exceptions
        raise ConversionError(f"its tokenizer.json cannot be read ({first_line(error)}).") from error
    steps = [normalizers.Lowercase()]
    end, padding = "<eos>", "<pad>"
    if tokenizer.token_to_id(end) is None:
        end = padding = "</s>"
        steps += [normalizers.Replace(Regex(PUNCTUATION), ""), normalizers.Replace(Regex(r"\s+"), " ")]
        steps += [normalizers.Strip()]
    ids = {"end_token": tokenizer.token_to_id(end), "pad_token": tokenizer.token_to_id(padding)}
    if None in ids.values():
        raise ConversionError("its tokenizer.json has neither <eos> and <pad> nor </s>; put the model's own there.")
    tokenizer.normalizer = normalizers.Sequence([*steps, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    tokenizer.post_processor = processors.TemplateProcessing(f"$A {end}", special_tokens=[(end, ids["end_token"])])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return {**files, "tokenizer.json": tokenizer.to_str().encode()}, ids
