"""DINOv3 under its published names: Hugging Face's and torch.hub's."""

import numpy as np

from gla_jax.convert.architecture import Facts, projection_sizes, registers_of, transformer_sizes
from gla_jax.convert.configs import Pixels
from gla_jax.convert.dino import BLOCK, HEADS, hub_blocks
from gla_jax.convert.rules import NORMS, Drop, Routed, Rule, Table, layer, layers, patch_projection
from gla_jax.support.errors import ConversionError
from gla_jax.towers.dinov3 import DinoV3Spec

MODEL_TYPES = {"dinov3_vit": "DINOv3ViTConfig"}
THETA = 100.0  # of every published model
# Tensors of torch.hub that say what the tower has: they are read below, and are no parameters.
_KEY_MASK, _PERIODS = "blocks_{i}/attention/bias_mask", "periods"

_ROOT = r"(?:model\.)?layer\.(?P<i>\d+)\."
_HUB_BLOCK = r"blocks\.(?P<i>\d+)\."
_ATTENTION = {rf"attention\.{part[0]}_proj": f"attention/{part}" for part in ("query", "key", "value", "out")}

RULES: Table = (
    Rule(r"embeddings\.cls_token|cls_token", "patch_tokens/class_token", "vector"),
    Rule(r"embeddings\.register_tokens|storage_tokens", "patch_tokens/registers", "rows"),
    Drop(r"embeddings\.mask_token|mask_token", "stands for masked patches in training"),
    # Hugging Face
    *patch_projection(r"(?:embeddings\.patch_embeddings|patch_embed\.proj)"),
    *layers(_ROOT, BLOCK, {**_ATTENTION, **NORMS, r"mlp\.up_proj": "mlp/up", r"mlp\.down_proj": "mlp/down"}),
    Rule(rf"{_ROOT}layer_scale(?P<n>[12])\.lambda1", BLOCK + "/scale_{n}/factor"),
    *layer(r"norm", "norm"),
    # torch.hub
    *hub_blocks(_HUB_BLOCK, BLOCK, {r"mlp\.fc1": "mlp/up", r"mlp\.fc2": "mlp/down"}),
    Rule(rf"{_HUB_BLOCK}attn\.qkv\.bias_mask", _KEY_MASK),
    Rule(rf"{_HUB_BLOCK}ls(?P<n>[12])\.gamma", BLOCK + "/scale_{n}/factor"),
    Rule(r"rope_embed\.periods", _PERIODS),
    Drop(r"local_cls_norm\..+", "of the local crops in training"),
    Drop(r"(?:dino_head|ibot_head|head)\..+", "of training or of a head, features are tokens"),
)


def dinov3_spec(routed: dict[str, Routed], facts: Facts, pixels: Pixels | None) -> DinoV3Spec:
    """The spec of a DINOv3 tower; takes out of routed what stands in it as a tensor and is no parameter.

    Raises ConversionError for periods of other positions and for a mask that does not hide the keys' bias.
    """
    normalised = facts.pixels(pixels, Pixels(DinoV3Spec.pixel_mean, DinoV3Spec.pixel_std), "ImageNet's mean and std")
    patch_size, width = projection_sizes(routed)
    num_heads = facts.num_heads("", width, HEADS, "--heads")
    side = facts.get("image_size", width, 224, "as the published models; nothing in the tower depends on it")
    theta = facts.get("rope_theta", width, THETA, "as the published models")
    sizes = transformer_sizes(routed)
    _check_periods(routed, width // num_heads, theta)
    _drop_hidden_biases(routed, sizes["depth"])
    return DinoV3Spec(
        image_size=side - side % patch_size if type(side) is int and side >= patch_size else patch_size,
        patch_size=patch_size,
        width=width,
        **sizes,
        num_heads=num_heads,
        registers=registers_of(routed),
        rope_theta=theta,
        key_bias="blocks_0/attention/key/bias" in routed,
        layer_norm_eps=facts.layer_norm_eps("", width, 1e-5),
        **normalised,
    )


def _check_periods(routed: dict[str, Routed], width: int, theta: float) -> None:
    if _PERIODS not in routed:
        return
    source, periods = routed.pop(_PERIODS)
    expected = theta ** (4 * np.arange(width // 4) / width)
    # Some files hold them in bfloat16.
    if periods.shape != expected.shape or not np.allclose(np.asarray(periods, np.float64), expected, rtol=1e-2):
        raise ConversionError(f"{source} holds other periods than those of base {theta:g}, which the towers have.")


def _drop_hidden_biases(routed: dict[str, Routed], depth: int) -> None:
    """Take biases of keys out that a mask beside them hides, and the masks."""
    for i in range(depth):
        if (name := _KEY_MASK.format(i=i)) in routed:
            source, mask = routed.pop(name)
            parts = np.asarray(mask, np.float64).reshape(3, -1)
            if not (parts == [[1], [0], [1]]).all():
                raise ConversionError(f"{source} hides other biases than the keys', which the towers do not follow.")
            routed.pop(f"blocks_{i}/attention/key/bias", None)
