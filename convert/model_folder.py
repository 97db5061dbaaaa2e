"""From a published model to a model folder: open, convert, record, write."""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gla_jax.checkpoints.model_folder import ClipSpec, Params, Spec, write_checkpoint
from gla_jax.convert.configs import check_model_type, is_transformers
from gla_jax.convert.families import FAMILIES, convert_state
from gla_jax.convert.sentencepiece import sentencepiece_tokenizer
from gla_jax.convert.siglip import trained_tokenizer
from gla_jax.convert.sources import CONFIGS, PREPROCESSORS, TOKENIZERS, Source, open_source, sha256_of
from gla_jax.support.errors import ConversionError, first_line
from gla_jax.support.files import read_json
from gla_jax.support.new_folder import check_new_folder
from gla_jax.support.places import is_url, on_disk, place
from gla_jax.support.version import VERSION
from gla_jax.text.embeddings import clip_tokenizer_files, openai_tokenizer_files
from gla_jax.towers.clip import ClipTextSpec
from gla_jax.towers.tips import TipsTextSpec

TIPS_MODEL = "https://storage.googleapis.com/tips_data/v1_0/checkpoints/tokenizer.model"
MANIFEST_FORMAT = "gla-jax manifest 1"


@dataclass(frozen=True)
class Conversion:
    """A converted model in memory, the source it came from and the folder that write() makes of it."""

    spec: Spec
    params: Params
    manifest: Mapping[str, Any]
    tokenizer: Mapping[str, bytes]
    source: Source
    out: Path

    def write(self) -> Mapping[str, Any]:
        """Write the folder, all of it or nothing, and return the manifest. Raises ModelError."""
        write_checkpoint(self.out, self.spec, self.params, self.manifest, self.tokenizer)
        return self.manifest


def convert(family: str, source: Path | str, out: Path | str, **options: Any) -> Mapping[str, Any]:
    """Convert a model into the folder out, all of it or nothing; arguments and errors as read_model has them.

    Returns the manifest that out/manifest.json holds: where the weights come from, the SHA-256 of every file, what had
    to be assumed, and what became of every tensor.
    """
    with weights_on_disk(source) as here:
        return read_model(family, here, out, name=str(source), **options).write()


def weights_on_disk(source: Path | str) -> AbstractContextManager[Path | str]:
    """A hub id, a folder or a file as it is, what a URL names as a private copy that is removed after the block.

    Raises ConversionError for a file that has not the SHA-256 which its address holds, as OpenAI's do, and for one of
    the two .npz files of a model.
    """
    return _fetched(source) if is_url(source) else nullcontext(source)


@contextmanager
def _fetched(url: str) -> Iterator[Path]:
    if url.endswith(".npz"):
        raise ConversionError(
            f"{url} is one of the two files of its model; download both and tokenizer.model into one folder and "
            "convert that."
        )
    with on_disk(place(url), dict.fromkeys((*CONFIGS, *PREPROCESSORS, *TOKENIZERS))) as here:
        stated = re.search("/([0-9a-f]{64})/", url)
        if stated and here.is_file() and (digest := sha256_of(here)) != stated[1]:
            raise ConversionError(f"{url} has the SHA-256 {digest}, and its address names another; fetch it again.")
        yield here


def read_model(
    family: str, source: Path | str, out: Path | str, *, name: str = "", offline: bool = False, **options: Any
) -> Conversion:
    """Read and convert a model that has a place to be written to.

    Args:
        family: one of FAMILIES.
        source: a hub id, a folder or a file, on disk.
        out: the folder to come, which may be on a store.
        name: of the source in manifest and messages, where it is a copy of another.
        offline: never reach for the network.
        options: num_heads, and for CLIP and SigLIP activation and text_heads: what neither shapes nor a configuration
            say.

    Raises ConversionError, and ModelError when out is taken or cannot be made.
    """
    out = place(out)
    check_new_folder(out)  # before minutes of work, not after them
    opened = open_source(source, offline=offline)
    opened = replace(opened, name=name or opened.name)
    options = {name: value for name, value in options.items() if value is not None}
    implied, assumed = {}, {}
    if family == "clip" and opened.torchscript and opened.config is None and "activation" not in options:
        implied["activation"] = opened.activation or "quick_gelu"
        if opened.activation is None:
            assumed["activation"] = (
                "quick_gelu: only OpenAI publishes TorchScript archives, and this one's code is bare"
            )
    try:
        tokenizer: Mapping[str, bytes] = {}
        if is_transformers(opened.config):
            check_model_type(opened.config, FAMILIES[family].model_types)
        if family == "siglip":  # what ends and pads its texts stands in no configuration
            tokenizer, implied = trained_tokenizer(_tokenizer_beside(opened))
        converted = convert_state(family, opened.state, opened.config, pixels=opened.pixels, **options, **implied)
        if isinstance(converted.spec, ClipSpec):
            tokenizer, origin = tokenizer_files(opened, converted.spec, tokenizer)
            assumed |= origin
    except ConversionError as error:
        raise ConversionError(f"{opened.name}: {error}") from error.__cause__
    manifest = {
        "format": MANIFEST_FORMAT,
        "family": family,
        "source": opened.name,
        "revision": opened.revision,
        "options": {{"num_heads": "heads"}.get(name, name): value for name, value in options.items()},
        "assumed": {**assumed, **converted.assumed},
        "files": opened.digests(),
        "stated_by_hub": dict(opened.stated),
        "converter": f"gla-jax {VERSION}",
        "tensors": dict(sorted(converted.records.items())),
    }
    return Conversion(converted.spec, converted.params, manifest, tokenizer, opened, out)


def tokenizer_files(
    source: Source, spec: ClipSpec, files: Mapping[str, bytes] | None = None
) -> tuple[Mapping[str, bytes], dict[str, str]]:
    """The tokenizer of a source with a text tower, and what had to be assumed of it.

    It is in files or lies beside the weights or, of a CLIP, is built of their vocabulary and merges, or is OpenAI's; of
    TIPSv2 it is built of a tokenizer.model too.
    Raises ConversionError when there is none, it is damaged or does not end texts as the text tower expects.
    """
    from tokenizers import Tokenizer

    files, assumed = files or _tokenizer_beside(source), {}
    if not files and isinstance(spec.text, TipsTextSpec) and "tokenizer.model" in source.tokenizer:
        files = {"tokenizer.json": sentencepiece_tokenizer((source.folder / "tokenizer.model").read_bytes())}
    if not files and not isinstance(spec.text, ClipTextSpec):
        raise ConversionError(
            "neither tokenizer.json nor tokenizer.model lies beside the weights; put the model's own there "
            f"({TIPS_MODEL})."
        )
    if not files:
        files = openai_tokenizer_files()
        assumed["tokenizer"] = "OpenAI's: none lies beside the weights"
        model = (source.config or {}).get("model_cfg", source.config or {})
        name = model.get("text_cfg", {}).get("hf_tokenizer_name") if isinstance(model, dict) else None
        if name:
            raise ConversionError(
                f"its text tower reads the tokens of {name}; put that tokenizer.json beside its weights."
            )
    try:
        tokenizer = Tokenizer.from_buffer(files["tokenizer.json"])
    except Exception as error:  # the library raises bare exceptions
        raise ConversionError(f"its tokenizer.json cannot be read ({first_line(error)}).") from error
    tokenizer.no_padding()
    size, end = tokenizer.get_vocab_size(), spec.text.end_token
    if size > spec.text.vocabulary or end not in (None, *tokenizer.encode("a").ids[-1:]):
        ends = "" if end is None else f" and ends texts with {end}"
        raise ConversionError(
            f"its text tower has {spec.text.vocabulary} tokens{ends}, which a tokenizer of {size} "
            "tokens does not fit; put the model's own tokenizer.json beside its weights."
        )
    return files, assumed


def _tokenizer_beside(source: Source) -> dict[str, bytes]:
    if "tokenizer.json" in source.tokenizer:
        kept = [name for name in ("tokenizer.json", "tokenizer_config.json") if name in source.tokenizer]
        return {name: (source.folder / name).read_bytes() for name in kept}
    if not {"vocab.json", "merges.txt"} <= set(source.tokenizer):
        return {}
    vocabulary = read_json(source.folder / "vocab.json", "the vocabulary", "download it again", ConversionError)
    try:
        lines = (source.folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return clip_tokenizer_files(vocabulary, merges)
    except Exception as error:  # text and vocabulary each fail in their own way
        raise ConversionError(f"its vocab.json and merges.txt cannot be read ({first_line(error)}).") from error
