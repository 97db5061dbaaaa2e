"""SigLIP and SigLIP 2 under the names of Hugging Face's SiglipModel, and the texts that their tokenizers were given."""

from collections.abc import Mapping
from typing import Any

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.architecture import Facts, shape_of, text_sizes, vision_sizes
from gla_jax.convert.clip import HUGGING_FACE_TEXT, hugging_face_blocks
from gla_jax.convert.configs import Pixels
from gla_jax.convert.rules import Drop, Routed, Rule, Table, fused_attention, layer, patch_projection, short
from gla_jax.support.errors import ConversionError, first_line
from gla_jax.towers.siglip import HALF, SiglipImageSpec, SiglipTextSpec

MODEL_TYPES = {"siglip": "SiglipConfig"}
ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "quick_gelu")
HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}
GEMMA_VOCABULARY = 256_000

RULES: Table = (
    *patch_projection(r"vision_model\.embeddings\.patch_embedding", "image/patch_tokens"),
    Rule(r"vision_model\.embeddings\.position_embedding\.weight", "image/patch_tokens/positions"),
    *hugging_face_blocks("vision_model", "image"),
    *layer(r"vision_model\.post_layernorm", "image/norm_post"),
    Rule(r"vision_model\.head\.probe", "image/head/probe", "vector"),
    *fused_attention(r"vision_model\.head\.attention\.in_proj_", "image/head/attention"),
    *layer(r"vision_model\.head\.attention\.out_proj", "image/head/attention/out"),
    *layer(r"vision_model\.head\.layernorm", "image/head/norm"),
    *layer(r"vision_model\.head\.mlp\.fc1", "image/head/mlp/up"),
    *layer(r"vision_model\.head\.mlp\.fc2", "image/head/mlp/down"),
    *HUGGING_FACE_TEXT,
    Rule(r"text_model\.embeddings\.position_embedding\.weight", "text/positions"),
    *layer(r"text_model\.head", "text/projection"),
    Drop(r"(?:vision|text)_model\.embeddings\.position_ids", "counts positions from 0"),
    Drop(r"logit_scale|logit_bias", "the scale of logits is a setting, and a bias moves all classes alike"),
)


def siglip_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipSpec:
    """The spec of both towers; pixels are normalised by 0.5 where nothing says how."""
    sizes = vision_sizes(routed, "image/")
    normalised = facts.pixels(pixels, Pixels(HALF, HALF), "mean and std 0.5")
    image = SiglipImageSpec(**sizes, **_blocks(facts, "image/", sizes["width"]), **normalised)
    sizes = text_sizes(routed)
    vocabulary, width = sizes["vocabulary"], sizes["width"]
    text = SiglipTextSpec(
        **sizes,
        context=shape_of(routed, "text/positions", 2)[0],
        embed_dim=shape_of(routed, "text/projection/kernel", 2)[1],
        end_token=facts.get("text/end_token", width, 1, "as every published SigLIP"),
        pad_token=facts.get("text/pad_token", width, int(vocabulary != GEMMA_VOCABULARY), "by the vocabulary's size"),
        **_blocks(facts, "text/", width),
    )
    if text.embed_dim != image.embed_dim:
        raise ConversionError(
            f"its texts have features of width {text.embed_dim} and its images of {image.embed_dim}, which no product "
            "compares; take both towers from one model."
        )
    return ClipSpec(image, text)


def _blocks(facts: Facts, tower: str, width: int) -> dict[str, Any]:
    activation = facts.get(f"{tower}activation", width, ACTIVATIONS[0], "as every published SigLIP")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ConversionError(f"the activation {short(activation)} is not one of a SigLIP tower ({known}).")
    return {"activation": activation, **facts.blocks(tower, width, HEADS, 1e-6)}


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
