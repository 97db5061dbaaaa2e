"""SigLIP 2 as the hub has it: lower case, Gemma's tokens, texts filled up to the context, towers without CLS."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Siglip2Tokenizer

from gla_jax import Segmenter
from gla_jax.checkpoints.model_folder import read_checkpoint, write_checkpoint
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.convert import convert, convert_state
from gla_jax.convert.verify import verify
from gla_jax.support.errors import ConversionError
from gla_jax.text.embeddings import encode_texts, load_tokenizer
from tests.convert import published
from tests.convert.published import saved
from tests.small_models import SPELLINGS, VFM, random_params

TEXTS = (
    *SPELLINGS,
    "a long " * 9,
)
CONTEXT = 24


def gemma_tokenizer() -> Siglip2Tokenizer:
    """Gemma's kind of vocabulary: special tokens, bytes, letters and a few merges."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += "abcdefghijklmnopqrstuvwxyz.,'▁ï0123456789"
    merges = [("p", "h"), ("o", "t"), ("ph", "ot"), ("phot", "o"), ("c", "a"), ("ca", "t"), ("a", "▁"), ("t", "h")]
    tokens += ["".join(pair) for pair in merges]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    options = {
        "padding_side": "right",
        "add_bos_token": False,
        "add_eos_token": True,
    }  # of the released tokenizer_config
    return Siglip2Tokenizer(vocab=vocabulary, merges=merges, **options)


def as_on_the_hub(folder) -> None:
    """The released tokenizer.json is Gemma's: it takes no lower case, and here begins texts with <bos>."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = content["normalizer"]["normalizers"][1]
    special = {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}
    pieces = [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    content["post_processor"] |= {"single": pieces, "pair": pieces, "special_tokens": {"<bos>": special}}
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder as the hub has it, and its conversion."""
    root = tmp_path_factory.mktemp("siglip")
    tokenizer = gemma_tokenizer()
    model = published.siglip_model(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    model.save_pretrained(root / "saved")
    tokenizer.save_pretrained(root / "saved")
    as_on_the_hub(root / "saved")
    convert("siglip", root / "saved", root / "model")
    return root / "saved", root / "model"


@pytest.mark.filterwarnings("ignore:.* is cut to the 24 tokens")
def test_token_ids_equal_those_of_transformers(folders):
    spec = read_checkpoint(folders[1]).spec.text
    assert (spec.end_token, spec.pad_token) == (1, 0)
    ids = load_tokenizer(folders[1])(TEXTS, CONTEXT, spec.pad_token)
    wanted = gemma_tokenizer()(list(TEXTS), padding="max_length", max_length=CONTEXT, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, wanted)
    assert list(ids[-1, -1:]) == [1]  # a long text keeps its end


@pytest.mark.filterwarnings("ignore:.* is cut to the 24 tokens")
def test_text_features_equal_those_of_transformers_from_the_text_on(folders):
    saved_folder, folder = folders
    checkpoint = read_checkpoint(folder)
    ours = encode_texts(checkpoint.params["text"], checkpoint.spec.text, load_tokenizer(folder), TEXTS)
    reference = transformers.AutoModel.from_pretrained(saved_folder).eval()
    inputs = gemma_tokenizer()(
        list(TEXTS), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = reference.get_text_features(inputs["input_ids"]).pooler_output.numpy()
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()


def test_it_verifies(folders):
    saved_folder, folder = folders
    result = verify(folder, saved_folder, [np.random.default_rng(1).integers(0, 256, (50, 37, 3), np.uint8)])
    assert result.passed, result.errors
    assert {"image values, joint", "image feature", "text feature"} <= result.errors.keys()


def test_a_pair_with_a_foundation_model_segments(folders, tmp_path):
    write_checkpoint(tmp_path / "vfm", VFM, random_params(VFM, 1), {"source": "random"})
    config = SegmenterConfig(windows=WindowConfig(48, 32, 16))
    segmenter = Segmenter.from_pretrained(f"{folders[1]}+{tmp_path / 'vfm'}", config)
    image = np.random.default_rng(2).integers(0, 256, (60, 40, 3), np.uint8)
    labels = segmenter(image, ["cat", "dog", "bones"], templates=["{}"]).labels
    assert labels.shape == (60, 40)
    assert labels.max() < 3


def test_pixels_are_normalised_by_a_half_where_nothing_is_said(folders, tmp_path, capfd):
    spec = read_checkpoint(folders[1]).spec.image
    assert (spec.pixel_mean, spec.pixel_std) == ((0.5,) * 3, (0.5,) * 3)
    state, config = saved(published.siglip_model(), tmp_path)
    capfd.readouterr()
    converted = convert_state("siglip", state, config)
    assert capfd.readouterr() == ("", "")  # transformers warns of token ids that it fills in itself
    assert converted.assumed.keys() == {"pixels", "text/end_token", "text/pad_token"}


def test_the_first_siglip_reads_texts_without_punctuation(tmp_path):
    """Its tokenizer in transformers strips it before SentencePiece; a text is filled up with </s>."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -4.0) for letter in "▁abcdeghinoptu")]
    tokenizer = Tokenizer(models.Unigram(pieces, 2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    published.siglip_model(vocab_size=len(pieces)).save_pretrained(tmp_path / "saved")
    tokenizer.save(str(tmp_path / "saved" / "tokenizer.json"))
    convert("siglip", tmp_path / "saved", tmp_path / "model")
    spec, read = read_checkpoint(tmp_path / "model").spec.text, load_tokenizer(tmp_path / "model")
    assert (spec.end_token, spec.pad_token) == (1, 1)
    ids = read(["A photo: the Cat!?", " a photo  the cat"], 24, spec.pad_token)
    np.testing.assert_array_equal(*ids)
    assert list(ids[0]) == [*tokenizer.encode("a photo the cat").ids, *[1] * (24 - 16)]


def test_widths_that_no_product_compares_are_refused(tmp_path):
    state, config = saved(published.siglip_model(projection_size=16), tmp_path)
    with pytest.raises(ConversionError, match="texts have features of width 16 and its images of 32"):
        convert_state("siglip", state, config)


def test_a_folder_without_its_tokenizer_is_refused(tmp_path):
    published.siglip_model().save_pretrained(tmp_path / "saved")
    with pytest.raises(ConversionError, match=r"no tokenizer\.json lies beside the weights"):
        convert("siglip", tmp_path / "saved", tmp_path / "model")
    published.write_tokenizer(tmp_path / "saved")
    with pytest.raises(ConversionError, match="neither <eos> and <pad> nor </s>"):
        convert("siglip", tmp_path / "saved", tmp_path / "model")


def test_naflex_is_refused_by_name(tmp_path):
    state, config = saved(published.siglip_model(), tmp_path)
    with pytest.raises(ConversionError, match=r"is a NaFlex model of SigLIP 2, .* google/siglip2-base-patch16-224"):
        convert_state("siglip", state, {**config, "model_type": "siglip2"})


def test_a_folder_of_another_family_is_named_before_its_tokenizer_is_missed(tmp_path):
    """Else a user would look for a tokenizer that the folder does not need."""
    recorded = Path(__file__).parents[1] / "peers" / "data"
    for family, folder, own in (("siglip", "clip", "this family (siglip)"), ("clip-dinoiser", "dino", "this family")):
        with pytest.raises(
            ConversionError, match=re.escape(f"model, which {own} is not; convert it as another family")
        ):
            convert(family, recorded / f"transformers_{folder}", tmp_path / "out")
