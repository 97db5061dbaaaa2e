"""Texts to token ids by the tokenizer.json of a model folder, in Hugging Face's format."""

import gzip
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gla_jax.support.errors import ModelError
from gla_jax.support.shapes import Int
from gla_jax.text.prompts import quote

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
OPENAI_CONTEXT = 77
MAX_UNKNOWN = 10  # words in a warning
OPENAI_MERGES = 49152 - 256 - 2
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True)
class FolderTokenizer:
    """A model's tokenizer; unknown: its token for words outside its vocabulary, None when it spells every word."""

    tokenizer: "Tokenizer"
    unknown: str | None

    def __call__(self, texts: Sequence[str], context: int) -> Int[np.ndarray, "Q t"]:
        """Token ids [Q context] int32, padded with 0, truncated before the end token.

        Warns where a text does not fit and where words are unknown.
        """
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(context)
        ids = np.zeros((len(texts), context), np.int32)
        unknown: dict[str, None] = {}
        for row, (text, encoding) in enumerate(zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True)):
            if encoding.overflowing:
                warnings.warn(f"{quote(text)} is cut to the {context} tokens the model reads", stacklevel=2)
            ids[row, : len(encoding.ids)] = encoding.ids
            for token, (first, last) in zip(encoding.tokens, encoding.offsets, strict=True):
                if token == self.unknown:
                    unknown[quote(text[first:last])] = None
        if unknown:
            words = ", ".join(list(unknown)[:MAX_UNKNOWN]) + (", ..." if len(unknown) > MAX_UNKNOWN else "")
            warnings.warn(f"the model does not know {words}; its features of them mean nothing", stacklevel=2)
        return ids


def load_tokenizer(folder: Path | str) -> FolderTokenizer:
    """The tokenizer of a model folder. Raises ModelError when there is none or it cannot be read."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no tokenizer.json, so it cannot read class names; convert the model again.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
        unknown = json.loads(path.read_text())["model"].get("unk_token")
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read ({error}); convert the model again.") from None
    # OpenAI's vocabulary spells every text and names its end token as the unknown one.
    return FolderTokenizer(tokenizer, None if unknown == END else unknown)


def byte_letters() -> list[str]:
    """A printable letter for each of the 256 bytes, in the order of OpenAI's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]


def openai_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """OpenAI CLIP's byte-pair vocabulary and merges, from the file it published."""
    packed = (files("gla_jax.text") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1 : OPENAI_MERGES + 1]
    merges = [tuple(line.split()) for line in lines]
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def clip_tokenizer_files(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a CLIP tokenizer, as transformers builds them from these two."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    ends = (END, vocabulary[END]), (START, vocabulary[START])  # by position: their names differ between releases
    tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False, trim_offsets=False)
    tokenizer.add_special_tokens([START, END])
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": OPENAI_CONTEXT,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": END,
    }
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def openai_tokenizer_files() -> dict[str, bytes]:
    """The tokenizer files of OpenAI's CLIP, for weights that come without."""
    return clip_tokenizer_files(*openai_vocabulary())
