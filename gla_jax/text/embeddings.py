"""Text embeddings: a row of length one for every prompt, computed once for a model, its templates and the names."""

import gzip
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.checkpoints.model_folder import Checkpoint, Params
from gla_jax.support.arrays import Array, Float, Int
from gla_jax.support.errors import ClassesError, ModelError
from gla_jax.support.files import usable_cache, warn_unusable, write_beside
from gla_jax.text.prompts import Classes, average_templates, check_templates, clean_text, imagenet_templates, quote
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import TextSpec, stack_blocks
from gla_jax.towers.placement import platform_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
OPENAI_CONTEXT = 77
MAX_UNKNOWN = 8  # words in a warning
OPENAI_MERGES = 49152 - 256 - 2
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


@dataclass(frozen=True)
class FolderTokenizer:
    """A model's tokenizer; unknown: id of its token for what its vocabulary lacks, None when it spells every text."""

    tokenizer: "Tokenizer"
    unknown: int | None

    def __call__(self, texts: Sequence[str], context: int, pad_token: int = 0) -> Int[np.ndarray, "Q t"]:
        """Token ids [Q context] int32, padded behind, truncated before the end token.

        Warns where a text does not fit and where words are unknown.
        """
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(context)
        ids = np.full((len(texts), context), pad_token, np.int32)
        unknown: dict[str, None] = {}
        for row, (text, encoding) in enumerate(zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True)):
            if encoding.overflowing:
                warnings.warn(f"{quote(text)} is cut to the {context} tokens the model reads", stacklevel=2)
            ids[row, : len(encoding.ids)] = encoding.ids
            for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
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
        model = json.loads(path.read_text())["model"]
        name = model.get("unk_token")
        unknown = model.get("unk_id") if name is None else tokenizer.token_to_id(name)  # the former: SentencePiece's
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} cannot be read ({error}); convert the model again.") from None
    # OpenAI's vocabulary spells every text and names its end token as the unknown one.
    return FolderTokenizer(tokenizer, None if name == END else unknown)


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


TEXT_BATCH = 64


def text_embeddings(
    clip: Checkpoint,
    tokenizer: FolderTokenizer,
    classes: Classes,
    templates: Sequence[str] | None = None,
    cache_dir: Path | str | None = None,
) -> Float[Array, "Q E"]:
    """Text features of length one of every prompt, float32, computed once and then kept on disk.

    Warns of words that the model does not know. A damaged file is computed again. Raises ClassesError for a name with
    the model's end token in it.

    Args:
        clip: both towers.
        tokenizer: of the same model folder.
        classes: their prompts are cleaned as OpenAI's CLIP cleans them.
        templates: with {} for a prompt; CLIP's 80 where left out.
        cache_dir: in place of the user's cache folder.
    """
    templates = imagenet_templates() if templates is None else check_templates(templates)
    templates, prompts = ([clean_text(text) for text in texts] for texts in (templates, classes.prompts))
    key = hashlib.sha256(json.dumps([clip.sha256, templates, prompts]).encode()).hexdigest()
    folder = usable_cache("text", cache_dir)
    path = folder and folder / f"{key}.npy"
    # Before the file is read, so that every run warns; bare, so that words are named once and not once a template.
    ids, end_token = tokenizer(prompts, clip.spec.text.context), clip.spec.text.end_token
    ended = (ids == end_token).sum(1) > 1 if end_token is not None else np.zeros(len(prompts), bool)
    if ended.any():  # the tower would read what stands before it alone
        name = quote(prompts[int(ended.argmax())])
        raise ClassesError(f"the class name {name} holds the mark that ends a text for the model; leave it out.")
    shape = len(prompts), clip.spec.text.embed_dim
    embeddings = path and _read(path, shape)
    if embeddings is None:
        texts = [template.replace("{}", prompt) for prompt in prompts for template in templates]
        features = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
        embeddings = np.asarray(average_templates(jnp.asarray(features.reshape(shape[0], len(templates), -1))))
        if path:
            try:
                write_beside(path, lambda file: np.save(file, embeddings))
            except OSError as error:
                warn_unusable(path.parent, error)
    return jnp.asarray(embeddings)


def encode_texts(
    params: Params, spec: TextSpec, tokenizer: FolderTokenizer, texts: Sequence[str]
) -> Float[np.ndarray, "Q E"]:
    """CLIP text features, not normalised; texts of similar length run together, cut behind the longest of them.

    Args:
        params: of the text tower.
        spec: its sizes.
        tokenizer: of the same model.
        texts: prompts in their templates.

    Raises ModelError when the tokenizer is another model's and when features cannot be normalised.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model does not know")
        ids = tokenizer(texts, spec.context, spec.pad_token)
    end = [] if spec.end_token is None else [spec.end_token]
    if ids.max(initial=0) >= spec.vocabulary or tokenizer.tokenizer.encode("").ids[-1:] != end:
        raise ModelError(
            f"the tokenizer.json of the model is another model's: its text tower has {spec.vocabulary} tokens and ends "
            f"texts with {spec.end_token}; convert the model again."
        )
    lengths = spec.lengths(ids)
    order = np.argsort(lengths, kind="stable")
    # Every length is a program: on accelerators, whose compilers take long, the blocks compile as one.
    scanned = platform_of(jax.local_devices()[0]) != "cpu"
    params = stack_blocks(params, spec.depth) if scanned else dict(params)
    params = jax.tree.map(partial(jax.device_put, may_alias=True), params)
    features = np.empty((len(texts), spec.embed_dim), np.float32)
    for start in range(0, len(texts), TEXT_BATCH):
        rows = order[start : start + TEXT_BATCH]
        length = min(-(-int(lengths[rows].max()) // 8) * 8, spec.context)
        batch = np.zeros((TEXT_BATCH, length), np.int32)
        batch[: len(rows)] = ids[rows, :length]
        features[rows] = np.asarray(_encode(params, batch, spec=spec))[: len(rows)]
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(features, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ModelError("the text features are zero or not finite: the model is damaged; convert it again.")
    return features


@partial(jax.jit, static_argnames="spec")
def _encode(params: Params, ids: Int[Array, "Q t"], spec: TextSpec) -> Float[Array, "Q E"]:
    return build_tower(spec).apply({"params": params}, ids)


def _read(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "Q E"] | None:
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        return None
    return embeddings if np.allclose(np.square(embeddings).sum(1), 1, atol=1e-3) else None
