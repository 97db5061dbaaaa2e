"""The sizes of named models and of model folders, whose weights need not be there."""

import re
from dataclasses import dataclass

from gla_jax.checkpoints.model_folder import ClipSpec, VfmSpec, read_spec
from gla_jax.models.pretrained import model_sources
from gla_jax.models.registry import DEFAULT_MODEL, MODELS
from gla_jax.support.errors import UserError
from gla_jax.towers.dinoiser import DinoiserSpec
from gla_jax.towers.kinds import FAMILIES
from gla_jax.towers.layers import VisionSpec


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
SIZES = {"clip": CLIP_SIZES, "tipsv2": CLIP_SIZES, "siglip": SIGLIP_SIZES} | dict.fromkeys(
    ("dino", "dinov2", "dinov3"), VFM_SIZES
)
DINO_LETTERS = {"s": "small", "b": "base", "l": "large"}
REGISTERS = 4


def named_spec(name: str) -> VisionSpec:
    """The sizes of a model of the models table; of a CLIP those of its image tower."""
    model, others = MODELS[name], {}
    sizes = SIZES[model.family]
    if model.family in ("dino", "dinov3"):
        word = DINO_LETTERS[re.search("vit(.)", name)[1]]
    else:
        word = re.search("|".join(sizes), name)[0]
    size = sizes[word]
    if model.family == "clip":
        others = {"embed_dim": size.embed_dim}
    elif model.family == "dinov2":
        registers = REGISTERS if name.endswith("-registers") else 0
        others = {"activation": "swiglu" if word == "giant" else "gelu", "registers": registers}
    kind, blocks = FAMILIES[model.family].image, (size.width, size.depth, size.num_heads, size.mlp_width)
    return kind(model.image_size, model.patch, *blocks, **others)


def model_specs(name: str) -> tuple[VisionSpec, VfmSpec | None]:
    """The image towers of CLIP+VFM, each of the models table or a folder. Raises UserError."""
    specs = [named_spec(each) if isinstance(each, str) else read_spec(each)[1] for each in model_sources(name)]
    specs = [spec for spec in specs if not isinstance(spec, DinoiserSpec)]  # no tower, and not run by what is measured
    clips = [spec.image if isinstance(spec, ClipSpec) else spec for spec in specs]
    clips, vfms = ([s for s in clips if hasattr(s, "embed_dim") == clip] for clip in (True, False))
    if len(clips) != 1 or len(vfms) > 1:
        raise UserError(f"{name} is not one CLIP, or one CLIP and one features model, as {DEFAULT_MODEL} is.")
    return clips[0], vfms[0] if vfms else None
