"""TIPSv2 under its published names: the hub's, transformers' own once loaded, and those of the release's .npz files.

The release has the arrays twice, for PyTorch (the hub's names without the towers') and for JAX (Scenic's modules).
"""

import re
from collections.abc import Mapping

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.architecture import Facts, registers_of, text_sizes, vision_sizes
from gla_jax.convert.clip import HUGGING_FACE_TEXT, openai_blocks
from gla_jax.convert.configs import Pixels, Stated, Statements
from gla_jax.convert.dino import SPLIT_ATTENTION, hub_blocks
from gla_jax.convert.rules import (
    NORMS,
    Drop,
    Routed,
    Rule,
    State,
    Table,
    layer,
    layers,
    patch_projection,
    position_table,
    short,
)
from gla_jax.support.errors import ConversionError
from gla_jax.towers.tips import TipsImageSpec, TipsTextSpec

MODEL_TYPES = {"tipsv2": "Tipsv2Config"}
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1536: 24}
CONTEXT = 64  # of every published model

GELUS = ("gelu", "gelu_pytorch_tanh")  # as PyTorch takes it, and Flax
FIRST_GRID = 16  # side of the first TIPS' position tables in Scenic's files; TIPSv2's have 32

_IMAGE, _TEXT = r"(?:vision_encoder\.)?", r"(?:text_encoder\.)?"
_IMAGE_BLOCK = rf"{_IMAGE}blocks\.(?P<i>\d+)\."
_LOADED_BLOCK = r"vision_model\.encoder\.layer\.(?P<i>\d+)\."


def _scenic_norm(source: str, target: str) -> tuple[Rule, Rule]:
    return Rule(rf"{source}/scale", f"{target}/scale"), Rule(rf"{source}/bias", f"{target}/bias")


def _scenic_blocks(tower: str, target: str, scaled: bool) -> tuple[Rule, ...]:
    """The blocks of a tower in Flax's arrays; scaled: ours end both halves with a factor, which is 1 for Scenic's."""
    block, target = rf"{tower}transformer/encoderblock_(?P<i>\d+)/", target + "/blocks_{i}"
    attention, parts = rf"{block}MultiHeadDotProductAttention_0/", "(?P<part>query|key|value)"
    ends = ((rf"{attention}out/bias", "attention/out/bias"), (rf"{block}MlpBlock_0/Dense_1/bias", "mlp/down/bias"))
    return (
        *_scenic_norm(rf"{block}LayerNorm_0", f"{target}/norm_1"),
        Rule(rf"{attention}{parts}/kernel", f"{target}/attention/{{part}}/kernel", "to heads"),
        Rule(rf"{attention}{parts}/bias", f"{target}/attention/{{part}}/bias", "vector"),
        Rule(rf"{attention}out/kernel", f"{target}/attention/out/kernel", "from heads"),
        *_scenic_norm(rf"{block}LayerNorm_1", f"{target}/norm_2"),
        Rule(rf"{block}MlpBlock_0/Dense_0/kernel", f"{target}/mlp/up/kernel"),
        Rule(rf"{block}MlpBlock_0/Dense_0/bias", f"{target}/mlp/up/bias"),
        Rule(rf"{block}MlpBlock_0/Dense_1/kernel", f"{target}/mlp/down/kernel"),
        *(
            Rule(source, (f"{target}/{path}", f"{target}/scale_{n}/factor"), "and ones")
            if scaled
            else Rule(source, f"{target}/{path}")
            for n, (source, path) in enumerate(ends, 1)
        ),
    )


def _embeddings(root: str, positions: str, projection: str) -> tuple[Rule | Drop, ...]:
    return (
        Rule(rf"{root}cls_token", "image/patch_tokens/class_token", "vector"),
        Rule(rf"{root}register_tokens", "image/patch_tokens/registers", "rows"),
        position_table(root + positions, "image/patch_tokens"),
        *patch_projection(root + projection, "image/patch_tokens"),
        Drop(rf"{root}mask_token", "stands for masked patches in training"),
    )


SCENIC_RULES: Table = (
    Rule(
        "encoder/ToTokenSequence_0/cls",
        ("image/patch_tokens/class_token", "image/patch_tokens/registers"),
        "first and rest",
    ),
    position_table("encoder/ToTokenSequence_0/posembed_input", "image/patch_tokens", "square"),
    Rule("encoder/ToTokenSequence_0/embedding/kernel", "image/patch_tokens/projection/kernel", "flax patches"),
    Rule("encoder/ToTokenSequence_0/embedding/bias", "image/patch_tokens/projection/bias"),
    *_scenic_blocks("encoder/", "image", scaled=True),
    *_scenic_norm("encoder/encoder_norm", "image/norm"),
    Rule("token_emb/emb_var", "text/token_embedding/embedding"),
    *_scenic_blocks("", "text", scaled=False),
    *_scenic_norm("text_encoder_norm", "text/norm_final"),
    Drop("temperature_contrastive", "the scale of logits is a setting"),
)
RULES: Table = (
    *SCENIC_RULES,
    *_embeddings(_IMAGE, "pos_embed", r"patch_embed\.proj"),
    *hub_blocks(_IMAGE_BLOCK, "image/blocks_{i}", {r"mlp\.(?:c_fc|fc1)": "mlp/up", r"mlp\.(?:c_proj|fc2)": "mlp/down"}),
    Rule(rf"{_IMAGE_BLOCK}ls(?P<n>[12])\.gamma", "image/blocks_{i}/scale_{n}/factor"),
    *layer(rf"{_IMAGE}norm", "image/norm"),
    Rule(rf"{_TEXT}token_embedding\.weight", "text/token_embedding/embedding"),
    *openai_blocks(_TEXT, "text"),
    *layer(rf"{_TEXT}ln_final", "text/norm_final"),
    # as loaded
    *_embeddings(r"vision_model\.embeddings\.", "position_embeddings", r"patch_embeddings\.projection"),
    *layers(
        _LOADED_BLOCK,
        "image/blocks_{i}",
        {**SPLIT_ATTENTION, **NORMS, r"mlp\.fc1": "mlp/up", r"mlp\.fc2": "mlp/down"},
    ),
    Rule(rf"{_LOADED_BLOCK}layer_scale(?P<n>[12])\.lambda1", "image/blocks_{i}/scale_{n}/factor"),
    *layer(r"vision_model\.layernorm", "image/norm"),
    *HUGGING_FACE_TEXT,
    Drop(r"text_model\.embeddings\.(?:position_ids|position_embedding\.weights)", "places, as the tower makes them"),
    Drop(r"temperature", "the scale of logits is a setting"),
)


def tips_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> ClipSpec:
    """The spec of both towers."""
    for tower, path in (("image", "image/patch_tokens/positions"), ("text", "text/token_embedding/embedding")):
        if path not in routed:
            raise ConversionError(
                f"nothing in the source gives {path}: it lacks the {tower} tower, and a TIPSv2 is both."
            )
    sizes = vision_sizes(routed, "image/")
    positions = routed["image/patch_tokens/positions"].source
    if sizes["image_size"] == FIRST_GRID * sizes["patch_size"] and positions.endswith("posembed_input"):
        raise ConversionError(
            f"{positions} has {FIRST_GRID} x {FIRST_GRID} positions, as the first TIPS has, and TIPSv2 is converted; "
            "take tips_v2_b14 or tips_v2_l14."
        )
    normalised = facts.pixels(pixels, Pixels(TipsImageSpec.pixel_mean, TipsImageSpec.pixel_std), "0 to 1 as they are")
    activation = facts.get("image/activation", sizes["width"], GELUS[0], "as the release's PyTorch code has it")
    image = TipsImageSpec(
        **sizes,
        activation=activation if activation in GELUS else GELUS[0],  # then the comparison of both refuses it
        **facts.blocks("image/", sizes["width"], HEADS, 1e-6),
        registers=registers_of(routed, "image/"),
        **normalised,
    )
    sizes = text_sizes(routed)
    width = sizes["width"]
    if width != image.width:
        raise ConversionError(
            f"its texts have width {width} and its images {image.width}, which no product compares; take both towers "
            "from one model."
        )
    context = facts.get("text/context", width, CONTEXT, "as the published models: no tensor shows it")
    text = TipsTextSpec(**sizes, context=context, **facts.blocks("text/", width, HEADS, 1e-5))
    return ClipSpec(image, text)


def scenic_statements(state: State) -> Statements:
    """Heads, which Flax's arrays show, and what the release's JAX code computes otherwise than its PyTorch code.

    Its GELU is Flax's, by tanh, and its text LayerNorms have Flax's epsilon. Empty for tensors of PyTorch. Raises
    ConversionError where blocks of a tower have different numbers of heads.
    """
    stated: Statements = {}
    for tower, start in (("image/", "encoder/transformer/"), ("text/", "transformer/")):
        kernels = {name: re.fullmatch(rf"{start}.*/(query|key|value|out)/kernel", name) for name in state}
        heads = {
            state[name].shape[0 if kernel[1] == "out" else 1]: name
            for name, kernel in kernels.items()
            if kernel and len(state[name].shape) == 3
        }
        if len(heads) > 1:
            raise ConversionError(
                f"its blocks have {' and '.join(map(str, sorted(heads)))} attention heads; download it again."
            )
        stated |= {f"{tower}num_heads": Stated(short(name), count) for count, name in heads.items()}
    if "image/num_heads" in stated:
        stated["image/activation"] = Stated("the release's JAX code", GELUS[1])
    if "text/num_heads" in stated:
        stated["text/layer_norm_eps"] = Stated("the release's JAX code", 1e-6)
    return stated
