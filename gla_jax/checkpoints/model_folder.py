"""A model folder: config.json, Orbax params, manifest.json for CLIP the tokenizer. Written beside, then renamed."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.support.errors import ModelError
from gla_jax.support.interrupts import to_its_end
from gla_jax.support.new_folder import folder_written_beside
from gla_jax.towers.clip_image import ClipImage, ClipImageSpec
from gla_jax.towers.clip_text import ClipText, ClipTextSpec
from gla_jax.towers.dino import Dino, DinoSpec
from gla_jax.towers.dinov2 import DinoV2, DinoV2Spec

FORMAT = "gla-jax model 1"
# How config.json names fields of a spec: folders written by earlier versions stay readable.
STORED_NAMES = {"num_heads": "heads", "embed_dim": "joint_width", "pixel_std": "pixel_deviation"}
ALIGNMENT = 64  # bytes, of arrays that XLA takes as they are
Params = Mapping[str, Any]


@dataclass(frozen=True)
class ClipSpec:
    """Both towers of a CLIP model."""

    image: ClipImageSpec
    text: ClipTextSpec


VfmSpec = DinoSpec | DinoV2Spec
Spec = ClipSpec | VfmSpec
FAMILIES: dict[str, type] = {"clip": ClipSpec, "dino": DinoSpec, "dinov2": DinoV2Spec}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model folder; sha256 is its model_digest, templates its own prompt templates if any."""

    family: str
    spec: Spec
    params: Params
    sha256: str
    folder: Path
    templates: tuple[str, ...] | None = None


def build_vfm(spec: VfmSpec, dtype: jnp.dtype = jnp.float32, **options: Any) -> nn.Module:
    """The Linen module of a vision foundation model's spec; options: precision and head_by_head of its class."""
    return (Dino if isinstance(spec, DinoSpec) else DinoV2)(spec, dtype, **options)


def initial_params(spec: Spec, key: jax.Array) -> Params:
    """Random parameters of a model: {"image": ..., "text": ...} for CLIP, the tower's own tree otherwise; float32."""
    if isinstance(spec, ClipSpec):
        image_key, text_key = jax.random.split(key)
        side = spec.image.patch_size
        image = ClipImage(spec.image).init(image_key, jnp.zeros((1, 3, side, side)))["params"]
        text = ClipText(spec.text).init(text_key, jnp.zeros((1, 2), jnp.int32))["params"]
        return {"image": image, "text": text}
    side = spec.patch_size
    return build_vfm(spec).init(key, jnp.zeros((1, 3, side, side)))["params"]


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

    manifest says where the weights come from; tokenizer_files are Hugging Face's (tokenizer.json, ...); storage_dtype
    is what the parameters are stored in, they load as float32. Raises ModelError when the folder is taken, ValueError
    when the parameters are not those of the spec.
    """
    expected = {path: leaf.shape for path, leaf in flatten_params(abstract_params(spec)).items()}
    found = {path: np.shape(leaf) for path, leaf in flatten_params(params).items()}
    if expected != found:
        wrong = sorted(path for path in expected.keys() | found.keys() if expected.get(path) != found.get(path))
        raise ValueError(f"parameters do not fit the spec at {', '.join(wrong[:5])}")
    stored = jax.tree.map(lambda leaf: np.asarray(leaf).astype(jnp.dtype(storage_dtype)), dict(params))
    family = next(name for name, kind in FAMILIES.items() if isinstance(spec, kind))
    config = {"format": FORMAT, "family": family, "spec": spec_as_dict(spec), "params_sha256": digest(stored)}
    if templates is not None:
        config["templates"] = list(templates)
    with folder_written_beside(Path(folder)) as beside:
        to_its_end(save_params, beside / "params", stored)
        for name, content in (tokenizer_files or {}).items():
            (beside / name).write_bytes(content)
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (beside / "manifest.json").write_text(json.dumps(dict(manifest), indent=1) + "\n")


def save_params(folder: Path, params: Params) -> None:
    """Write a parameter tree with Orbax; returns when it is on disk."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, params)


def read_spec(folder: Path | str) -> tuple[str, Spec, dict[str, Any]]:
    """Family, spec and the whole config of a model folder, without its weights. Raises ModelError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not a model folder: it has no config.json; make one with gla-jax convert."
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); convert the weights again.") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ModelError(
            f"{folder} is not a folder of this program (its config.json does not say {FORMAT!r}); PyTorch and "
            f"Hugging Face weights are converted first: gla-jax convert clip|dino|dinov2 {folder} OUT."
        )
    try:
        return config["family"], _spec_from_dict(config["family"], config["spec"]), config
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} does not describe a model this version knows ({error}).") from None


def read_checkpoint(folder: Path | str) -> Checkpoint:
    """Load a model folder, parameters as float32 arrays on the host, and check their digest. Raises ModelError."""
    folder = Path(folder).absolute()
    family, spec, config = read_spec(folder)
    import orbax.checkpoint as ocp

    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            stored = checkpointer.restore(
                folder / "params",
                ocp.args.PyTreeRestore(
                    restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract_params(spec))
                ),
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{folder / 'params'} cannot be read ({reason[:200]}); convert the weights again.") from error
    if digest(stored) != config.get("params_sha256"):
        raise ModelError(f"{folder / 'params'} is damaged: its digest is not the one in config.json; convert again.")
    leaves, tree = jax.tree.flatten(stored)
    del stored  # each leaf is let go of when it is copied, so that a model is never there twice
    for index in range(len(leaves)):
        leaves[index] = aligned(leaves[index])
    params = jax.tree.unflatten(tree, leaves)
    templates = tuple(config["templates"]) if config.get("templates") else None
    tokenizer = folder / "tokenizer.json"
    content = tokenizer.read_bytes() if tokenizer.is_file() else b""
    sha256 = model_digest(spec, config["params_sha256"], content, templates)
    return Checkpoint(family, spec, params, sha256, folder, templates)


def aligned(array: np.ndarray) -> np.ndarray:
    """A float32 copy that begins where JAX needs it to share its memory with a processor's device."""
    size = array.size * np.dtype(np.float32).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    copy = room[begin : begin + size].view(np.float32).reshape(array.shape)
    copy[...] = array
    return copy


def spec_as_dict(spec: Spec) -> dict[str, Any]:
    """A spec as config.json holds it."""
    return dataclasses.asdict(spec, dict_factory=lambda items: {STORED_NAMES.get(k, k): v for k, v in items})


def _spec_from_dict(family: str, values: Mapping[str, Any]) -> Spec:
    names = {stored: name for name, stored in STORED_NAMES.items()}

    def read(kind: type, stored: Mapping[str, Any]) -> Any:
        return kind(**{names.get(k, k): tuple(v) if isinstance(v, list) else v for k, v in stored.items()})

    if family == "clip":
        return ClipSpec(read(ClipImageSpec, values["image"]), read(ClipTextSpec, values["text"]))
    return read(FAMILIES[family], values)
