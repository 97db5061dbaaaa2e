"""From a published model to a model folder: open, convert, record, write."""

from pathlib import Path
from typing import Any

from gla_jax.checkpoint import ClipSpec, write_checkpoint
from gla_jax.convert.sources import Source, open_source
from gla_jax.convert.state import convert_state
from gla_jax.errors import ConversionError
from gla_jax.version import VERSION

MANIFEST_FORMAT = "gla-jax manifest 1"


def convert(
    family: str,
    source: Path | str,
    out: Path | str,
    *,
    activation: str | None = None,
    heads: int | None = None,
    text_heads: int | None = None,
    offline: bool = False,
) -> dict[str, Any]:
    """Convert a model of a family ("clip", "dino", "dinov2") into the folder out, all of it or nothing.

    source: a hub id, a folder or a file; activation, heads and text_heads say what neither shapes nor a configuration
    do. Returns the manifest that out/manifest.json holds: where the weights come from, the SHA-256 of every file, and
    what became of every tensor. Raises ConversionError, and ModelError when out is taken.
    """
    opened = open_source(source, offline=offline)
    options = {"activation": activation, "heads": heads, "text_heads": text_heads}
    implied = {}
    if family == "clip" and opened.torchscript and activation is None and opened.config is None:
        implied["activation"] = "quick_gelu"  # only OpenAI published TorchScript archives
    try:
        converted = convert_state(family, opened.state, opened.config, **{**options, **implied})
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
    """tokenizer.json of a CLIP source: its own, one built of its vocabulary and merges, or OpenAI's.

    Raises ConversionError when it is damaged or its ids are not those of the text tower.
    """
    from tokenizers import Tokenizer

    if "tokenizer.json" in source.tokenizer:
        content = (source.folder / "tokenizer.json").read_bytes()
    elif {"vocab.json", "merges.txt"} <= set(source.tokenizer):
        content = _built_tokenizer(source.folder)
    else:
        from gla_jax.text.tokenizer import openai_tokenizer_files

        content = openai_tokenizer_files()["tokenizer.json"]
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare exceptions
        raise ConversionError(f"its tokenizer.json cannot be read ({error}).") from error
    size, end = tokenizer.get_vocab_size(), spec.text.end_token
    if size > spec.text.vocabulary or tokenizer.id_to_token(end) is None:
        raise ConversionError(
            f"its text tower has {spec.text.vocabulary} tokens and ends texts with {end}, but the tokenizer has {size} "
            "tokens; put the model's own tokenizer.json beside its weights."
        )
    return {"tokenizer.json": content}


def _built_tokenizer(folder: Path) -> bytes:
    from transformers import CLIPTokenizerFast

    try:
        tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    except Exception as error:  # whatever is wrong in the two files
        raise ConversionError(f"its vocab.json and merges.txt cannot be read ({error}).") from error
    return tokenizer.backend_tokenizer.to_str().encode()
