"""CLIP-DINOiser's two trained layers: the names in its checkpoint, last.pt."""

from collections.abc import Mapping

from gla_jax.convert.architecture import Facts, shape_of
from gla_jax.convert.configs import Pixels
from gla_jax.convert.rules import Drop, Routed, Rule, Table
from gla_jax.towers.dinoiser import DinoiserSpec

RULES: Table = (
    Rule(r"obj_proj\.weight", "projection/kernel", "convolution"),
    Rule(r"obj_proj\.bias", "projection/bias"),
    Rule(r"bkg_decoder\.weight", "background/kernel", "patches"),  # 1x1
    Rule(r"bkg_decoder\.bias", "background/bias"),
    # Saved whole, the model holds its frozen CLIP too, which the user names by itself, and what trained the layers.
    Drop(r"(?:clip_backbone|vit_encoder|ms_loss|bkg_loss|found_model|decode_head)\..+", "frozen or of training"),
)


def dinoiser_spec(routed: Mapping[str, Routed], facts: Facts, pixels: Pixels | None) -> DinoiserSpec:
    """The spec of the layers, which their shapes show whole."""
    width, projected = shape_of(routed, "projection/kernel", 4)[2:]
    return DinoiserSpec(width, projected)
