"""The text embeddings: one unit feature for every prompt, computed once for a model, its templates and the names."""

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.checkpoints.model_folder import Checkpoint, Params
from gla_jax.support.cache import cache_folder
from gla_jax.support.shapes import Array, Float, Int
from gla_jax.text.prompts import Classes, average_templates, check_templates, imagenet_templates
from gla_jax.text.tokenizer import FolderTokenizer
from gla_jax.towers.clip_text import ClipText, ClipTextSpec

TEXT_BATCH = 64


def text_embeddings(
    clip: Checkpoint,
    tokenizer: FolderTokenizer,
    classes: Classes,
    templates: Sequence[str] | None = None,
    cache_dir: Path | str | None = None,
) -> Float[Array, "Q E"]:
    """Unit text features of every prompt, float32; templates default to CLIP's 80.

    Kept on disk under the digest of model, templates and prompts; a damaged file is made again. Warns of words that the
    model does not know.
    """
    templates = imagenet_templates() if templates is None else check_templates(templates)
    shape = len(classes.prompts), clip.spec.text.embed_dim
    key = json.dumps([clip.sha256, templates, classes.prompts])
    path = cache_folder("text", cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    # Before the file is read, so that every run warns; bare, so that words are named once and not once a template.
    tokenizer(classes.prompts, clip.spec.text.context)
    embeddings = _read(path, shape)
    if embeddings is None:
        texts = [template.replace("{}", prompt) for prompt in classes.prompts for template in templates]
        features = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
        embeddings = np.asarray(average_templates(jnp.asarray(features.reshape(shape[0], len(templates), -1))))
        _write(path, embeddings)
    return jnp.asarray(embeddings)


def encode_texts(
    params: Params, spec: ClipTextSpec, tokenizer: FolderTokenizer, texts: Sequence[str]
) -> Float[np.ndarray, "Q E"]:
    """CLIP text features, not normalised; texts of similar length run together, cut behind the longest of them.

    The tower is causal, so what comes after the end token does not matter.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model does not know")
        ids = tokenizer(texts, spec.context)
    lengths = (ids == spec.end_token).argmax(1) + 1
    order = np.argsort(lengths, kind="stable")
    params = jax.tree.map(partial(jax.device_put, may_alias=True), dict(params))
    features = np.empty((len(texts), spec.embed_dim), np.float32)
    for start in range(0, len(texts), TEXT_BATCH):
        rows = order[start : start + TEXT_BATCH]
        length = min(-(-int(lengths[rows].max()) // 8) * 8, spec.context)
        batch = np.zeros((TEXT_BATCH, length), np.int32)
        batch[: len(rows)] = ids[rows, :length]
        features[rows] = np.asarray(_encode(params, batch, spec=spec))[: len(rows)]
    return features


@partial(jax.jit, static_argnames="spec")
def _encode(params: Params, ids: Int[Array, "Q t"], spec: ClipTextSpec) -> Float[Array, "Q E"]:
    return ClipText(spec).apply({"params": params}, ids)


def _read(path: Path, shape: tuple[int, int]) -> Float[np.ndarray, "Q E"] | None:
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if embeddings.shape != shape or embeddings.dtype != np.float32:
        return None
    return embeddings if np.allclose(np.square(embeddings).sum(1), 1, atol=1e-3) else None


def _write(path: Path, embeddings: Float[np.ndarray, "Q E"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(prefix=".", suffix=".npy", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, embeddings)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
