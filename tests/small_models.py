"""A model pair of random weights with patches of 16 and 8 pixels, small enough to run in a test."""

from pathlib import Path

import jax
import numpy as np

from gla_jax.checkpoints.model_folder import ClipSpec, Params, Spec, abstract_params, write_checkpoint
from gla_jax.tiny_world.vocabulary import CONTEXT, END, TEMPLATES, tokenizer_files, words
from gla_jax.towers.clip import ClipImageSpec, ClipTextSpec
from gla_jax.towers.dino import DinoSpec

IMAGE = ClipImageSpec(image_size=32, patch_size=16, width=16, depth=1, num_heads=2, mlp_width=16, embed_dim=8)
VFM = DinoSpec(image_size=32, patch_size=8, width=8, depth=1, num_heads=2, mlp_width=8)
# What tokenizers treat each in a way of its own: case, white space, apostrophes and digits, accents, other scripts.
SPELLINGS = (
    "a photo of a cat.",
    "A  Photo of the\tCAT",
    "it's the dog's 3 bones; 42nd street",
    "naïve café, crème brûlée",
    "日本の寺院 🏯",
)


def random_params(spec: Spec, seed: int) -> Params:
    """Weights under which every stage matters; drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), abstract_params(spec))


def small_clip() -> ClipSpec:
    """The CLIP of the pair."""
    text = ClipTextSpec(
        vocabulary=len(words()),
        context=CONTEXT,
        width=16,
        depth=1,
        num_heads=2,
        mlp_width=16,
        embed_dim=8,
        end_token=words().index(END),
    )
    return ClipSpec(IMAGE, text)


def random_pair(folder: Path, seed: int = 0) -> Path:
    """A folder with clip/ and vfm/ that --model takes."""
    spec = small_clip()
    manifest = {"source": "random"}
    write_checkpoint(folder / "clip", spec, random_params(spec, seed), manifest, tokenizer_files(), templates=TEMPLATES)
    write_checkpoint(folder / "vfm", VFM, random_params(VFM, 1), manifest)
    return folder
