"""The sizes of named models and of model folders, whose weights need not be there."""

import re
from dataclasses import dataclass

from gla_jax.checkpoints.model_folder import ClipSpec, VfmSpec, read_spec
from gla_jax.models.pretrained import model_sources
from gla_jax.models.registry import DEFAULT_MODEL, MODELS
from gla_jax.support.errors import UserError
from gla_jax.towers.clip import ClipImageSpec
from gla_jax.towers.dino import DinoV2Spec
from gla_jax.towers.dinoiser import DinoiserSpec
from gla_jax.towers.kinds import FAMILIES
from gla_jax.towers.layers import VisionSpec
from gla_jax.towers.siglip import SiglipImageSpec
from gla_jax.towers.tips import TipsImageSpec


@dataclass(frozen=True)
class Size:
    """Sizes of a transformer; embed_dim: of CLIP's joint space."""

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int = 0


CLIP_SIZES = {
    "8m": Size(256, 10, 4, 1024, 512),
    "base": Size(768, 12, 12, 3072, 512),
    "large": Size(1024, 24, 16, 4096, 768),
    "huge": Size(1280, 32, 16, 5120, 1024),
    "bigg": Size(1664, 48, 16, 8192, 1280),
}
SIGLIP_SIZES = {
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "so400m": Size(1152, 27, 16, 4304),
}
VFM_SIZES = {
    "small": Size(384, 12, 6, 1536),
    "base": Size(768, 12, 12, 3072),
    "large": Size(1024, 24, 16, 4096),
    "giant": Size(1536, 40, 24, 4096),
}
DINO_LETTERS = {"s": "small", "b": "base", "l": "large"}
REGISTERS = 4


def named_spec(name: str) -> VisionSpec:
    """The sizes of a model of the models table; of a CLIP those of its image tower."""
    model = MODELS[name]
    sides = model.image_size, model.patch
    if model.family == "clip":
        size = CLIP_SIZES[re.search("|".join(CLIP_SIZES), name)[0]]
        return ClipImageSpec(*sides, size.width, size.depth, size.num_heads, size.mlp_width, size.embed_dim)
    if model.family == "siglip":
        size = SIGLIP_SIZES[re.search("|".join(SIGLIP_SIZES), name)[0]]
        return SiglipImageSpec(*sides, size.width, size.depth, size.num_heads, size.mlp_width)
    if model.family == "tipsv2":
        size = CLIP_SIZES[re.search("|".join(CLIP_SIZES), name)[0]]
        return TipsImageSpec(*sides, size.width, size.depth, size.num_heads, size.mlp_width)
    if model.family in ("dino", "dinov3"):
        size = VFM_SIZES[DINO_LETTERS[re.search("vit(.)", name)[1]]]
        kind = FAMILIES[model.family].image
        return kind(*sides, size.width, size.depth, size.num_heads, size.mlp_width)
    letters = re.search("|".join(VFM_SIZES), name)[0]
    size, registers = VFM_SIZES[letters], REGISTERS if name.endswith("-registers") else 0
    activation = "swiglu" if letters == "giant" else "gelu"
    return DinoV2Spec(*sides, size.width, size.depth, size.num_heads, size.mlp_width, activation, registers)


def model_specs(name: str) -> tuple[VisionSpec, VfmSpec | None]:
    """The image towers of CLIP+VFM, each of the models table or a folder. Raises UserError."""
    specs = [named_spec(each) if isinstance(each, str) else read_spec(each)[1] for each in model_sources(name)]
    specs = [spec for spec in specs if not isinstance(spec, DinoiserSpec)]  # no tower, and not run by what is measured
    clips = [spec.image if isinstance(spec, ClipSpec) else spec for spec in specs]
    clips, vfms = ([s for s in clips if hasattr(s, "embed_dim") == clip] for clip in (True, False))
    if len(clips) != 1 or len(vfms) > 1:
        raise UserError(f"{name} is not one CLIP, or one CLIP and one features model, as {DEFAULT_MODEL} is.")
    return clips[0], vfms[0] if vfms else None
