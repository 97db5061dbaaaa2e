"""From what a user writes after --model to loaded weights: names, model folders, or two of them with a plus."""

import difflib
import os
import textwrap
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from gla_jax.checkpoints.model_folder import Checkpoint, ClipSpec, read_checkpoint
from gla_jax.models.registry import EMBEDDED, FAMILIES, MODELS, PUBLISHED
from gla_jax.support.errors import ConversionError, ModelError, first_line
from gla_jax.support.files import cache_folder, read_json
from gla_jax.support.new_folder import check_new_folder
from gla_jax.support.places import is_url, local_copy, place

PAIR = ("clip", "vfm")  # subfolders of a folder that holds both models
LAYERS = "clip-dinoiser"  # family of trained layers on CLIP's tokens, and a third subfolder of such a folder
PUBLISHED_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".npz")


class ModelParts(NamedTuple):
    """A CLIP, a features model and CLIP-DINOiser's layers on that CLIP; None for one that is not named."""

    clip: Checkpoint | None
    vfm: Checkpoint | None
    dinoiser: Checkpoint | None


def resolve(name_or_path: str | Path, *, offline: bool = False, cache_dir: Path | str | None = None) -> ModelParts:
    """The parts of "A+B", "A+B+C", a name or a folder.

    A part is a name of the models table (which goes before a folder of that name: write ./NAME for the folder), a
    model folder, or a folder with clip/, vfm/ and perhaps clip-dinoiser/ in it. Named models are downloaded and
    converted once, under cache_dir/models. Raises ModelError, and ConversionError when downloaded weights cannot be
    converted.
    """
    text = str(name_or_path)
    if not isinstance(name_or_path, str | Path) or not text.strip():
        names = ", ".join((EMBEDDED, *MODELS))
        raise ModelError(f"{text!r:.60} names no model; give a folder, or one or two of {names}.")
    # Every part is looked up before one is downloaded.
    sources = model_sources(text)
    loaded = [_read_cached(at, offline, cache_dir) if at in MODELS else read_checkpoint(at) for at in sources]
    clips = [checkpoint for checkpoint in loaded if isinstance(checkpoint.spec, ClipSpec)]
    layers = [checkpoint for checkpoint in loaded if checkpoint.family == LAYERS]
    features = [part for part in loaded if not isinstance(part.spec, ClipSpec) and part.family != LAYERS]
    if len(clips) > 1 or len(features) > 1:
        raise ModelError(
            f"{text} names {len(clips)} CLIP and {len(features)} features models; a model is one of them, or one CLIP "
            "and one features model with a plus between them, as in clip-vit-base-patch16+dino-vitb8."
        )
    if layers and (len(layers) > 1 or not clips):
        raise ModelError(
            f"{text} names CLIP-DINOiser's layers {len(layers)} times and {len(clips)} CLIP; name the CLIP that they "
            "were trained on and the layers once."
        )
    if layers and clips[0].family != "clip":
        raise ModelError(
            f"{layers[0].folder} holds layers on tokens of a CLIP, but {clips[0].folder} is a {clips[0].family} model; "
            "name the CLIP that they were trained on."
        )
    if layers and layers[0].spec.width != clips[0].spec.image.width:
        raise ModelError(
            f"{layers[0].folder} holds layers on tokens of width {layers[0].spec.width}, but those of "
            f"{clips[0].folder} have {clips[0].spec.image.width}; name the CLIP that they were trained on."
        )
    return ModelParts(*(each[0] if each else None for each in (clips, features, layers)))


def model_sources(text: str) -> list[str | Path]:
    """The parts of "A+B", a name or a folder: names of the models table, and model folders. Raises ModelError."""
    whole = os.path.exists(os.path.expanduser(text))  # a folder may have a plus in its name
    parts = [text] if whole else [part.strip() for part in text.split("+")]
    return [source for part in parts for source in ([part] if part in MODELS else _folders(part))]


def origins(text: str) -> list[dict[str, str]]:
    """Source, revision, file name and SHA-256 of every file of weights of "A+B", and who states the SHA-256.

    The models are on this machine. Raises ModelError.
    """
    rows = []
    for at in model_sources(text):
        folder = cache_folder("models") / at if at in MODELS else Path(at)
        manifest = read_json(folder / "manifest.json", "the record of a model", "convert the weights again", ModelError)
        stated = manifest.get("stated_by_hub", {})
        for name, sha256 in manifest.get("files", {"-": "-"}).items():
            stated_by = PUBLISHED.get(sha256) or ("the hub" if stated.get(name) == sha256 else "")
            if stated_by or not name.endswith((".json", ".txt")):
                source = str(manifest.get("source", folder.name))
                revision = str(manifest.get("revision") or "")
                rows.append(
                    {"source": source, "revision": revision, "file": name, "sha256": sha256, "stated_by": stated_by}
                )
    return rows


def _folders(part: str) -> list[Path]:
    """The model folders of a part that is not in the models table."""
    if is_url(part):
        part = str(local_copy(place(part), lambda: cache_folder("fetched")))
    weights = files("gla_jax.tiny_world") / "weights"
    folder = Path(str(weights) if part == EMBEDDED else os.path.expanduser(part))
    command = f"gla-jax convert {'|'.join(FAMILIES)} {part} OUT"
    if os.path.isfile(folder):
        raise ModelError(f"{part} is a file, and a model is a folder; convert it first: {command}.")
    if part and os.path.exists(folder) and not os.path.isdir(folder):
        raise ModelError(f"{part} is a pipe, a socket or a device; name a model folder or one of gla-jax models.")
    if not part or not os.path.isdir(folder):
        # A mistyped folder is more like a model's beside it than like a name.
        beside = [path.name for path in folder.parent.glob("*") if _is_model(path)] if os.sep in part else []
        close = [str(folder.with_name(name)) for name in difflib.get_close_matches(folder.name, beside, n=1)]
        close = close or difflib.get_close_matches(part.lower(), [EMBEDDED, *MODELS], n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else "gla-jax models lists the names."
        raise ModelError(f"{part!r} is neither a model folder nor a named model; {advice}")
    if (folder / "config.json").exists():
        return [folder]
    if _is_model(folder):
        return [folder / name for name in (*PAIR, LAYERS) if name in PAIR or (folder / name).is_dir()]
    if any(path.suffix in PUBLISHED_WEIGHTS for path in folder.iterdir()):
        raise ModelError(f"{folder} holds weights as they are published; convert them first: {command}.")
    raise ModelError(f"{folder} is not a model folder: it holds neither config.json nor the folders clip and vfm.")


def _is_model(folder: Path) -> bool:
    """True for a model folder, and for one that holds the folders of a pair."""
    return (folder / "config.json").exists() or all((folder / name).is_dir() for name in PAIR)


def _read_cached(name: str, offline: bool, cache_dir: Path | str | None) -> Checkpoint:
    folder = cache_folder("models", cache_dir) / name
    if not os.path.exists(folder):
        _download(name, folder, offline)
    try:
        return read_checkpoint(folder)
    except ModelError as error:
        raise ModelError(f"The cached {name} cannot be used: remove {folder} and run again ({error})") from error


def _refused(error: BaseException | None) -> bool:
    """True for the hub's answer to accounts, or to none, that may not have the files."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    return isinstance(error, GatedRepoError) or (
        isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
    )


def _download(name: str, folder: Path, offline: bool) -> None:
    """Download and convert a named model into its cache folder, which appears whole or not at all."""
    from gla_jax.convert import convert, sources

    model = MODELS[name]
    try:
        check_new_folder(folder)  # before a gigabyte is downloaded
        reason = "this run is offline" if offline else sources.unreachable()
        try:
            # Not reachable, it may still be in huggingface_hub's cache, from which convert reads.
            sources.download(model.hub_id, offline=reason is not None, reachable=reason is None)
        except ConversionError as error:
            if model.gated and reason is None and _refused(error.__cause__):
                raise ModelError(
                    f"{name} is gated and the hub refuses this account: accept its licence on "
                    f"https://huggingface.co/{model.hub_id}, log in with `hf auth login` and run again."
                ) from error
            reason = reason or textwrap.shorten(first_line(error.__cause__ or error), 160, placeholder=" ...")
            raise ModelError(
                f"{name} is not on this machine and cannot be downloaded ({reason}): copy the files of {model.hub_id} "
                f"here by hand, run gla-jax convert {model.family} FOLDER OUT and write OUT in place of "
                f"{name} in --model."
            ) from error
        convert(model.family, model.hub_id, folder, offline=True)
    except ModelError as error:
        if not os.path.exists(folder):  # else another process was faster, and its folder is as good
            advice = "set GLA_JAX_CACHE to another folder"
            raise ModelError(str(error).replace("name another folder", advice)) from error
