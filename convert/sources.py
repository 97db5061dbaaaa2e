"""Where weights come from: a hub id, a local folder or one file; what lies beside them; what they hash to."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gla_jax.convert.pixels import Pixels, stated_pixels
from gla_jax.convert.rules import first_line, some
from gla_jax.convert.torch_file import open_torch_file
from gla_jax.support.errors import ConversionError

# In order of preference; an index names the shards of weights kept in several files.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
CONFIGS = ("config.json", "open_clip_config.json")
# How pixels are normalised. The training's own file goes first: what was exported from it may be a default.
PREPROCESSORS = ("open_clip_config.json", "preprocessor_config.json", "processor_config.json")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SECONDS_TO_REACH_THE_HUB = 5.0
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

Tensors = Mapping[str, Callable[[], np.ndarray]]


class LazyState(Mapping[str, np.ndarray]):
    """Tensors by published name, each read when it is asked for."""

    def __init__(self, tensors: Tensors):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True)
class Source:
    """Opened weights: the name the user gave, tensors, configuration if there is one, folder and files used.

    tokenizer: which of TOKENIZERS lie beside; torchscript: whether it is a TorchScript archive, as OpenAI's are;
    revision: the commit of a hub id; pixels: how they are normalised, where a file says so.
    """

    name: str
    state: Mapping[str, np.ndarray]
    config: Mapping[str, Any] | None
    folder: Path
    files: tuple[str, ...]
    tokenizer: tuple[str, ...] = ()
    torchscript: bool = False
    revision: str | None = None
    pixels: Pixels | None = None

    def digests(self) -> dict[str, str]:
        """SHA-256 of every file used."""
        return {name: _sha256(self.folder / name) for name in (*self.files, *self.tokenizer)}


def open_source(source: Path | str, *, offline: bool = False) -> Source:
    """Open a local file or folder, or download a hub id ("owner/name"); a local path of that name goes first.

    Raises ConversionError.
    """
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _open(str(source), path, _weights_of_folder(path))
        if path.exists():
            return _open(str(source), path.parent, path.name)
    except (OSError, RuntimeError) as error:  # RuntimeError: ~somebody who has no home
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConversionError(f"{source} cannot be read ({str(reason).rstrip('.')}); name another source.") from error
    if not HUB_ID.fullmatch(str(source)) or path.suffix in SUFFIXES:
        raise ConversionError(f"{source} is neither a file nor a folder here, nor a hub id like owner/name.")
    folder = download(str(source), offline=offline)
    opened = _open(str(source), folder, _weights_of_folder(folder))
    return replace(opened, revision=folder.name)


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
        weights = _choose(hub.HfApi().list_repo_files(hub_id), hub_id)
        wanted = [weights, *dict.fromkeys((*CONFIGS, *PREPROCESSORS, *TOKENIZERS))]
        if weights.endswith(".index.json"):
            stem, suffix, *_ = weights.split(".")
            wanted.append(f"{stem}-*.{suffix}")
        return Path(hub.snapshot_download(hub_id, allow_patterns=wanted))
    except ConversionError:
        raise
    except Exception as error:  # the hub's own, the HTTP client's, the operating system's
        reason = reason or first_line(error)
        raise ConversionError(
            f"{hub_id} cannot be downloaded ({reason}); run `hf download {hub_id} --local-dir FOLDER` on a machine "
            "with a network and give that folder here."
        ) from error


def _weights_of_folder(folder: Path) -> str:
    return _choose([path.name for path in folder.iterdir() if path.is_file()], str(folder))


def _choose(names: Iterable[str], where: str) -> str:
    names = sorted(names)
    known = [name for name in WEIGHTS if name in names]
    others = [name for name in names if name.endswith(SUFFIXES) and "/" not in name]
    if known or len(others) == 1:
        return (known or others)[0]
    if others:
        raise ConversionError(f"{where} holds several weight files ({some(others)}); name the one to convert.")
    raise ConversionError(f"{where} holds no weights the converter reads: no {', '.join(SUFFIXES)} file.")


def _open(name: str, folder: Path, weights: str) -> Source:
    if weights.endswith(".index.json"):
        shards = _shards(folder / weights)
        tensors, torchscript = _merged(folder / shard for shard in shards), False
    else:
        shards = ()
        tensors, torchscript = _open_tensors(folder / weights)
    # A file of another name was copied by hand; what lies beside it need not be its own.
    beside = {path.name for path in folder.iterdir()} if weights in WEIGHTS else set()
    configs = [config for config in CONFIGS if config in beside]
    if weights.startswith("open_clip"):
        configs.reverse()
    pixels, pixels_from = _pixels(folder, beside)
    return Source(
        name=name,
        state=LazyState(tensors),
        config=_read_json(folder / configs[0]) if configs else None,
        folder=folder,
        files=tuple(dict.fromkeys((weights, *shards, *configs[:1], *pixels_from))),
        tokenizer=tuple(file for file in TOKENIZERS if file in beside),
        torchscript=torchscript,
        pixels=pixels,
    )


def _pixels(folder: Path, beside: Collection[str]) -> tuple[Pixels | None, tuple[str, ...]]:
    """What the first file says that says anything, and its name."""
    for name in PREPROCESSORS:
        if name in beside:
            said = _read_json(folder / name)
            try:
                pixels = stated_pixels(said)
            except ConversionError as error:
                raise ConversionError(f"{folder / name}: {error}") from None
            if pixels is not None:
                return pixels, (name,)
    return None, ()


def _open_tensors(path: Path) -> tuple[Tensors, bool]:
    if path.suffix == ".safetensors":
        return _open_safetensors(path), False
    file = open_torch_file(path)
    return file.tensors, file.torchscript


def _open_safetensors(path: Path) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} is not a complete safetensors file ({first_line(error)}); download it again."
        ) from error
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118, it is no mapping


def _merged(paths: Iterable[Path]) -> Tensors:
    merged: dict[str, Callable[[], np.ndarray]] = {}
    for path in paths:
        tensors, _ = _open_tensors(path)
        twice = sorted(merged.keys() & tensors.keys())
        if twice:
            raise ConversionError(f"{path} repeats {some(twice)} of another shard; download the shards again.")
        merged |= tensors
    return merged


def _shards(index: Path) -> tuple[str, ...]:
    """The files an index names, which have to lie beside it."""
    weight_map = _read_json(index).get("weight_map")
    names = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ConversionError(f"{index} does not name the shards beside it; download it again.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConversionError(f"{index} names {some(missing)}, which is not beside it; download it too.")
    return tuple(names)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} cannot be read ({first_line(error)}); download it again.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} is not a JSON object; download it again.")
    return content


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
