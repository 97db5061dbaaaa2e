"""Sources of weights: a hub id, a local folder or one file, with what lies beside them and their digests."""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gla_jax.convert.configs import Pixels, is_transformers, stated_pixels
from gla_jax.convert.npz_file import PAIR, npz_pair, open_npz
from gla_jax.convert.rules import first_names, short
from gla_jax.convert.torch_file import open_torch_file
from gla_jax.support.errors import ConversionError, first_line
from gla_jax.support.files import read_json, without_repeats

# In order of preference; an index names the shards of weights kept in several files.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
CONFIGS = ("config.json", "open_clip_config.json")
# They say how pixels are normalised. The training's file goes first: what was exported from it may be a default.
PREPROCESSORS = ("open_clip_config.json", "preprocessor_config.json", "processor_config.json", "config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "tokenizer.model")
# Dtypes of safetensors; fp8 is not read, for it comes with scales that every project names otherwise.
SAFETENSORS_DTYPES: Mapping[str, Any] = {
    **{f"F{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    **{f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}") for kind in "IU" for bits in (8, 16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BOOL": np.dtype(np.bool_),
}
MAX_CONFIG_BYTES = 1 << 23  # of a small file; indices of many shards and vocabularies have under 2^20
MAX_HEADER_BYTES = 1 << 23  # of safetensors; that of the largest CLIP has under 2^18
MAX_TOKENIZER_BYTES = 1 << 27  # of tokenizer.json; XLM-V's 901,629 tokens take half of it
SECONDS_TO_REACH_THE_HUB = 5.0
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Source:
    """Opened weights: the name the user gave, tensors, configuration if there is one, folder and files used.

    tokenizer: those of TOKENIZERS that lie beside. torchscript: it is a TorchScript archive, as OpenAI's are, whose
    code shows this activation. revision: the commit of a hub id. pixels: their normalisation, where a file says it.
    stated: the SHA-256 that the hub states of files, which they have.
    """

    name: str
    state: Mapping[str, np.ndarray]
    config: Mapping[str, Any] | None
    folder: Path
    files: tuple[str, ...]
    tokenizer: tuple[str, ...] = ()
    torchscript: bool = False
    activation: str | None = None
    revision: str | None = None
    pixels: Pixels | None = None
    stated: Mapping[str, str] = field(default_factory=dict)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file used."""
        return {name: sha256_of(self.folder / name) for name in (*self.files, *self.tokenizer)}


def open_source(source: Path | str, *, offline: bool = False) -> Source:
    """Open a local file or folder, or download a hub id ("owner/name"); a local path of that name goes first.

    Raises ConversionError.
    """
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _open(str(source), path)
        if path.is_file():
            return _open(str(source), path.parent, path.name)
        if path.exists():
            raise ConversionError(f"{source} is a device or a pipe, not a file; name the file that holds the weights.")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~somebody who has no home
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversionError(f"{source} cannot be read ({str(reason).rstrip('.')}); name another source.") from error
    if not HUB_ID.fullmatch(str(source)) or path.suffix in SUFFIXES:
        raise ConversionError(f"{source} is neither a file nor a folder here, nor a hub id like owner/name.")
    folder = download(str(source), offline=offline)
    opened = _open(str(source), folder)
    return replace(opened, revision=folder.name, stated=_stated(opened))


def _stated(source: Source) -> dict[str, str]:
    """The SHA-256 that the hub states of a source's large files, after which huggingface_hub names them in its cache.

    Raises ConversionError for a file whose bytes have another: it was cut off or changed.
    """
    places = {name: (source.folder / name).resolve() for name in source.files}
    stated = {name: place.name for name, place in places.items() if re.fullmatch("[0-9a-f]{64}", place.name)}
    for name, digest in stated.items():
        if sha256_of(places[name]) != digest:
            raise ConversionError(
                f"{source.name}: {name} is not the file whose SHA-256 the hub states ({digest}); remove {places[name]} "
                "and run again."
            )
    return stated


def unreachable() -> str | None:
    """Why the hub cannot be reached, None when it can: asked once, where a download would try for half a minute."""
    from huggingface_hub import constants, utils

    if constants.HF_HUB_OFFLINE:
        return "this run is offline"
    try:
        utils.get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_REACH_THE_HUB)
    except Exception as error:  # of the HTTP client, which differs between releases
        return first_line(error)
    return None


def download(hub_id: str, *, offline: bool = False, reachable: bool = False) -> Path:
    """The folder of a model on the hub: weights, configuration and tokenizer, downloaded once by huggingface_hub.

    Offline (or with HF_HUB_OFFLINE=1) it has to be downloaded already; reachable: the caller has just asked whether the
    hub is. Raises ConversionError naming the manual way.
    """
    import huggingface_hub as hub

    reason = "this run is offline" if offline else None if reachable else unreachable()
    try:
        if reason:
            return Path(hub.snapshot_download(hub_id, local_files_only=True))
        names = hub.HfApi().list_repo_files(hub_id)
        config = None
        if {"config.json", "open_clip_config.json"} <= {*names}:  # it decides which weights are wanted
            folder = hub.snapshot_download(hub_id, allow_patterns=["config.json"])
            config = _read_object(Path(folder) / "config.json")
        weights = _choose(names, hub_id, config)
        wanted = [weights, *dict.fromkeys((*CONFIGS, *PREPROCESSORS, *_tokenizers(names)))]
        if weights.endswith(".index.json"):
            stem, suffix, *_ = weights.split(".")
            wanted.append(f"{stem}-*.{suffix}")
        return Path(hub.snapshot_download(hub_id, allow_patterns=wanted))
    except ConversionError:
        raise
    except Exception as error:  # the hub's own, the HTTP client's, the operating system's
        reason = reason or first_line(error)
        raise ConversionError(
            f"{hub_id} is neither a file nor a folder here, and from the hub it cannot be downloaded ({reason}); mend "
            f"the path, or run `hf download {hub_id} --local-dir FOLDER` on a machine with a network and name FOLDER."
        ) from error


def _files(folder: Path) -> set[str]:
    """The names of a folder's regular files: a pipe of a usual name would be waited for."""
    return {path.name for path in folder.iterdir() if path.is_file()}


def _choose(names: Iterable[str], where: str, config: Mapping[str, Any] | None) -> str:
    """The weights to convert among the names of a folder; config is its config.json.

    Beside an open_clip_config.json, a config.json of timm's goes with the image tower alone, and so do its weights.
    """
    names = sorted(names)
    usual = [name for name in WEIGHTS if name in names]
    if "open_clip_config.json" in names and not is_transformers(config):
        usual.sort(key=lambda name: not name.startswith("open_clip"))
    others = [name for name in names if name.endswith(SUFFIXES) and "/" not in name]
    images, texts = PAIR
    others = [name for name in others if not (name.endswith(texts) and name.removesuffix(texts) + images in others)]
    if usual or len(others) == 1:
        return (usual or others)[0]
    if others:
        raise ConversionError(f"{where} holds several weight files ({first_names(others)}); name the one to convert.")
    raise ConversionError(f"{where} holds no weights the converter reads: no {', '.join(SUFFIXES)} file.")


def _open(name: str, folder: Path, weights: str = "") -> Source:
    """The weights of that name in a folder, of its usual names where none is given, with what lies beside them."""
    names = _files(folder)
    weights = weights or _choose(names, name, _read_object(folder / "config.json") if "config.json" in names else None)
    if weights.endswith(".index.json"):
        shards = _shards(folder / weights)
        tensors, script = _merged(folder / shard for shard in shards), {}
    elif weights.endswith(".npz"):
        weights, *shards = npz_pair(folder / weights)
        tensors, script = _merged((folder / weights, *(folder / shard for shard in shards))), {}
    else:
        shards = ()
        tensors, script = _open_tensors(folder / weights)
    # A file of another name was copied by hand; what lies beside it need not be its own.
    beside = names if weights in WEIGHTS else names & {*TOKENIZERS} if weights.endswith(".npz") else set()
    configs = [config for config in CONFIGS if config in beside]
    if weights.startswith("open_clip"):
        configs.reverse()
    tokenizer = _tokenizers(beside)
    for file in tokenizer:
        largest = MAX_TOKENIZER_BYTES if file == "tokenizer.json" else MAX_CONFIG_BYTES
        if (folder / file).stat().st_size > largest:
            raise ConversionError(
                f"{folder / file} is larger than any tokenizer's ({largest >> 20} MiB); download it again."
            )
    pixels, pixels_from = _pixels(folder, beside)
    return Source(
        name=name,
        state=tensors,
        config=_read_object(folder / configs[0]) if configs else None,
        folder=folder,
        files=tuple(dict.fromkeys((weights, *shards, *configs[:1], *pixels_from))),
        tokenizer=tokenizer,
        pixels=pixels,
        **script,
    )


def _tokenizers(names: Collection[str]) -> tuple[str, ...]:
    """The tokenizer files among names; a SentencePiece model where no tokenizer.json says the same."""
    files = [file for file in TOKENIZERS if file in names]
    return tuple(file for file in files if file != "tokenizer.model" or "tokenizer.json" not in files)


def _pixels(folder: Path, beside: Collection[str]) -> tuple[Pixels | None, tuple[str, ...]]:
    """The first file with a statement, as that statement and the file's name."""
    for name in PREPROCESSORS:
        if name in beside:
            try:
                pixels = stated_pixels(_read_object(folder / name))
            except ConversionError as error:
                raise ConversionError(f"{folder / name}: {error}") from None
            if pixels is not None:
                return pixels, (name,)
    return None, ()


def _open_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file, as views of it, and the fields of a Source that a TorchScript archive fills."""
    if path.suffix == ".safetensors":
        return _open_safetensors(path), {}
    if path.suffix == ".npz":
        return open_npz(path), {}
    file = open_torch_file(path)
    return file.tensors, {"torchscript": file.torchscript, "activation": file.activation}


def _open_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            if MAX_HEADER_BYTES < int.from_bytes(file.read(8), "little") < path.stat().st_size:
                raise ConversionError(f"{path} has a header larger than any model's ({MAX_HEADER_BYTES >> 20} MiB).")
        safe_open(path, framework="np")  # checks the header against the file's size
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} is not a complete safetensors file ({first_line(error)}); download it again."
        ) from error
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    try:
        header = json.loads(content[8:start].tobytes(), object_pairs_hook=without_repeats)
    except ValueError as error:
        raise ConversionError(f"{path} cannot be used: {error}; download it again.") from None
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise ConversionError(
                f"{path} stores {first_names([name])} as {entry['dtype']}, which is not converted; save it as F32."
            )
        begin, end = (start + offset for offset in entry["data_offsets"])
        numbers = np.frombuffer(content[begin:end], SAFETENSORS_DTYPES[entry["dtype"]])
        try:
            tensors[name] = numbers.reshape(entry["shape"])
        except ValueError:  # empty, with other sides that no array has
            raise ConversionError(
                f"{path} gives {first_names([name])} the shape {short(entry['shape'])}; download it again."
            ) from None
    return tensors


def _merged(paths: Iterable[Path]) -> dict[str, np.ndarray]:
    merged: dict[str, np.ndarray] = {}
    for path in paths:
        tensors, _ = _open_tensors(path)
        twice = sorted(merged.keys() & tensors.keys())
        if twice:
            raise ConversionError(f"{path} repeats {first_names(twice)} of another shard; download the shards again.")
        merged |= tensors
    return merged


def _shards(index: Path) -> tuple[str, ...]:
    """The files an index names, which have to lie beside it."""
    weight_map = _read_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ConversionError(f"{index} does not name the shards beside it; download it again.")
    names = sorted(set(names))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index} names {first_names(missing)}, which is not beside it; download it too.")
    return tuple(names)


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, "the file", "download it again", ConversionError, MAX_CONFIG_BYTES)
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object; download it again.")
    return content


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
