import pytest
from transformers import PreTrainedTokenizerFast

from gla_jax.tiny_world import vocabulary


@pytest.fixture
def tokenizer():
    return vocabulary.build_tokenizer()


def test_class_order_is_grounds_then_every_pair():
    assert vocabulary.CLASSES[: vocabulary.FIRST_CLOTH] == vocabulary.GROUNDS
    assert len(vocabulary.CLASSES) == 6 + 6 * 6
    assert vocabulary.CLASSES[6] == "a red cloth with stripes"


@pytest.mark.parametrize("phrase", vocabulary.CLASSES)
def test_round_trip(tokenizer, phrase):
    for template in vocabulary.SENTENCES:
        text = template.format(phrase)
        ids = vocabulary.encode_texts([text], tokenizer)[0]
        assert tokenizer.token_to_id(vocabulary.UNKNOWN) not in ids
        words = tokenizer.decode(ids.tolist()).split()
        assert words == text.replace(".", " .").replace("-", " - ").split()


def test_start_end_and_padding(tokenizer):
    ids = vocabulary.encode_texts(["sand"], tokenizer)[0]
    start, end, pad = (tokenizer.token_to_id(word) for word in (vocabulary.START, vocabulary.END, vocabulary.PAD))
    assert ids.tolist() == [start, tokenizer.token_to_id("sand"), end] + [pad] * (vocabulary.CONTEXT - 3)


def test_case_does_not_matter_and_unknown_words_are_marked(tokenizer):
    assert tokenizer.encode("A Red CLOTH").ids == tokenizer.encode("a red cloth").ids
    assert tokenizer.encode("a red zebra").tokens[-2] == vocabulary.UNKNOWN


def test_a_text_over_the_context_is_refused(tokenizer):
    with pytest.raises(ValueError, match="context of 16"):
        vocabulary.encode_texts(["sand " * 20], tokenizer)


def test_files_load_as_a_hugging_face_tokenizer(tokenizer, tmp_path):
    for name, content in vocabulary.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = "a photo of a green cloth with rings."
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert (loaded.pad_token, loaded.model_max_length) == (vocabulary.PAD, vocabulary.CONTEXT)
