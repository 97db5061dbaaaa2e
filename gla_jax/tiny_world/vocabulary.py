"""The vocabulary of tiny-world: classes in a fixed order, captions, templates and a word-level tokenizer."""

import json
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
MARKS = ("stripes", "rings", "checks", "crosses", "dots", "zigzags")
GROUNDS = ("sand", "water", "brick", "grass", "wood", "gravel")
# One pair of every colour and of every mark: each word is learnt, these pairings of them are not.
HELD_OUT = (
    ("red", "dots"),
    ("orange", "zigzags"),
    ("yellow", "rings"),
    ("green", "stripes"),
    ("blue", "checks"),
    ("purple", "crosses"),
)
PAIRS = tuple((colour, mark) for colour in COLOURS for mark in MARKS)
CLASSES = (*GROUNDS, *(f"a {colour} cloth with {mark}" for colour, mark in PAIRS))
# Index of a pair's class is len(GROUNDS) + its place in PAIRS.
FIRST_CLOTH = len(GROUNDS)
HELD_OUT_CLASSES = tuple(FIRST_CLOTH + PAIRS.index(pair) for pair in HELD_OUT)
TRAIN_CLASSES = tuple(index for index in range(len(CLASSES)) if index not in HELD_OUT_CLASSES)

TEMPLATES = ("{}.", "a photo of {}.", "a picture of {}.", "there is {} in the scene.")
# Sentences seen in training only, so that other templates (ImageNet's among them) are not foreign words.
SENTENCES = (
    *TEMPLATES,
    "{}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a large {}.",
    "an image of {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a close-up photo of {}.",
    "there is a {} in the scene.",
    "this is {}.",
    "a part of {}.",
    "a drawing of a {}.",
)
COLOUR_PHRASES = tuple(f"a {colour} cloth" for colour in COLOURS)
MARK_PHRASES = tuple(f"a cloth with {mark}" for mark in MARKS)

START, END, PAD, UNKNOWN = "<|startoftext|>", "<|endoftext|>", "<|pad|>", "<|unk|>"
CONTEXT = 16


def words() -> tuple[str, ...]:
    """Every word and stop of the phrases and sentences, sorted, after the four special tokens."""
    texts = [sentence.replace("{}", " ") for sentence in SENTENCES]
    texts += [*CLASSES, *COLOUR_PHRASES, *MARK_PHRASES, "the", ","]
    pieces = {piece for text in texts for piece in text.replace(".", " . ").replace("-", " - ").split()}
    return (START, END, PAD, UNKNOWN, *sorted(pieces))


def build_tokenizer() -> Tokenizer:
    """The word-level tokenizer: lower case, words and punctuation apart, start and end added, unknown words kept."""
    vocabulary = {word: index for index, word in enumerate(words())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.add_special_tokens([START, END, PAD, UNKNOWN])
    return tokenizer


def tokenizer_files() -> dict[str, bytes]:
    """The tokenizer as Hugging Face stores it: name of file -> content."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": (build_tokenizer().to_str(pretty=True) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids [Q CONTEXT] int32, padded after the end token. Raises ValueError when a text is too long."""
    ids = np.full((len(texts), CONTEXT), tokenizer.token_to_id(PAD), np.int32)
    for row, encoding in zip(ids, tokenizer.encode_batch(list(texts)), strict=True):
        if len(encoding.ids) > CONTEXT:
            raise ValueError(f"{len(encoding.ids)} tokens are more than the context of {CONTEXT}")
        row[: len(encoding.ids)] = encoding.ids
    return ids
