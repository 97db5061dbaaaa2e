"""From a published model to a model folder: open, convert, record, write."""

import json
from pathlib import Path
from typing import Any

from gla_jax.checkpoints.model_folder import ClipSpec, write_checkpoint
from gla_jax.convert.rules import first_line
from gla_jax.convert.sources import Source, open_source
from gla_jax.convert.state import convert_state
from gla_jax.support.errors import ConversionError
from gla_jax.support.new_folder import check_new_folder
from gla_jax.support.version import VERSION
from gla_jax.text.tokenizer import clip_tokenizer_files, openai_tokenizer_files

MANIFEST_FORMAT = "gla-jax manifest 1"


def convert(
    family: str,
    source: Path | str,
    out: Path | str,
    *,
    activation: str | None = None,
    num_heads: int | None = None,
    text_heads: int | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Convert a model of a family ("clip", "dino", "dinov2") into the folder out, all of it or nothing.

    source: a hub id, a folder or a file; activation, num_heads and text_heads say what neither shapes nor a
    configuration do. Returns the manifest that out/manifest.json holds: where the weights come from, the SHA-256 of
    every file, and what became of every tensor. Raises ConversionError, and ModelError when out is taken or cannot be made.
    """
    check_new_folder(Path(out))  # before minutes of work, not after them
    opened = open_source(source, offline=offline)
    options = {"activation": activation, "num_heads": num_heads, "text_heads": text_heads}
    implied = {}
    if family == "clip" and opened.torchscript and activation is None and opened.config is None:
        implied["activation"] = "quick_gelu"  # only OpenAI published TorchScript archives
    try:
        given = {**options, **implied, "pixels": opened.pixels}
        converted = convert_state(family, opened.state, opened.config, **given)
        tokenizer = tokenizer_files(opened, converted.spec) if isinstance(converted.spec, ClipSpec) else {}
    except ConversionError as error:
        raise ConversionError(f"{opened.name}: {error}") from error.__cause__
    manifest = {
        "format": MANIFEST_FORMAT,
        "family": family,
        "source": opened.name,
        "revision": opened.revision,
        "options": {name: value for name, value in options.items() if value is not None},
        "files": opened.digests(),
        "converter": f"gla-jax {VERSION}",
        "tensors": {name: record.as_json() for name, record in sorted(converted.records.items())},
    }
    write_checkpoint(out, converted.spec, converted.params, manifest, tokenizer)
    return manifest


def tokenizer_files(source: Source, spec: ClipSpec) -> dict[str, bytes]:
    """The tokenizer of a CLIP source: its own, one built of its vocabulary and merges, or OpenAI's.

    Raises ConversionError when it is damaged or does not end texts as the text tower expects.
    """
    from tokenizers import Tokenizer

    found = _own_tokenizer(source) or openai_tokenizer_files()
    try:
        tokenizer = Tokenizer.from_buffer(found["tokenizer.json"])
    except Exception as error:  # the library raises bare exceptions
        raise ConversionError(f"its tokenizer.json cannot be read ({first_line(error)}).") from error
    tokenizer.no_padding()
    size, end = tokenizer.get_vocab_size(), spec.text.end_token
    if size > spec.text.vocabulary or tokenizer.encode("a").ids[-1:] != [end]:
        raise ConversionError(
            f"its text tower has {spec.text.vocabulary} tokens and ends texts with {end}, which a tokenizer of {size} "
            "tokens does not fit; put the model's own tokenizer.json beside its weights."
        )
    return found


def _own_tokenizer(source: Source) -> dict[str, bytes]:
    if "tokenizer.json" in source.tokenizer:
        kept = [name for name in ("tokenizer.json", "tokenizer_config.json") if name in source.tokenizer]
        return {name: (source.folder / name).read_bytes() for name in kept}
    if not {"vocab.json", "merges.txt"} <= set(source.tokenizer):
        return {}
    try:
        vocabulary = json.loads((source.folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (source.folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")]
        return clip_tokenizer_files(vocabulary, merges)
    except Exception as error:  # JSON, text and vocabulary each fail in their own way
        raise ConversionError(f"its vocab.json and merges.txt cannot be read ({first_line(error)}).") from error
