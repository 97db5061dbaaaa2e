"""The table of towers: the module that runs a spec, and the towers that each family of models has.

A new tower is a spec and a module in one file of this folder, a row in each of the two tables, and its published names
in one file of convert/ (convert/families.py has the table of those).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from gla_jax.towers.clip import ClipImage, ClipImageSpec, ClipText, ClipTextSpec
from gla_jax.towers.dino import Dino, DinoSpec, DinoV2, DinoV2Spec
from gla_jax.towers.dinoiser import DinoiserSpec
from gla_jax.towers.dinov3 import DinoV3, DinoV3Spec
from gla_jax.towers.layers import TextSpec, Tower, VisionSpec
from gla_jax.towers.siglip import SiglipImage, SiglipImageSpec, SiglipText, SiglipTextSpec
from gla_jax.towers.tips import TipsImage, TipsImageSpec, TipsText, TipsTextSpec

TOWERS: Mapping[type, type[Tower]] = {
    ClipImageSpec: ClipImage,
    ClipTextSpec: ClipText,
    DinoSpec: Dino,
    DinoV2Spec: DinoV2,
    DinoV3Spec: DinoV3,
    SiglipImageSpec: SiglipImage,
    SiglipTextSpec: SiglipText,
    TipsImageSpec: TipsImage,
    TipsTextSpec: TipsText,
}


class Family(NamedTuple):
    """The specs of a family's towers.

    With a text tower the image tower gives values (joint.ImageTower); if image.gives_features also features(tokens)
    [B n D], from the same pass. Without one it gives features alone: tower(pixels).patch_tokens [B n D].
    CLIP-DINOiser's are no tower but layers on one's tokens.
    """

    image: type[VisionSpec] | type[DinoiserSpec]
    text: type[TextSpec] | None = None


FAMILIES: Mapping[str, Family] = {
    "clip": Family(ClipImageSpec, ClipTextSpec),
    "siglip": Family(SiglipImageSpec, SiglipTextSpec),
    "dino": Family(DinoSpec),
    "dinov2": Family(DinoV2Spec),
    "clip-dinoiser": Family(DinoiserSpec),
    "dinov3": Family(DinoV3Spec),
    "tipsv2": Family(TipsImageSpec, TipsTextSpec),
}


def build_tower(spec: VisionSpec | TextSpec, dtype: jnp.dtype = jnp.float32, **options: Any) -> Tower:
    """The Linen module of a spec; options: precision and attention_form of its class."""
    return TOWERS[type(spec)](spec, dtype, **options)
