"""Token ids must be those the weights were trained with: equal to transformers' own tokenizer."""

import json
import warnings

import numpy as np
import pytest
import transformers

from gla_jax.support.errors import ModelError
from gla_jax.text.embeddings import load_tokenizer, openai_tokenizer_files, openai_vocabulary
from gla_jax.tiny_world.vocabulary import CONTEXT, tokenizer_files
from tests.small_models import SPELLINGS

TEXTS = (
    *SPELLINGS,
    "semi-automatic (a:b) <|startoftext|>",
    "",
)


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    for name, content in openai_tokenizer_files().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """transformers' CLIPTokenizer of the published vocabulary, as it is read from vocab.json and merges.txt."""
    folder = tmp_path_factory.mktemp("reference")
    vocabulary, merges = openai_vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def test_the_vocabulary_is_openais():
    vocabulary, merges = openai_vocabulary()
    assert len(vocabulary) == 49408
    assert len(merges) == 48894
    assert (vocabulary["a</w>"], vocabulary["photo</w>"], vocabulary["cat</w>"]) == (320, 1125, 2368)
    assert (vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]) == (49406, 49407)


@pytest.mark.parametrize("text", TEXTS)
def test_token_ids_equal_those_of_transformers(openai, reference, text):
    wanted = reference(text)["input_ids"]
    ids = load_tokenizer(openai)([text], 77)[0]
    assert list(ids[: len(wanted)]) == wanted
    assert not ids[len(wanted) :].any()


def test_a_long_text_is_cut_before_its_end_token(openai, reference):
    text = "a very " * 60 + "long text"
    with pytest.warns(UserWarning, match="is cut to the 77 tokens"):
        ids = load_tokenizer(openai)([text], 77)[0]
    assert list(ids) == reference(text, truncation=True, max_length=77)["input_ids"]


def test_unknown_words_warn_and_known_ones_do_not(tmp_path):
    for name, content in tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    tokenizer = load_tokenizer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenizer(["a photo of a green cloth with stripes."], CONTEXT)
    assert ids.dtype == np.int32
    with pytest.warns(UserWarning, match="does not know 'zebra', 'jungle'"):
        tokenizer(["a zebra in the jungle"], CONTEXT)


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(tmp_path)
