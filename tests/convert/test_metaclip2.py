"""MetaCLIP 2: CLIP's towers, with a SentencePiece vocabulary whose end token is 2."""

import numpy as np
import pytest
import torch
import transformers
from transformers import XLMRobertaTokenizer

from gla_jax.checkpoints.model_folder import read_checkpoint
from gla_jax.convert import convert, convert_state
from gla_jax.convert.verify import verify
from gla_jax.support.errors import ConversionError
from gla_jax.text.embeddings import encode_texts, load_tokenizer
from tests.convert import published
from tests.convert.published import as_numpy, openai_names, saved
from tests.small_models import SPELLINGS

TEXTS = (
    *SPELLINGS,
    "a photo of the mask </s> and more",
    "",
)
CONTEXT = 48


def xlm_tokenizer() -> XLMRobertaTokenizer:
    """XLM-R's tokenizer with a vocabulary of letters and some words of random scores."""
    random = np.random.default_rng(0)
    words = [f"▁{word}" for word in ["a", "photo", "of", "the", "cat", "dog", "in", "café", "naïve", "street"]]
    pieces = [*words, *"abcdefghijklmnopqrstuvwxyzACP▁.,;'日本", "ph", "ot", "bon", "es"]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    scored = [(piece, -float(random.uniform(2, 9))) for piece in pieces]
    return XLMRobertaTokenizer(vocab=[*special, *scored, ("<mask>", 0.0)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder as the hub has it, and its conversion."""
    root = tmp_path_factory.mktemp("metaclip2")
    tokenizer = xlm_tokenizer()
    model = published.metaclip2_model(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
    model.save_pretrained(root / "saved")
    tokenizer.save_pretrained(root / "saved")
    convert("clip", root / "saved", root / "model")
    return root / "saved", root / "model"


def test_token_ids_equal_those_of_transformers(folders):
    tokenizer = load_tokenizer(folders[1])
    with pytest.warns(UserWarning, match=r"does not know 'T', '3', '42', .*'の寺院'"):
        ids = tokenizer(TEXTS, CONTEXT)
    for text, row in zip(TEXTS, ids, strict=True):
        wanted = xlm_tokenizer()(text)["input_ids"]
        assert list(row[: len(wanted)]) == wanted
        assert not row[len(wanted) :].any()


def test_text_features_equal_those_of_transformers_from_the_text_on(folders):
    """transformers pads with another token and masks it; the end token sees nothing behind it."""
    saved_folder, folder = folders
    checkpoint = read_checkpoint(folder)
    ours = encode_texts(checkpoint.params["text"], checkpoint.spec.text, load_tokenizer(folder), TEXTS[:4])
    reference = transformers.AutoModel.from_pretrained(saved_folder).eval()
    inputs = xlm_tokenizer()(list(TEXTS[:4]), padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = reference.get_text_features(**inputs).pooler_output.numpy()
    assert np.abs(ours - theirs).max() < 2e-5 * np.abs(theirs).max()


def test_it_verifies(folders):
    saved_folder, folder = folders
    result = verify(folder, saved_folder, [np.random.default_rng(1).integers(0, 256, (50, 37, 3), np.uint8)])
    assert result.passed, result.errors


def test_the_end_token_is_what_the_configuration_says(tmp_path):
    """Of CLIP the same 2 stands for the largest id; read so, every text would have the feature of another token."""
    state, config = saved(published.metaclip2_model(), tmp_path)
    assert convert_state("clip", state, config).spec.text.end_token == 2
    assert convert_state("clip", state, {**config, "model_type": "clip"}).spec.text.end_token == 6


def test_open_clips_names_and_configuration(tmp_path):
    state, config = saved(published.metaclip2_model(), tmp_path)
    text = {"width": 40, "heads": 5, "pool_type": "eos", "hf_tokenizer_name": "facebook/xlm-v-base"}
    sizes = {"vision_cfg": {"width": 32, "head_width": 8}, "text_cfg": text, "quick_gelu": True}
    spec = convert_state("clip", as_numpy(openai_names(state)), sizes).spec
    assert spec == convert_state("clip", state, config).spec


def test_another_tokenizer_is_refused(tmp_path):
    """OpenAI's, which is taken where none lies beside, ends texts with another token."""
    published.metaclip2_model().save_pretrained(tmp_path / "saved")
    with pytest.raises(ConversionError, match=r"ends texts with 2, .* put the model's own tokenizer\.json beside"):
        convert("clip", tmp_path / "saved", tmp_path / "model")
