"""Text embeddings: a row of length one for every prompt, computed once for a model, its templates and the names."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.checkpoints.model_folder import Checkpoint, Params
from gla_jax.support.cache import usable_cache, warn_unusable
from gla_jax.support.errors import ModelError
from gla_jax.support.files import write_beside
from gla_jax.support.shapes import Array, Float, Int
from gla_jax.text.prompts import Classes, average_templates, check_templates, clean_text, imagenet_templates
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
    """Text features of length one of every prompt, float32, computed once and then kept on disk.

    Warns of words that the model does not know. A damaged file is computed again.

    Args:
        clip: both towers.
        tokenizer: of the same model folder.
        classes: their prompts are cleaned as OpenAI's CLIP cleans them.
        templates: with {} for a prompt; CLIP's 80 where left out.
        cache_dir: in place of the user's cache folder.
    """
    templates = imagenet_templates() if templates is None else check_templates(templates)
    templates, prompts = ([clean_text(text) for text in texts] for texts in (templates, classes.prompts))
    key = hashlib.sha256(json.dumps([clip.sha256, templates, prompts]).encode()).hexdigest()
    folder = usable_cache("text", cache_dir)
    path = folder and folder / f"{key}.npy"
    # Before the file is read, so that every run warns; bare, so that words are named once and not once a template.
    tokenizer(prompts, clip.spec.text.context)
    shape = len(prompts), clip.spec.text.embed_dim
    embeddings = path and _read(path, shape)
    if embeddings is None:
        texts = [template.replace("{}", prompt) for prompt in prompts for template in templates]
        features = encode_texts(clip.params["text"], clip.spec.text, tokenizer, texts)
        embeddings = np.asarray(average_templates(jnp.asarray(features.reshape(shape[0], len(templates), -1))))
        if path:
            try:
                write_beside(path, lambda file: np.save(file, embeddings))
            except OSError as error:
                warn_unusable(path.parent, error)
    return jnp.asarray(embeddings)


def encode_texts(
    params: Params, spec: ClipTextSpec, tokenizer: FolderTokenizer, texts: Sequence[str]
) -> Float[np.ndarray, "Q E"]:
    """CLIP text features, not normalised; texts of similar length run together, cut behind the longest of them.

    Args:
        params: of the text tower.
        spec: its sizes.
        tokenizer: of the same model.
        texts: prompts in their templates.

    Raises ModelError when the tokenizer is another model's and when features cannot be normalised.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the model does not know")
        ids = tokenizer(texts, spec.context)
    if ids.max(initial=0) >= spec.vocabulary or tokenizer.tokenizer.encode("").ids[-1:] != [spec.end_token]:
        raise ModelError(
            f"the tokenizer.json of the model is another model's: its text tower has {spec.vocabulary} tokens and ends "
            f"texts with {spec.end_token}; convert the model again."
        )
    lengths = (ids == spec.end_token).argmax(1) + 1
    order = np.argsort(lengths, kind="stable")
    params = jax.tree.map(partial(jax.device_put, may_alias=True), dict(params))
    features = np.empty((len(texts), spec.embed_dim), np.float32)
    for start in range(0, len(texts), TEXT_BATCH):
        rows = order[start : start + TEXT_BATCH]
        length = min(-(-int(lengths[rows].max()) // 8) * 8, spec.context)
        # The tower is causal: what comes after the end token does not matter.
        batch = np.zeros((TEXT_BATCH, length), np.int32)
        batch[: len(rows)] = ids[rows, :length]
        features[rows] = np.asarray(_encode(params, batch, spec=spec))[: len(rows)]
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(features, axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ModelError("the text features are zero or not finite: the model is damaged; convert it again.")
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
