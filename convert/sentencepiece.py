"""A SentencePiece model, as TIPS is published with, to a tokenizer.json, without the package that wrote it.

The file is one message of Protocol Buffers: pieces with their scores, and how texts are normalised. Texts become the
ids that SentencePiece gives; tests hold recorded ones.
"""

import math
import string
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from gla_jax.convert.rules import first_names
from gla_jax.support.errors import ConversionError, first_line

PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the whole message
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of pieces
UNIGRAM, BPE = 1, 2  # kinds of models
MAX_PIECES = 1 << 19  # the largest published vocabularies have 2^18
MAX_PIECE = 256  # characters; SentencePiece's own limit is 16 unless told otherwise
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
MAKE_ANOTHER = (
    "make a tokenizer.json of it with transformers (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)) and "
    "put that beside the weights"
)


class Piece(NamedTuple):
    """One token: its text, its score (BPE merges the best first) and one of the kinds above."""

    text: str
    score: float
    kind: int


def sentencepiece_tokenizer(content: bytes) -> bytes:
    """The tokenizer.json of a tokenizer.model; texts are read in lower case, as TIPS was trained.

    Raises ConversionError for a damaged file and for a model that tokenizer.json does not describe.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces, trainer, normalizer = _parsed(content)
    texts = [piece.text for piece in pieces]
    kinds = {piece.kind for piece in pieces}
    unknown = [index for index, piece in enumerate(pieces) if piece.kind == UNKNOWN]
    kind = trainer.get(3, UNIGRAM)
    # Of the trainer: spaces stand before words. Of the normaliser: one before each text, none twice, shown as SPACE.
    usual = not trainer.get(24, 0) and all(normalizer.get(field, 1) for field in (3, 4, 5))
    if kind not in (UNIGRAM, BPE) or UNUSED in kinds or len(unknown) != 1 or len({*texts}) != len(texts) or not usual:
        raise ConversionError(f"its tokenizer.model is of a kind that is not read; {MAKE_ANOTHER}.")
    spelled = bool(trainer.get(35, 0))
    try:
        if kind == BPE:
            vocabulary = {text: index for index, text in enumerate(texts)}
            model = models.BPE(
                vocabulary, _merges(pieces), unk_token=texts[unknown[0]], fuse_unk=True, byte_fallback=spelled
            )
        else:
            scores = [(piece.text, piece.score) for piece in pieces]
            model = models.Unigram(scores, unk_id=unknown[0], byte_fallback=spelled)
        tokenizer = Tokenizer(model)
        steps = [normalizers.Lowercase()]
        if normalizer.get(2):
            steps.append(normalizers.Precompiled(normalizer[2]))
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex("  +"), " ")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Metaspace(replacement=SPACE, prepend_scheme="always"), decoders.ByteFallback(), decoders.Fuse()]
        )
        tokenizer.encode(string.printable)  # rules of normalisation that are damaged panic here
        return tokenizer.to_str().encode()
    except BaseException as error:  # the library raises bare exceptions, and panics
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ConversionError(
            f"its tokenizer.model does not make a tokenizer ({first_line(error)}); download it again."
        ) from error


def _merges(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces whose joined text is a piece, in the order in which SentencePiece joins them."""
    places = {piece.text: index for index, piece in enumerate(pieces) if piece.kind == NORMAL}
    merges = []
    for text, place in places.items():
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        pairs = [(left, right) for left, right in halves if left in places and right in places]
        merges += [(-pieces[place].score, place, places[left], places[right], left, right) for left, right in pairs]
    return [(left, right) for *_, left, right in sorted(merges)]


def _parsed(content: bytes) -> tuple[list[Piece], dict[int, Any], dict[int, Any]]:
    """The pieces of a model, and the fields of its trainer and its normaliser by number."""
    parts: dict[int, dict[int, Any]] = {TRAINER: {}, NORMALIZER: {}}
    pieces = []
    try:
        for field, value in _fields(content):
            if field == PIECES:
                piece = dict(_fields(value))
                pieces.append(Piece(piece[1].decode(), float(piece.get(2, 0.0)), int(piece.get(3, NORMAL))))
                if len(pieces) > MAX_PIECES:
                    raise ValueError
            elif field in parts:
                parts[field] |= dict(_fields(value))
    except (ValueError, OverflowError, TypeError, KeyError, AttributeError, IndexError, struct.error):
        raise ConversionError("its tokenizer.model is not a SentencePiece model; download it again.") from None
    if not pieces or any(not 0 < len(piece.text) <= MAX_PIECE or not math.isfinite(piece.score) for piece in pieces):
        bad = first_names([piece.text for piece in pieces if not 0 < len(piece.text) <= MAX_PIECE])
        raise ConversionError(f"its tokenizer.model has {bad or 'no usable'} pieces; download it again.")
    return pieces, parts[TRAINER], parts[NORMALIZER]


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """The number and value of every field of a message: an int, a float or bytes. Raises ValueError when it is cut."""
    place = 0
    while place < len(message):
        tag, place = _number(message, place)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _number(message, place)
        elif wire == 2:
            size, start = _number(message, place)
            value, place = message[start : start + size], start + size
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            (value,) = struct.unpack_from("<d" if wire == 1 else "<f", message, place)
            place += size
        else:
            raise ValueError("a group, which no writer of today makes")
        if place > len(message):
            raise ValueError("cut")
        yield field, value


def _number(message: bytes, place: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number without end")
