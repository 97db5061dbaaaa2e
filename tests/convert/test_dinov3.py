"""DINOv3's files of torch.hub hold what Hugging Face's do, and say what the tower does not have."""

import numpy as np
import pytest

from gla_jax.convert import convert_state
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.convert.published import saved

PARTS = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.up_proj": "mlp.fc1"}
PARTS |= {"mlp.down_proj": "mlp.fc2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(published.dinov3_model(), tmp_path_factory.mktemp("dinov3"))


@pytest.fixture(scope="module")
def hub(model):
    """The same tensors as torch.hub's file has them: one matrix for q, k, v, and a bias of keys that a mask hides."""
    state, _ = model
    named = {"cls_token": state["embeddings.cls_token"], "storage_tokens": state["embeddings.register_tokens"]}
    named |= {"mask_token": state["embeddings.mask_token"], "norm.weight": state["norm.weight"]}
    named |= {"norm.bias": state["norm.bias"]}
    named |= {f"patch_embed.proj.{leaf}": state[f"embeddings.patch_embeddings.{leaf}"] for leaf in ("weight", "bias")}
    width = len(state["norm.bias"])
    for i in range(2):
        theirs, ours = f"layer.{i}", f"blocks.{i}"
        for leaf in ("weight", "bias"):
            named |= {f"{ours}.{b}.{leaf}": state[f"{theirs}.{a}.{leaf}"] for a, b in PARTS.items()}
        named |= {f"{ours}.ls{n}.gamma": state[f"{theirs}.layer_scale{n}.lambda1"] for n in (1, 2)}
        weights = [state[f"{theirs}.attention.{part}_proj.weight"] for part in "qkv"]
        hidden = np.full(width, 7, np.float32)
        biases = [state[f"{theirs}.attention.q_proj.bias"], hidden, state[f"{theirs}.attention.v_proj.bias"]]
        named |= {f"{ours}.attn.qkv.weight": np.concatenate(weights), f"{ours}.attn.qkv.bias": np.concatenate(biases)}
        named[f"{ours}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), width)
    heads = width // 4
    named["rope_embed.periods"] = (100 ** (4 * np.arange(heads // 4) / heads)).astype(np.float32)
    return named


def test_both_files_give_one_model(model, hub):
    state, config = model
    ours, theirs = convert_state("dinov3", state, config), convert_state("dinov3", hub, num_heads=4)
    assert theirs.spec.image_size == 224  # assumed: no tensor shows it
    assert ours.spec.pixel_mean == (0.485, 0.456, 0.406)
    assert {"image_size", "pixels", "rope_theta", "layer_norm_eps"} <= theirs.assumed.keys()
    np.testing.assert_equal(theirs.params, ours.params)


def test_a_bias_of_keys_that_nothing_hides_is_kept(hub):
    state = {name: tensor for name, tensor in hub.items() if not name.endswith("bias_mask")}
    converted = convert_state("dinov3", state, num_heads=4)
    assert converted.spec.key_bias
    assert (converted.params["blocks_1"]["attention"]["key"]["bias"] == 7).all()


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("blocks.1.attn.qkv.bias_mask", np.ones(96, np.float32), "hides other biases"),
        ("rope_embed.periods", np.float32([1, 2]), "other periods"),
        ("blocks.0.mlp.w3.weight", np.ones((2, 2), np.float32), "no rule covers"),
    ],
)
def test_what_the_tower_does_not_follow_is_refused(name, tensor, match, hub):
    with pytest.raises(ConversionError, match=match):
        convert_state("dinov3", {**hub, name: tensor}, num_heads=4)
