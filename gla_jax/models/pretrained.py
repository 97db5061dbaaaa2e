"""From what a user writes after --model to loaded weights: names, model folders, or two of them with a plus."""

import difflib
import os
import textwrap
from importlib.resources import files
from pathlib import Path

from gla_jax.checkpoints.model_folder import Checkpoint, read_checkpoint
from gla_jax.models.registry import EMBEDDED, MODELS
from gla_jax.support.cache import cache_folder
from gla_jax.support.errors import ConversionError, ModelError

PAIR = ("clip", "vfm")  # subfolders of a folder that holds both models
PYTORCH = (".safetensors", ".bin", ".pt", ".pth")


def resolve(
    name_or_path: str | Path, *, offline: bool = False, cache_dir: Path | str | None = None
) -> tuple[Checkpoint, Checkpoint | None]:
    """The CLIP model and the features model (None when only a CLIP is named) of "A+B", a name or a folder.

    A part is a name of the models table (which goes before a folder of that name: write ./NAME for the folder), a
    model folder, or a folder with clip/ and vfm/ in it. Named models are downloaded and converted once, under
    cache_dir/models. Raises ModelError, and ConversionError when downloaded weights cannot be converted.
    """
    text = str(name_or_path)
    whole = os.path.exists(os.path.expanduser(text))  # a folder may have a plus in its name
    parts = [text] if whole else text.split("+")
    loaded = [checkpoint for part in parts for checkpoint in _load(part.strip(), offline, cache_dir)]
    clips = [checkpoint for checkpoint in loaded if checkpoint.family == "clip"]
    features = [checkpoint for checkpoint in loaded if checkpoint.family != "clip"]
    if len(clips) != 1 or len(features) > 1:
        raise ModelError(
            f"{text} names {len(clips)} CLIP and {len(features)} features models; a model is one CLIP, or one CLIP "
            "and one features model with a plus between them, as in clip-vit-base-patch16+dino-vitb8."
        )
    return clips[0], features[0] if features else None


def _load(part: str, offline: bool, cache_dir: Path | str | None) -> list[Checkpoint]:
    if part == EMBEDDED:
        return _read_folder(Path(str(files("gla_jax.tiny_world") / "weights")))
    if part in MODELS:
        return [_read_cached(part, offline, cache_dir)]
    path = os.path.expanduser(part)
    if os.path.isdir(path):
        return _read_folder(Path(path))
    if os.path.isfile(path):
        raise ModelError(f"{part} is a file, and a model is a folder; convert it first: {_convert_command(part)}.")
    raise ModelError(f"{part!r} is neither a model folder nor a named model; {_suggestion(part)}.")


def _suggestion(part: str) -> str:
    close = difflib.get_close_matches(part.lower(), [EMBEDDED, *MODELS], n=3)
    return f"did you mean {' or '.join(close)}" if close else "gla-jax models lists the names"


def _convert_command(source: str) -> str:
    return f"gla-jax convert clip|dino|dinov2 {source} OUT"


def _read_folder(folder: Path) -> list[Checkpoint]:
    if (folder / "config.json").exists():
        return [read_checkpoint(folder)]
    if all((folder / part).is_dir() for part in PAIR):
        return [read_checkpoint(folder / part) for part in PAIR]
    if any(path.suffix in PYTORCH for path in folder.iterdir()):
        raise ModelError(f"{folder} holds PyTorch weights; convert them first: {_convert_command(str(folder))}.")
    raise ModelError(f"{folder} is not a model folder: it holds neither config.json nor the folders clip and vfm.")


def _read_cached(name: str, offline: bool, cache_dir: Path | str | None) -> Checkpoint:
    folder = cache_folder("models", cache_dir) / name
    if not folder.exists():
        _download(name, folder, offline)
    try:
        return read_checkpoint(folder)
    except ModelError as error:
        raise ModelError(f"The cached {name} cannot be used: remove {folder} and run again ({error})") from error


def _download(name: str, folder: Path, offline: bool) -> None:
    """Download and convert a named model into its cache folder, which appears whole or not at all."""
    from gla_jax.convert import convert, sources
    from gla_jax.convert.rules import first_line

    model = MODELS[name]
    reason = "this run is offline" if offline else sources.unreachable()
    try:
        # Not reachable, it may still be in huggingface_hub's cache.
        sources.download(model.hub_id, offline=reason is not None, reachable=reason is None)
    except ConversionError as error:
        reason = reason or textwrap.shorten(first_line(error.__cause__ or error), 160, placeholder=" ...")
        raise ModelError(
            f"{name} is not on this machine and cannot be downloaded ({reason}): copy the files of {model.hub_id} here "
            f"by hand, run gla-jax convert {model.family} FOLDER OUT and write --model OUT where you wrote {name}."
        ) from error
    try:
        convert(model.family, model.hub_id, folder, offline=True)  # from huggingface_hub's cache
    except ModelError:
        if not folder.exists():  # else another process was faster, and its folder is as good
            raise
