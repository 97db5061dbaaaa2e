"""TIPS' tokenizer.model: texts become the ids that SentencePiece gives (recorded by tests.peers.record_tokenizers)."""

import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from gla_jax import Segmenter
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig
from gla_jax.convert import convert
from gla_jax.convert.sentencepiece import sentencepiece_tokenizer
from gla_jax.support.errors import ConversionError, UserError
from gla_jax.text.embeddings import load_tokenizer
from tests.convert import published

FILES = Path(__file__).parents[1] / "peers" / "tokenizers"
RECORDED = json.loads((FILES / "texts.json").read_text())


@pytest.mark.parametrize("name", RECORDED["ids"])
def test_ids_are_those_of_sentencepiece(name):
    tokenizer = Tokenizer.from_buffer(sentencepiece_tokenizer((FILES / f"{name}.model").read_bytes()))
    ours = [encoding.ids for encoding in tokenizer.encode_batch(RECORDED["texts"])]
    theirs = RECORDED["ids"][name]
    wrong = [text for text, a, b in zip(RECORDED["texts"], ours, theirs, strict=True) if a != b]
    assert wrong == []
    assert len(theirs) > 300


def test_texts_are_read_in_lower_case_and_their_tokens_spell_them():
    tokenizer = Tokenizer.from_buffer(sentencepiece_tokenizer((FILES / "bpe.model").read_bytes()))
    assert tokenizer.encode("A Photo").ids == tokenizer.encode("a photo").ids
    assert tokenizer.decode(tokenizer.encode("a photo of 猫").ids).strip() == "a photo of 猫"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tips")
    published.tips_model(vocab_size=600, max_position_embeddings=64).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((FILES / "bpe.model").read_bytes())
    return folder


def test_a_model_with_it_reads_class_names(source, tmp_path):
    manifest = convert("tipsv2", source, tmp_path / "out")
    assert "tokenizer.model" in manifest["files"]
    texts, ids = RECORDED["texts"][-20:], RECORDED["ids"]["bpe"][-20:]
    found = load_tokenizer(tmp_path / "out")(texts, 64)
    assert [list(row[row != 0]) for row in found] == ids
    segmenter = Segmenter.from_pretrained(tmp_path / "out", SegmenterConfig(METHODS["gla"], WindowConfig(48, 24, 16)))
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert segmenter(image, ["traffic light", "sky"]).labels.shape == (30, 40)


def test_a_tokenizer_json_beside_it_goes_first(source, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    other = sentencepiece_tokenizer((FILES / "unigram.model").read_bytes())
    (folder / "tokenizer.json").write_bytes(other)
    manifest = convert("tipsv2", folder, tmp_path / "out")
    assert "tokenizer.model" not in manifest["files"]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == other


def test_one_of_another_model_is_refused(source, tmp_path):
    small = tmp_path / "in"
    published.tips_model(vocab_size=500, max_position_embeddings=64).save_pretrained(small)
    (small / "tokenizer.model").write_bytes((FILES / "bpe.model").read_bytes())
    with pytest.raises(ConversionError, match="has 500 tokens, which a tokenizer of 600 tokens does not fit"):
        convert("tipsv2", small, tmp_path / "out")


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of Protocol Buffers: a small int, a float, or bytes of any length."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    tag = varint(number << 3 | (2 if isinstance(value, bytes) else 0))
    return tag + (varint(len(value)) + value if isinstance(value, bytes) else varint(value))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def model(*pieces: tuple[str, float, int], trainer: bytes = field(3, 2), normalizer: bytes = b"") -> bytes:
    messages = [field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in pieces]
    return b"".join(field(1, message) for message in messages) + field(2, trainer) + field(3, normalizer)


UNKNOWN, A, B, AB = ("<unk>", 0.0, 2), ("▁a", -1.0, 1), ("b", -2.0, 1), ("▁ab", -0.5, 1)
PLAIN = (UNKNOWN, ("▁", -3.0, 1), ("a", -4.0, 1), A, B, AB)


def test_a_model_written_by_hand():
    tokenizer = Tokenizer.from_buffer(sentencepiece_tokenizer(model(*PLAIN)))
    assert tokenizer.encode("AB b").tokens == ["▁ab", "▁", "b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", "no usable pieces", id="nothing"),
        pytest.param(b"<html>not found</html>", "not a SentencePiece model", id="a web page"),
        pytest.param(model(*PLAIN)[:-9], "not a SentencePiece model", id="cut"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x7f", "not a SentencePiece model", id="length of gigabytes"),
        pytest.param(b"\x08" + b"\xff" * 20, "not a SentencePiece model", id="number without end"),
        pytest.param(field(1, b""), "not a SentencePiece model", id="a piece without text"),
        pytest.param(field(1, field(1, b"\xff\xfe")), "not a SentencePiece model", id="text of no encoding"),
        pytest.param(field(1, field(1, b"a") + field(2, b"x")), "not a SentencePiece model", id="a score of text"),
        pytest.param(field(1, b"\x0a\x00") * (1 << 20), "not a SentencePiece model", id="a million pieces"),
        pytest.param(model(("x" * 300, 0.0, 1), UNKNOWN), "has xxx", id="a long piece"),
        pytest.param(model(("x", float("nan"), 1), UNKNOWN), "no usable pieces", id="a score that is no number"),
        pytest.param(model(("x", float("inf"), 1), UNKNOWN), "no usable pieces", id="a score without end"),
        pytest.param(
            field(1, field(1, b"a") + field(3, float("inf"))), "not a SentencePiece model", id="a kind without end"
        ),
        pytest.param(model(A, B), "of a kind that is not read", id="nothing unknown"),
        pytest.param(model(UNKNOWN, A, A), "of a kind that is not read", id="a piece twice"),
        pytest.param(model(UNKNOWN, A, ("c", 0.0, 5)), "of a kind that is not read", id="an unused piece"),
        pytest.param(model(*PLAIN, trainer=field(3, 3)), "of a kind that is not read", id="whole words"),
        pytest.param(model(*PLAIN, normalizer=field(3, 0)), "of a kind that is not read", id="no space in front"),
        pytest.param(model(*PLAIN, normalizer=field(4, 0)), "of a kind that is not read", id="spaces kept"),
        pytest.param(model(*PLAIN, trainer=field(3, 2) + varint(24 << 3) + b"\1"), "of a kind", id="spaces behind"),
        pytest.param(model(*PLAIN, normalizer=field(2, b"junk")), "does not make a tokenizer", id="junk rules"),
        pytest.param(
            model(*PLAIN, normalizer=field(2, struct.pack("<I", 8) + b"\xff" * 8 + b"a\0")),
            "does not make a tokenizer",
            id="rules that point nowhere",
        ),
    ],
)
def test_what_is_no_such_model_is_one_sentence(content, reason):
    with pytest.raises(ConversionError) as caught:
        sentencepiece_tokenizer(content)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert len(message) < 600


def test_damaged_models_end_in_a_tokenizer_or_a_sentence():
    content, rng = (FILES / "unigram.model").read_bytes(), random.Random(0)
    ends = {"read": 0, "refused": 0}
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            Tokenizer.from_buffer(sentencepiece_tokenizer(bytes(damaged[: rng.choice((None, len(damaged) // 2))])))
            ends["read"] += 1
        except UserError:
            ends["refused"] += 1
    assert min(ends.values()) > 20
