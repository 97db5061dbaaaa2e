"""A model folder: config.json, Orbax params, manifest.json, for CLIP the tokenizer. Written beside, then renamed."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf
from beartype.door import is_bearable
from flax.traverse_util import unflatten_dict

from gla_jax.images.windows import are_pixel_numbers
from gla_jax.support.errors import ModelError, first_line
from gla_jax.support.files import read_json
from gla_jax.support.interrupts import to_its_end
from gla_jax.support.new_folder import folder_written_beside
from gla_jax.support.places import place
from gla_jax.towers.dinoiser import Dinoiser, DinoiserSpec
from gla_jax.towers.kinds import FAMILIES, build_tower
from gla_jax.towers.layers import TextSpec, VisionSpec

FORMAT = "gla-jax model 1"
# How config.json names fields of a spec: folders written by earlier versions stay readable.
STORED_NAMES = {"num_heads": "heads", "embed_dim": "joint_width", "pixel_std": "pixel_deviation"}
ALIGNMENT = 64  # bytes, of arrays that XLA takes as they are
MAX_CONFIG_BYTES = 1 << 20  # of config.json
MAX_FILES = 10_000  # under params/; Orbax writes about 20
MAX_RATIO = 16  # of a tree's size to its files' size; earlier versions compressed them, by 8 %
JSON_NUMBERS = BeartypeConf(is_pep484_tower=True)  # JSON may hold 0 where a spec says float
NOT_POSITIVE = (
    "registers",
    "end_token",
    "pad_token",
    "pixel_mean",
    "position_offset",
)  # fields of a spec that may be 0
FRACTIONS = ("layer_norm_eps", "position_offset")  # fields of a spec below 1
Params = Mapping[str, Any]


@dataclass(frozen=True)
class ClipSpec:
    """Both towers of CLIP or a model of its kind: one of images, which gives values, and one of texts."""

    image: VisionSpec
    text: TextSpec


VfmSpec = VisionSpec  # of a tower that gives features
Spec = ClipSpec | VfmSpec | DinoiserSpec


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder; sha256 is its model_digest, templates its own prompt templates if any."""

    family: str
    spec: Spec
    params: Params
    sha256: str
    folder: Path
    templates: tuple[str, ...] | None = None


def initial_params(spec: Spec, key: jax.Array) -> Params:
    """Random parameters of a model: {"image": ..., "text": ...} for CLIP, the tower's own tree otherwise; float32."""
    if isinstance(spec, ClipSpec):
        image_key, text_key = jax.random.split(key)
        text = build_tower(spec.text).init(text_key, jnp.zeros((1, 2), jnp.int32))["params"]
        return {"image": initial_params(spec.image, image_key), "text": text}
    if isinstance(spec, DinoiserSpec):
        return Dinoiser(spec).init(key, jnp.zeros((1, 1, spec.width)))["params"]
    return build_tower(spec).init(key, jnp.zeros((1, 3, spec.patch_size, spec.patch_size)))["params"]


def abstract_params(spec: Spec) -> Params:
    """Shapes and dtypes of a model's parameters without computing any: a tree of jax.ShapeDtypeStruct."""
    return jax.eval_shape(lambda key: initial_params(spec, key), jax.random.key(0))


def flatten_params(params: Params) -> dict[str, Any]:
    """A parameter tree as {"a/b/c": leaf}, sorted by path."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return dict(sorted(("/".join(key.key for key in path), leaf) for path, leaf in leaves))


def digest(params: Params) -> str:
    """SHA-256 over the paths, shapes and float32 bytes of all parameters."""
    sha = hashlib.sha256()
    for path, leaf in flatten_params(params).items():
        array = np.ascontiguousarray(leaf, dtype=np.float32)
        sha.update(f"{path} {array.shape}\n".encode())
        sha.update(array.data)
    return sha.hexdigest()


def model_digest(spec: Spec, params_sha256: str, tokenizer: bytes, templates: Sequence[str] | None) -> str:
    """SHA-256 over all that decides what a model computes: two conversions of one file may differ in more than weights.

    tokenizer: the content of its tokenizer.json, empty where there is none.
    """
    parts = [spec_as_dict(spec), params_sha256, hashlib.sha256(tokenizer).hexdigest(), templates]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def seal(config: Mapping[str, Any], tokenizer: bytes) -> str:
    """SHA-256 over what config.json says, its own entry folder_sha256 aside, and the content of tokenizer.json."""
    content = {name: value for name, value in config.items() if name != "folder_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode() + tokenizer).hexdigest()


def write_checkpoint(
    folder: Path | str,
    spec: Spec,
    params: Params,
    manifest: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes] | None = None,
    templates: tuple[str, ...] | None = None,
    storage_dtype: str = "float32",
) -> None:
    """Write a model folder, all of it or nothing.

    Args:
        folder: a new one.
        spec: sizes of the model.
        params: its parameters.
        manifest: where the weights come from.
        tokenizer_files: content of Hugging Face's files by name (tokenizer.json, ...).
        templates: prompts of the model's own, with {} for the name.
        storage_dtype: of the parameters on disk; they load as float32.

    Raises ModelError when the folder is taken, ValueError when the parameters are not those of the spec.
    """
    expected = {path: leaf.shape for path, leaf in flatten_params(abstract_params(spec)).items()}
    found = {path: np.shape(leaf) for path, leaf in flatten_params(params).items()}
    if expected != found:
        wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        raise ValueError(f"parameters do not fit the spec at {', '.join(wrong[:5])}")
    stored = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.dtype(storage_dtype)), dict(params))
    image = spec.image if isinstance(spec, ClipSpec) else spec
    family = next(name for name, kind in FAMILIES.items() if isinstance(image, kind.image))
    config = {"format": FORMAT, "family": family, "spec": spec_as_dict(spec), "params_sha256": digest(stored)}
    if templates is not None:
        config["templates"] = list(templates)
    config["folder_sha256"] = seal(config, (tokenizer_files or {}).get("tokenizer.json", b""))
    with folder_written_beside(place(folder), last="config.json") as beside:
        to_its_end(save_params, beside / "params", stored)
        for name, content in (tokenizer_files or {}).items():
            (beside / name).write_bytes(content)
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (beside / "manifest.json").write_text(json.dumps(dict(manifest), indent=1) + "\n")


def save_params(folder: Path, params: Params) -> None:
    """Write a parameter tree with Orbax; returns when it is on disk."""
    import orbax.checkpoint as ocp

    # Compression takes 8 % off the file of a ViT-B/8 and adds half to the time of loading it.
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, params)


def read_params(folder: Path) -> Params:
    """The parameter tree that save_params wrote, as float32 arrays on the host.

    TensorStore, which Orbax is built on, reads the files: Orbax's own reader waits for ever for a pipe among them,
    leaves an event loop behind when they are damaged, and takes longer. Raises OSError or ValueError.
    """
    import tensorstore as ts

    paths = list(islice(folder.rglob("*"), MAX_FILES))
    odd = [path.name for path in paths if not path.is_file() and not path.is_dir()]
    if odd or len(paths) == MAX_FILES:
        raise ValueError(f"it holds {odd[0]}, which is no file" if odd else f"it holds {MAX_FILES} files or more")
    store = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}
    keys = [key.decode() for key in ts.KvStore.open(store).result().list().result()]
    names = [key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")]
    opened = [ts.open({"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}, open=True) for name in names]
    arrays = [array.result() for array in opened]
    if not all(jnp.issubdtype(array.dtype.numpy_dtype, jnp.floating) for array in arrays):
        raise ValueError("it holds numbers that are not floating point")
    size = sum(math.prod(array.shape) * array.dtype.numpy_dtype.itemsize for array in arrays)
    if size > MAX_RATIO * sum(path.stat().st_size for path in paths):
        raise ValueError(f"it describes {size} bytes, more than its files hold")
    reads = [array.read() for array in arrays]
    # Each leaf is let go of when it is copied: a model is never there twice.
    return unflatten_dict({name: aligned(reads.pop(0).result()) for name in names}, sep=".")


def read_spec(folder: Path | str) -> tuple[str, Spec, dict[str, Any]]:
    """Family, spec and the whole config of a model folder, without its weights. Raises ModelError."""
    path = Path(folder) / "config.json"
    if not os.path.exists(path):
        raise ModelError(f"{folder} is not a model folder: it has no config.json; make one with gla-jax convert.")
    config = read_json(path, "the description of a model", "convert the weights again", ModelError, MAX_CONFIG_BYTES)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(
            f"{folder} is not a folder of this program (its config.json does not say {FORMAT!r}); PyTorch and "
            f"Hugging Face weights are converted first: gla-jax convert {'|'.join(FAMILIES)} {folder} OUT."
        )
    try:
        if not is_bearable(config.get("templates"), list[str] | None):
            raise TypeError("templates are not a list of texts")
        return config["family"], _spec_from_dict(config["family"], config["spec"]), config
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model this version knows ({error}).") from None


def read_checkpoint(folder: Path | str) -> Checkpoint:
    """Load a model folder, parameters as float32 arrays on the host.

    Raises ModelError, also when config.json, the tokenizer or the parameters are not those that were written together.
    Folders of versions before folder_sha256 have no record of the former two: there a field of the spec is checked
    where the shapes of the parameters show it, which heads, activation, epsilon and pixels do not.
    """
    folder = Path(folder).absolute()
    family, spec, config = read_spec(folder)
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.is_file() else b""
    if config.get("folder_sha256", sealed := seal(config, content)) != sealed:
        raise ModelError(
            f"{folder / 'config.json'} or the tokenizer.json beside it was changed and no longer belongs to these "
            "weights; convert them again."
        )
    try:
        params = read_params(folder / "params")
        params_sha256 = digest(params)
    except Exception as error:
        reason = first_line(error).partition(" [")[0]  # TensorStore adds lines of its own source in brackets
        raise ModelError(f"{folder / 'params'} cannot be read ({reason[:200]}); convert the weights again.") from error
    if params_sha256 != config.get("params_sha256"):
        raise ModelError(f"{folder / 'params'} is damaged: its digest is not the one in config.json; convert again.")
    _check_sizes(folder, spec, params)
    for name, leaf in flatten_params(params).items():  # earlier versions converted such weights
        if not np.isfinite([leaf.min(initial=0), leaf.max(initial=0)]).all():
            raise ModelError(f"{folder / 'params'} holds NaN or infinity in {name}; convert weights without them.")
    templates = tuple(config["templates"]) if config.get("templates") else None
    sha256 = model_digest(spec, params_sha256, content, templates)
    return Checkpoint(family, spec, params, sha256, folder, templates)


def _check_sizes(folder: Path, spec: Spec, params: Params) -> None:
    """Raise ModelError where the shapes of parameters contradict a spec, field by field; nothing is traced."""
    path = folder / "config.json"
    towers = {"image ": spec.image, "text ": spec.text} if isinstance(spec, ClipSpec) else {"": spec}
    for part, tower in towers.items():
        try:
            own = params[part.strip()] if part else params
            sizes = _layer_sizes(own) if isinstance(spec, DinoiserSpec) else _tower_sizes(own)
        except (KeyError, TypeError, IndexError, ValueError):
            raise ModelError(f"{path} describes another family than the parameters are of; convert again.") from None
        for name, value in sizes.items():
            if name == "grid_side":
                stated = tower.image_size // tower.patch_size
            else:
                stated = tower.activation == "swiglu" if name == "gated" else getattr(tower, name, None)
            if stated != value:
                raise ModelError(f"{path} says {part}{name} {stated}, the parameters have {value}; convert again.")


def _tower_sizes(params: Params) -> dict[str, int]:
    """The sizes of a tower that the shapes of its parameters fix, by the fields of its spec or what these imply."""
    block = params["blocks_0"]
    mlp_width, width = np.shape(block["mlp"]["down"]["kernel"])
    sizes = {
        "depth": sum(name.startswith("blocks_") for name in params),
        "width": width,
        "mlp_width": mlp_width,
        "gated": np.shape(block["mlp"]["up"]["kernel"])[1] == 2 * mlp_width,
        "qkv_bias": "bias" in block["attention"]["query"],
        "layer_scale": "scale_1" in block,
    }
    if "projection" in params:
        sizes["embed_dim"] = np.shape(params["projection"]["kernel"])[1]
    if "token_embedding" in params:
        sizes["vocabulary"] = np.shape(params["token_embedding"]["embedding"])[0]
        if "positions" in params:
            sizes["context"] = np.shape(params["positions"])[0]
    else:
        tokens = params["patch_tokens"]
        sizes["patch_size"] = math.isqrt(np.shape(tokens["projection"]["kernel"])[0] // 3)
        if "positions" in tokens:
            sizes["grid_side"] = math.isqrt(np.shape(tokens["positions"])[0])
        sizes["registers"] = np.shape(tokens.get("registers", ()))[0]
    return sizes


def _layer_sizes(params: Params) -> dict[str, int]:
    """The sizes of CLIP-DINOiser's layers, by the fields of their spec."""
    width, projected = np.shape(params["projection"]["kernel"])[2:]
    return {"width": width, "projected": projected}


def aligned(array: np.ndarray) -> np.ndarray:
    """A float32 copy that begins where JAX needs it to share its memory with a processor's device."""
    size = array.size * np.dtype(np.float32).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    copy = room[begin : begin + size].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


def spec_as_dict(spec: Spec) -> dict[str, Any]:
    """A spec as config.json holds it, without what is None: fields that came later leave digests as they were."""

    def stored(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {STORED_NAMES.get(name, name): value for name, value in items if value is not None}

    return dataclasses.asdict(spec, dict_factory=stored)


def _spec_from_dict(family: str, values: Mapping[str, Any]) -> Spec:
    """The spec that config.json holds; raises KeyError, TypeError or ValueError when it is none."""
    image, text = FAMILIES[family]
    if text is not None:
        return ClipSpec(_tower_spec(image, values["image"]), _tower_spec(text, values["text"]))
    return _tower_spec(image, values)


def _tower_spec(kind: type, stored: Mapping[str, Any]) -> Any:
    names = {stored: name for name, stored in STORED_NAMES.items()}
    values = {names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in dict(stored).items()}
    spec = kind(**values)
    for name, hint in get_type_hints(kind).items():
        value = getattr(spec, name)
        entries = value if isinstance(value, tuple) else (value,)
        # A bool is a whole number for Python, so that true would be one head.
        if not is_bearable(value, hint, conf=JSON_NUMBERS) or (hint is not bool and any(x is True for x in entries)):
            raise TypeError(f"{name} is {value!r}")
        end = 1 if name in FRACTIONS else math.inf
        numbers = [] if isinstance(value, str | bool | None) else entries
        if any(not 0 <= number < end or (number == 0 and name not in NOT_POSITIVE) for number in numbers):
            raise ValueError(f"{name} is {value!r}")
    if hasattr(spec, "pixel_std") and not are_pixel_numbers(spec.pixel_mean, spec.pixel_std):
        raise ValueError(f"pixel_mean is {spec.pixel_mean} and pixel_std is {spec.pixel_std}")
    if spec.width % getattr(spec, "num_heads", 1):
        raise ValueError(f"{spec.num_heads} heads do not divide a width of {spec.width}")
    return spec
