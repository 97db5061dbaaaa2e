"""TIPSv2: one tower in both roles, texts without an end, and the way from its files to a label map."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
import transformers

from gla_jax import Segmenter
from gla_jax.bench.parts import random_params
from gla_jax.checkpoints.model_folder import ClipSpec, read_checkpoint
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig, on_platform
from gla_jax.convert import convert, convert_state
from gla_jax.convert.verify import verify
from gla_jax.images.windows import normalise
from gla_jax.predict.cost import blank_windows, image_flops
from gla_jax.support.errors import ConversionError
from gla_jax.text.embeddings import encode_texts, load_tokenizer
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import stack_blocks
from gla_jax.towers.tips import TipsImageSpec, TipsTextSpec
from gla_jax.window_tokens import encode_windows
from tests.convert import published
from tests.small_models import VFM
from tests.test_precision import products
from tests.towers.random_models import randomise
from tests.towers.test_layers import random_params as random_tower_params

SPEC = TipsImageSpec(image_size=32, patch_size=8, width=16, depth=2, num_heads=2, mlp_width=24)
VOCABULARY = {"<pad>": 0, "<unk>": 1, "cat": 2, "grass": 3, "a": 4, "photo": 5, "of": 6, ".": 7}
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": {"type": "Lowercase"},
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "<unk>"},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder as transformers saves it, with a tokenizer that adds no mark."""
    folder = tmp_path_factory.mktemp("tips")
    model = published.tips_model(vocab_size=len(VOCABULARY), max_position_embeddings=24)
    randomise(model, 0).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return folder


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("converted") / "model"
    convert("tipsv2", source, out)
    return out


def settings(method):
    return on_platform(SegmenterConfig(METHODS[method], WindowConfig(None, 32, 16)), "cpu")


def test_one_pass_gives_values_and_features():
    params, windows = random_params(SPEC, None), blank_windows(2, settings("gla"))
    tokens = encode_windows(params, windows, settings("gla"))
    assert tokens.values.shape == tokens.features.shape == (2, 16, 16)
    tower, pixels = build_tower(SPEC), normalise(windows.pixels, SPEC.pixel_mean, SPEC.pixel_std)
    encoded = tower.apply({"params": params.clip}, pixels, method="encode")
    features = tower.apply({"params": params.clip}, encoded, method="features")
    np.testing.assert_allclose(tokens.features, features, atol=1e-5)

    def count(method):
        return products(encode_windows, params, windows, settings(method), other="default").total()

    # Beside the values, what is left of the last block: its two attention products, its output map and its MLP.
    assert count("gla") == count("vanilla") + 5
    alone, both = (image_flops(params, 2, settings(method)) for method in ("vanilla", "proxyclip"))
    assert both < 1.5 * alone


def test_another_foundation_model_may_give_the_features():
    params = random_params(SPEC, VFM)
    tokens = encode_windows(params, blank_windows(2, settings("gla")), settings("gla"))
    assert tokens.features.shape[-1] == VFM.width


def test_from_files_to_labels(source, converted):
    result = verify(converted, source)
    assert result.passed, result.errors
    config = SegmenterConfig(METHODS["gla"], WindowConfig(48, 24, 16))
    segmenter = Segmenter.from_pretrained(converted, config)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert segmenter(image, ["cat", "grass"]).labels.shape == (40, 60)


def test_texts_are_cut_where_their_padding_begins(converted):
    """Texts of several lengths run together; each is what it is alone, at the model's full length."""
    checkpoint, tokenizer = read_checkpoint(converted), load_tokenizer(converted)
    spec, texts = checkpoint.spec.text, ["cat", "a photo of a cat.", "grass " * 30]
    with pytest.warns(UserWarning, match="cut to the 24 tokens"):
        together = encode_texts(checkpoint.params["text"], spec, tokenizer, texts)
    with pytest.warns(UserWarning, match="cut to the 24 tokens"):
        ids = tokenizer(texts, spec.context)
    alone = jax.jit(build_tower(spec).apply)({"params": checkpoint.params["text"]}, ids)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_names_of_a_loaded_model_give_the_same(source, converted):
    model = transformers.Tipsv2Model.from_pretrained(source)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found = convert_state("tipsv2", state, model.config.to_dict())
    saved = read_checkpoint(converted)
    assert found.spec == saved.spec
    np.testing.assert_equal(found.params, saved.params)


def test_without_its_tokenizer_it_is_refused(source, tmp_path):
    for path in source.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ConversionError, match=r"neither tokenizer\.json nor tokenizer\.model lies beside the weights"):
        convert("tipsv2", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["together", "head_by_head", "chunked"])
def test_forms_of_attention_and_scanned_blocks(form):
    """As accelerators run it: the image tower scans all but its open last block, the text tower all, padding masked."""
    text = TipsTextSpec(vocabulary=20, context=9, width=16, depth=3, num_heads=2, mlp_width=24)
    image = replace(SPEC, depth=3)
    pixels = np.random.default_rng(0).random((2, 3, 24, 40), np.float32)
    ids = np.int32([[5, 3, 9, 0, 0, 0], [4, 2, 0, 0, 0, 0], [7, 7, 7, 7, 7, 7]])
    weights = random_tower_params(ClipSpec(image, text))
    for spec, count, given, params in ((image, 2, pixels, weights["image"]), (text, 3, ids, weights["text"])):
        plain = jax.jit(build_tower(spec).apply)({"params": params}, given)
        tower, stacked = build_tower(spec, attention_form=form), stack_blocks(params, count)
        np.testing.assert_allclose(jax.jit(tower.apply)({"params": stacked}, given), plain, rtol=1e-4, atol=1e-5)
