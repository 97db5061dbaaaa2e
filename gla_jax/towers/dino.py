"""Self-supervised vision transformers: DINO (Caron et al. 2021), GLA-CLIP's default, and DINOv2 (Oquab et al. 2023).

DINOv2 comes with or without register tokens (Darcet et al. 2023).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from gla_jax.support.arrays import Array, Float, typed
from gla_jax.towers.attention import Rotation
from gla_jax.towers.layers import LayerNorm, Tower, VisionSpec, transformer_blocks
from gla_jax.towers.patches import patch_tokens
from gla_jax.towers.positions import PositionResize


@dataclass(frozen=True)
class DinoSpec(VisionSpec):
    """Sizes of a DINO tower.

    position_offset is 0.1 for weights of torch.hub; position_resize None is "bicubic" (see resize_positions).
    """

    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    position_offset: float = 0.0
    position_resize: PositionResize | None = None


class VisionTokens(NamedTuple):
    """Named intermediates of a self-supervised tower; t counts CLS, then registers, then patches.

    embedded [B t C]: the input of the first block. blocks: the output of every block, each [B t C]. cls_token [B C] and
    patch_tokens [B S C]: after the last LayerNorm.
    """

    embedded: Array
    blocks: tuple[Array, ...]
    cls_token: Array
    patch_tokens: Array


class Dino(Tower):
    """DINO's image tower: pixels to patch tokens after the last LayerNorm."""

    spec: DinoSpec

    def setup(self):
        spec = self.spec
        # The models with registers were released with the antialiased kernel.
        resize = spec.position_resize or ("bicubic_antialias" if spec.registers else "bicubic")
        self.patch_tokens = patch_tokens(self, position_resize=resize, position_offset=spec.position_offset)
        self.blocks = transformer_blocks(self)
        self.norm = LayerNorm(spec.layer_norm_eps, self.dtype)

    @typed
    def __call__(self, pixels: Float[Array, "B 3 h w"]) -> VisionTokens:
        """All intermediates; pixels normalised with ImageNet's mean and std.

        Raises ValueError when the patch size does not divide h and w.
        """
        return vision_tokens(self, self.patch_tokens(pixels.astype(self.dtype)))


def vision_tokens(tower: Tower, embedded: Float[Array, "B t C"], rotation: Rotation | None = None) -> VisionTokens:
    """The blocks and the last LayerNorm of a tower over embedded tokens; rotation: of its queries and keys."""
    outputs = tower.run_blocks(embedded, rotation=rotation)
    final = tower.norm(outputs[-1])
    return VisionTokens(embedded, outputs, final[:, 0], final[:, tower.spec.prefix_tokens :])


@dataclass(frozen=True)
class DinoV2Spec(VisionSpec):
    """Sizes of a DINOv2 tower; the giant one has activation "swiglu" and mlp_width counts its gated half.

    position_offset is 0.1 for weights of torch.hub without registers; position_resize None is the kernel of the
    release, "bicubic" or, with registers, "bicubic_antialias" (see resize_positions).
    """

    activation: Literal["gelu", "swiglu"] = "gelu"
    registers: int = 0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    position_offset: float = 0.0
    position_resize: PositionResize | None = None
    layer_scale = True


class DinoV2(Dino):
    """DINOv2's image tower: DINO's, with registers, gated MLPs and layer scales as its spec says."""

    spec: DinoV2Spec
