"""TIPSv2's released .npz files: arrays of Scenic and of PyTorch become the model that transformers' files become."""

import json
import math
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from gla_jax.checkpoints.model_folder import read_checkpoint
from gla_jax.convert import convert
from gla_jax.convert.verify import tower_stages, verify
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.towers.random_models import randomise
from tests.towers.test_tips import TOKENIZER, VOCABULARY

HEADS = {"num_heads": 4, "text_heads": 4}  # no shape of PyTorch's shows them, and the width is no published one
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def model():
    """As released: the first class token has no position, and layers no scale."""
    model = randomise(published.tips_model(vocab_size=len(VOCABULARY), max_position_embeddings=64), 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lambda1"):
                parameter.fill_(1)
            elif name.endswith("position_embeddings"):
                parameter[:, 0] = 0
    return model


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """The model folder that transformers' files become."""
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    convert("tipsv2", folder, folder / "out")
    return read_checkpoint(folder / "out")


def scenic_arrays(model) -> tuple[Arrays, Arrays]:
    """Images and texts under the names, and in the shapes, of the release's Scenic modules."""
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    width, heads = 32, 4

    def norm(ours: str, theirs: str) -> Arrays:
        return {f"{theirs}/scale": state[f"{ours}.weight"], f"{theirs}/bias": state[f"{ours}.bias"]}

    def block(ours: str, theirs: str, norms: tuple[str, str], attention: str, out: str) -> Arrays:
        arrays = norm(f"{ours}{norms[0]}", f"{theirs}/LayerNorm_0") | norm(f"{ours}{norms[1]}", f"{theirs}/LayerNorm_1")
        for part in ("query", "key", "value"):
            linear, name = f"{ours}{attention}{part[0]}_proj", f"{theirs}/MultiHeadDotProductAttention_0/{part}"
            arrays[f"{name}/kernel"] = state[f"{linear}.weight"].T.reshape(width, heads, -1)
            arrays[f"{name}/bias"] = state[f"{linear}.bias"].reshape(heads, -1)
        name = f"{theirs}/MultiHeadDotProductAttention_0/out"
        arrays[f"{name}/kernel"] = state[f"{ours}{attention}{out}.weight"].T.reshape(heads, -1, width)
        arrays[f"{name}/bias"] = state[f"{ours}{attention}{out}.bias"]
        for index, layer in enumerate(("fc1", "fc2")):
            arrays[f"{theirs}/MlpBlock_0/Dense_{index}/kernel"] = state[f"{ours}mlp.{layer}.weight"].T
            arrays[f"{theirs}/MlpBlock_0/Dense_{index}/bias"] = state[f"{ours}mlp.{layer}.bias"]
        return arrays

    start, embeddings = "encoder/ToTokenSequence_0/", "vision_model.embeddings."
    tokens = [state[f"{embeddings}{name}"] for name in ("cls_token", "register_tokens")]
    positions = state[f"{embeddings}position_embeddings"][:, 1:]
    side = math.isqrt(positions.shape[1])
    images = {
        f"{start}cls": np.concatenate(tokens, axis=1),
        f"{start}posembed_input": positions.reshape(1, side, side, width),
        f"{start}embedding/kernel": state[f"{embeddings}patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        f"{start}embedding/bias": state[f"{embeddings}patch_embeddings.projection.bias"],
        **norm("vision_model.layernorm", "encoder/encoder_norm"),
    }
    texts = {
        "token_emb/emb_var": state["text_model.embeddings.token_embedding.weight"],
        "temperature_contrastive": np.float32(0.005),
        **norm("text_model.final_layer_norm", "text_encoder_norm"),
    }
    for i in range(2):
        theirs = f"encoder/transformer/encoderblock_{i}"
        images |= block(f"vision_model.encoder.layer.{i}.", theirs, ("norm1", "norm2"), "attention.", "o_proj")
    for i in range(3):
        norms = ("layer_norm1", "layer_norm2")
        texts |= block(
            f"text_model.encoder.layers.{i}.", f"transformer/encoderblock_{i}", norms, "self_attn.", "out_proj"
        )
    return images, texts


def write_pair(folder: Path, arrays: tuple[Arrays, Arrays], name: str = "tips_v2_b14", save=np.savez) -> Path:
    folder.mkdir(exist_ok=True)
    for tower, content in zip(("vision", "text"), arrays, strict=True):
        save(folder / f"{name}_{tower}.npz", **content)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


def read(folder: Path, **options):
    convert("tipsv2", folder, folder / "out", **options)
    return read_checkpoint(folder / "out")


def refused(source: Path, **options) -> str:
    out = (source if source.is_dir() else source.parent) / "out"
    with pytest.raises(ConversionError) as caught:
        convert("tipsv2", source, out, **options)
    assert not out.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_pytorch_arrays_are_the_model_of_transformers(save, model, expected, tmp_path):
    arrays = published.tips_arrays(model, tmp_path / "saved")
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.ls2.gamma"} <= arrays[0].keys()
    assert {"transformer.resblocks.0.attn.in_proj_weight", "ln_final.bias"} <= arrays[1].keys()
    found = read(write_pair(tmp_path / "npz", arrays, "tips_v2_oss_b14", save), **HEADS)
    assert found.spec == expected.spec
    np.testing.assert_equal(found.params, expected.params)


def test_names_of_dinov2_for_the_mlp_are_read_too(model, expected, tmp_path):
    images, texts = published.tips_arrays(model, tmp_path / "saved")
    images = {re.sub(r"c_fc|fc1", "fc1", re.sub(r"c_proj|fc2", "fc2", name)): x for name, x in images.items()}
    assert "blocks.0.mlp.fc1.weight" in images
    np.testing.assert_equal(read(write_pair(tmp_path / "npz", (images, texts)), **HEADS).params, expected.params)


def test_scenic_arrays_are_the_same_numbers(model, expected, tmp_path):
    found = read(write_pair(tmp_path, scenic_arrays(model)))
    np.testing.assert_equal(found.params, expected.params)
    assert found.spec.image.num_heads == found.spec.text.num_heads == 4  # Flax's shapes show them
    assert (found.spec.image.activation, found.spec.text.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"tips_v2_b14_vision.npz", "tips_v2_b14_text.npz", "tokenizer.json"} == manifest["files"].keys()


@pytest.mark.parametrize("kind", ["scenic", "pytorch"])
def test_verify_runs_either_kind_of_arrays_in_pytorch(kind, model, tmp_path):
    arrays = scenic_arrays(model) if kind == "scenic" else published.tips_arrays(model, tmp_path / "saved")
    folder = write_pair(tmp_path / "npz", arrays)
    read(folder, **({} if kind == "scenic" else HEADS))
    result = verify(folder / "out", folder / "tips_v2_b14_vision.npz")
    assert result.passed, result.errors
    assert {"image block 1", "patch tokens", "image feature", "text feature"} <= result.errors.keys()
    other = read_checkpoint(folder / "out")
    other.params["text"]["blocks_1"]["mlp"]["up"]["bias"][0] += 1
    assert not verify(other, folder / "tips_v2_b14_vision.npz").passed


def layer_norm(x, arrays, name):
    x = x - x.mean(-1, keepdims=True)
    scale, bias = arrays[f"{name}/scale"], arrays[f"{name}/bias"]
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * scale + bias


def scenic_block(x, arrays, name, activation):
    """A pre-norm block of Flax's layers on tokens [t C], in NumPy."""
    normal = layer_norm(x, arrays, f"{name}/LayerNorm_0")
    attention = f"{name}/MultiHeadDotProductAttention_0"
    queries, keys, values = (
        np.einsum("tc,chd->htd", normal, arrays[f"{attention}/{part}/kernel"])
        + arrays[f"{attention}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    weights = np.exp(np.einsum("hqd,hkd->hqk", queries, keys) / math.sqrt(queries.shape[-1]))
    weights /= weights.sum(-1, keepdims=True)
    out = np.einsum("hqk,hkd,hdc->qc", weights, values, arrays[f"{attention}/out/kernel"])
    x = x + out + arrays[f"{attention}/out/bias"]
    up, down = (f"{name}/MlpBlock_0/Dense_{i}" for i in (0, 1))
    hidden = layer_norm(x, arrays, f"{name}/LayerNorm_1") @ arrays[f"{up}/kernel"] + arrays[f"{up}/bias"]
    return x + activation(hidden) @ arrays[f"{down}/kernel"] + arrays[f"{down}/bias"]


def tanh_gelu(y):
    return 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


def test_towers_of_scenic_arrays_follow_its_formulas(model, tmp_path):
    images, texts = ({name: x.astype(np.float64) for name, x in each.items()} for each in scenic_arrays(model))
    found = read(write_pair(tmp_path, scenic_arrays(model)))
    random = np.random.default_rng(0)
    pixels, ids = random.random((24, 24, 3)), np.int32([5, 2, 7, 3])
    start = "encoder/ToTokenSequence_0/"
    x = pixels.reshape(3, 8, 3, 8, 3).transpose(0, 2, 1, 3, 4)  # grid and grid, patch and patch, colour
    x = np.einsum("ghijk,ijkc->ghc", x, images[f"{start}embedding/kernel"]) + images[f"{start}embedding/bias"]
    x = (x + images[f"{start}posembed_input"][0]).reshape(9, 32)
    x = np.concatenate([images[f"{start}cls"][0], x])
    for i in range(2):
        x = scenic_block(x, images, f"encoder/transformer/encoderblock_{i}", tanh_gelu)
    tokens = layer_norm(x, images, "encoder/encoder_norm")
    y = texts["token_emb/emb_var"][ids] * math.sqrt(32)
    angles = np.arange(4)[:, None] * np.exp(-math.log(10_000) / 15 * np.arange(16))
    y = y + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    for i in range(3):
        y = scenic_block(y, texts, f"transformer/encoderblock_{i}", lambda y: np.maximum(y, 0))
    feature = layer_norm(y, texts, "text_encoder_norm").mean(0)
    padded = np.pad(ids, (0, 4))[None]
    stages = tower_stages(found.spec, found.params, pixels.transpose(2, 0, 1)[None].astype(np.float32), padded)
    ours = {"patch tokens": stages["patch tokens"][0], "image feature": stages["image feature"][0]}
    theirs = {"patch tokens": tokens[2:], "image feature": tokens[0]}
    ours, theirs = {**ours, "text": stages["text feature"][0]}, {**theirs, "text": feature}
    for name, x in theirs.items():
        np.testing.assert_allclose(ours[name], x, atol=2e-5 * np.abs(x).max(), err_msg=name)


def test_either_file_and_the_folder_name_the_model(model, tmp_path):
    """A folder of the release's download script holds all sizes: then one file names the model."""
    write_pair(tmp_path, scenic_arrays(model))
    write_pair(tmp_path, scenic_arrays(model), "tips_v2_l14")
    message = refused(tmp_path)
    assert "holds several weight files (tips_v2_b14_vision.npz, tips_v2_l14_vision.npz)" in message
    for tower in ("vision", "text"):
        manifest = convert("tipsv2", tmp_path / f"tips_v2_l14_{tower}.npz", tmp_path / tower)
        assert {"tips_v2_l14_vision.npz", "tips_v2_l14_text.npz", "tokenizer.json"} == manifest["files"].keys()


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_tower_alone_is_refused(tower, model, tmp_path):
    write_pair(tmp_path, scenic_arrays(model))
    missing = {"vision": "text", "text": "vision"}[tower]
    (tmp_path / f"tips_v2_b14_{missing}.npz").unlink()
    for source in (tmp_path, tmp_path / f"tips_v2_b14_{tower}.npz"):
        message = refused(source)
        assert f"one of the two towers of its model, and tips_v2_b14_{missing}.npz is not beside it" in message


def test_files_of_other_names_are_refused(model, tmp_path):
    write_pair(tmp_path, scenic_arrays(model))
    (tmp_path / "tips_v2_b14_vision.npz").rename(tmp_path / "mine.npz")
    assert "mine.npz is not named NAME_vision.npz or NAME_text.npz" in refused(tmp_path / "mine.npz")


@pytest.mark.parametrize("name", ["tips_oss_b14_highres_distilled", "renamed"])
def test_the_first_tips_is_refused(name, model, tmp_path):
    """Its towers are built alike, but its patches were not trained to lie beside their texts."""
    images, texts = scenic_arrays(model)
    positions = "encoder/ToTokenSequence_0/posembed_input"
    images[positions] = np.zeros((1, 16, 16, 32), np.float32)
    message = refused(write_pair(tmp_path, (images, texts), name))
    assert "the first TIPS" in message
    assert "take tips_v2_b14" in message


KERNEL = "encoder/transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"


@pytest.mark.parametrize(
    ("tower", "change", "reason"),
    [
        (0, {KERNEL: None}, "nothing in the source gives image/blocks_1/attention/query/kernel"),
        (1, {"token_emb/emb_var": None}, "it lacks the text tower"),
        (0, {KERNEL: np.ones((32, 8, 4), np.float32)}, "its blocks have 4 and 8 attention heads"),
        (0, {KERNEL: np.ones((32, 4, 9), np.float32)}, "the shape [32 36], but it has [32 32]"),
        (0, {KERNEL: np.ones((32, 32), np.float16)}, "cannot be taken apart as 'to heads'"),
        (0, {"encoder/ToTokenSequence_0/posembed_input": np.ones((1, 1, 9, 32))}, "cannot be taken apart as 'square'"),
        (
            0,
            {"encoder/ToTokenSequence_0/cls": np.ones((1, 1, 32), np.float32)},
            "no place for encoder/ToTokenSequence_0/cls",
        ),
        (0, {KERNEL: np.full((32, 4, 8), np.nan, np.float32)}, f"{KERNEL} holds NaN or infinity"),
        (0, {KERNEL: np.ones((32, 4, 8), np.int32)}, "holds int32 numbers: quantised weights are not converted"),
        (0, {"encoder/head/kernel": np.ones(3, np.float32)}, "no rule covers encoder/head/kernel"),
        (0, {"token_emb/emb_var": np.ones((8, 32), np.float32)}, "repeats token_emb/emb_var"),
        (1, {"token_emb/emb_var": np.ones((8, 40), np.float32)}, "its texts have width 40 and its images 32"),
        (0, {KERNEL: np.array([{}], object)}, "holds Python objects in place of numbers, and no pickle is run"),
        (0, {KERNEL: np.ones(8, "V2")}, "stores |V2, which is not converted"),
        (0, {KERNEL: np.zeros((0, 4, 8), np.float32)}, "it is empty"),
    ],
)
def test_other_arrays_are_refused(tower, change, reason, model, tmp_path):
    arrays = scenic_arrays(model)
    arrays[tower].update({name: x for name, x in change.items() if x is not None})
    for name in (name for name, x in change.items() if x is None):
        del arrays[tower][name]
    message = refused(write_pair(tmp_path, arrays))
    assert reason in message
    assert str(tmp_path) in message


@pytest.fixture
def pair(model, tmp_path):
    return write_pair(tmp_path, scenic_arrays(model)) / "tips_v2_b14_vision.npz"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(share, pair):
    pair.write_bytes(pair.read_bytes()[: int(share * pair.stat().st_size)])
    assert "damaged or incomplete zip file" in refused(pair)


def test_a_pickle_or_a_page_in_its_place_is_refused(pair):
    for content in (b"<html>not found</html>", b"\x80\x04cos\nsystem\n."):
        pair.write_bytes(content)
        assert "zip file" in refused(pair)
    with zipfile.ZipFile(pair, "w") as archive:
        archive.writestr("model/data.pkl", b"")
    assert "not one that NumPy writes: it holds model/data.pkl" in refused(pair)


def test_an_address_of_one_file_is_refused_before_it_is_fetched():
    url = "https://storage.googleapis.com/tips_data/v2_0/checkpoints/scenic/tips_v2_b14_vision.npz"
    with pytest.raises(ConversionError, match=r"download both and tokenizer\.model into one folder"):
        convert("tipsv2", url, "out")
