"""Parameters of the image towers, and from windows to their tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from gla_jax.attention.cells import stitch_cells
from gla_jax.checkpoints.model_folder import Checkpoint, Params, VfmSpec
from gla_jax.config import BASELINES, REFERENCE, MethodConfig, SegmenterConfig
from gla_jax.images.windows import Windows, normalise
from gla_jax.support.arrays import Array, Float, typed
from gla_jax.towers.attention import QKV, multi_head_attention
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.towers.dinoiser import FROM_LAST, Dinoiser, DinoiserSpec
from gla_jax.towers.joint import ImageTokens
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import STACKED, Tower, VisionSpec, stack_blocks, unstack_blocks
from gla_jax.towers.placement import even_batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterParams:
    """The parameters of both image towers as one pytree whose structure carries their specs; one may be absent.

    Without a vfm the tower of the values may give features too, both from one pass of it. Without a CLIP the foundation
    model's features are keys and values, and the joint space is theirs. dinoiser: CLIP-DINOiser's layers on tokens of
    this CLIP, for the methods that read them.
    """

    clip: Params | None
    clip_spec: VisionSpec | None = field(metadata={"static": True})
    vfm: Params | None = None
    vfm_spec: VfmSpec | None = field(default=None, metadata={"static": True})
    dinoiser: Params | None = None
    dinoiser_spec: DinoiserSpec | None = field(default=None, metadata={"static": True})

    @classmethod
    def of(
        cls, clip: Checkpoint | None, vfm: Checkpoint | None = None, dinoiser: Checkpoint | None = None
    ) -> "SegmenterParams":
        """Those of loaded model folders."""
        image = (clip.params["image"], clip.spec.image) if clip else (None, None)
        beside = [(dict(part.params), part.spec) if part else (None, None) for part in (vfm, dinoiser)]
        return cls(*image, *beside[0], *beside[1])

    @property
    def features_spec(self) -> VfmSpec | None:
        """The spec of the tower whose patch tokens are compared, None where no tower gives features."""
        return self.vfm_spec or (self.clip_spec if self.clip_spec.gives_features else None)

    @property
    def values_spec(self) -> VisionSpec:
        """The spec of the tower whose outputs are the values: CLIP's where there is one."""
        return self.clip_spec or self.vfm_spec

    @property
    def joint_width(self) -> int:
        """E, the width of the space in which patches meet class embeddings."""
        return self.clip_spec.embed_dim if self.clip_spec else self.vfm_spec.width

    def tokens(self, config: SegmenterConfig) -> int:
        """S, the tokens of a window that are compared under some settings."""
        return (config.windows.crop // self.patch_size(config.method)) ** 2

    def patch_size(self, method: MethodConfig) -> int:
        """Pixels along a side of these tokens."""
        return (self.features_spec if method.attends_by_features and method.reads_vfm else self.values_spec).patch_size

    def stacked(self) -> "SegmenterParams":
        """The same with the blocks of each tower stacked, which run as one scanned program; CLIP's last stays apart."""
        vfm = self.vfm and stack_blocks(self.vfm, self.vfm_spec.depth)
        return replace(self, clip=self.clip and stack_blocks(self.clip, self.clip_spec.depth - 1), vfm=vfm)

    def unstacked(self) -> "SegmenterParams":
        """The inverse of stacked: paths of the leaves as on disk."""
        if not any(STACKED in tower for tower in (self.clip or {}, self.vfm or {})):
            return self
        return replace(self, clip=self.clip and unstack_blocks(self.clip), vfm=self.vfm and unstack_blocks(self.vfm))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowTokens:
    """Outputs of the towers for every window.

    qkv: of CLIP's last block, prefix tokens (CLS) first, each [W prefix+n C]; residual [W prefix+n C]: that block's
    input; both None without a CLIP; features [W S D]: the vision foundation model's patch tokens, or the projection of
    CLIP-DINOiser's layers, None where nothing reads them; joint [W n E]: patches in the joint space, where the baseline
    averages them in place of values; prefix [W p D]: of the foundation model, before the windows are stitched.
    """

    qkv: QKV | None
    residual: Float[Array, "W t C"] | None
    features: Float[Array, "W S D"] | None
    prefix_tokens: int = field(default=1, metadata={"static": True})
    joint: Float[Array, "W n E"] | None = None
    prefix: Float[Array, "W p D"] | None = None

    def compared(self, method: MethodConfig) -> tuple[Float[Array, "W S D"], ...]:
        """The features that GLA compares, of each pass: those of a model beside CLIP or a side of CLIP's own heads."""
        names, sides = BASELINES[method.baseline].features, QKV._fields
        return tuple(self.patches(getattr(self.qkv, name)) if name in sides else self.features for name in names)

    @property
    def values(self) -> Float[Array, "W n C"]:
        """The rows that the method averages: CLIP's values of the patches, or joint; without a CLIP the features."""
        if self.joint is not None:
            return self.joint
        return self.features if self.qkv is None else self.patches(self.qkv.values)

    def patches(self, tokens: Float[Array, "W t C"]) -> Float[Array, "W n C"]:
        """Tokens of CLIP's last block without the prefix."""
        return tokens[:, self.prefix_tokens :]


@jax.named_scope("gla-towers")
@typed
def encode_windows(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> WindowTokens:
    """Run both towers over the windows of one image, at most config.max_tower_batch of them at a time.

    Raises ValueError when the baseline needs a vision foundation model or trained layers and there are none.
    """
    return stitch_windows(encode_alone(params, windows, config), windows, params, config)


@jax.named_scope("gla-towers")
@typed
def encode_alone(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> WindowTokens:
    """encode_windows without what joins windows of an image: they may be of several images, or a part of one's."""
    dtype, method = jnp.dtype(config.dtype), config.method
    if method.reads_vfm and params.features_spec is None:
        raise ValueError(f"{method.baseline} compares features of a vision foundation model; none is given")
    if method.stitches and not isinstance(params.vfm_spec, DinoSpec | DinoV2Spec):
        raise ValueError(f"{method.baseline} opens the last block of DINO or DINOv2; another tower is given")
    if method.reads_dinoiser and params.dinoiser is None:
        raise ValueError(f"{method.baseline} compares features of CLIP-DINOiser's trained layers; none are given")

    def encode(pixels: Array) -> WindowTokens:  # [b 3 c c]
        tokens = features = joint = before = None
        if params.clip is not None:
            clip, tokens = _encode_clip(params, pixels, config)
        if params.vfm is not None and (method.reads_vfm or tokens is None):
            vfm_pixels = normalise(pixels, params.vfm_spec.pixel_mean, params.vfm_spec.pixel_std)
            vfm = build_tower(params.vfm_spec, dtype, **_tower_options(config))
            vision = vfm.apply({"params": params.vfm}, vfm_pixels)
            features = vision.patch_tokens
            if method.stitches:  # the last block waits for the windows of the whole image
                tokens_before = vision.blocks[-2] if len(vision.blocks) > 1 else vision.embedded
                # CLS and registers [b p D], patches [b S D].
                before, features = jnp.split(tokens_before, [params.vfm_spec.prefix_tokens], axis=1)
        elif method.reads_vfm:  # TIPSv2: the pass that gave q, k, v also gives features
            features = clip.apply({"params": params.clip}, tokens, method="features")
        if tokens is None:
            return WindowTokens(None, None, features)
        prefix = params.clip_spec.prefix_tokens
        if method.reads_dinoiser:
            features = _apply_dinoiser(params, clip, tokens, config, "project")
        if method.pools_joint:
            # Each value alone through the rest of the last block: what is averaged lies in the joint space already.
            patches = tokens.qkv.values[:, prefix:], tokens.residual[:, prefix:]
            joint = clip.apply({"params": params.clip}, *patches, method="project")
        return WindowTokens(tokens.qkv, tokens.residual, features, prefix, joint, before)

    return _in_batches(encode, windows, config)


@jax.named_scope("gla-towers")
@typed
def stitch_windows(
    tokens: WindowTokens, windows: Windows, params: SegmenterParams, config: SegmenterConfig
) -> WindowTokens:
    """Tokens whose features went through the foundation model's last block over the stitched windows of an image.

    Queries, keys, values and residual of that block are averaged where windows overlap, those of the prefix over all
    windows; every token then has the output of its cell. Without `prefix` the tokens stay as they are.

    Args:
        tokens: of encode_alone.
        windows: all of one image.
        params: of the foundation model.
        config: dtype and precision.
    """
    if tokens.prefix is None:
        return tokens
    spec, dtype, (count, side_squared, width) = params.vfm_spec, jnp.dtype(config.dtype), tokens.features.shape
    valid, prefix_tokens = jnp.asarray(windows.valid), tokens.prefix.shape[1]
    cells = stitch_cells(jnp.asarray(windows.origins), valid, side_squared, spec.patch_size)
    vfm, variables = build_tower(spec, dtype, precision=config.method.plain_precision), {"params": params.vfm}
    # The prefix of every window is an estimate of one and the same: its mean stands for the image.
    share = valid.astype(jnp.float32) / valid.astype(jnp.float32).sum()

    def onto_cells(each: Array) -> Array:  # [W t C] to [1 p+N C], p tokens of the prefix
        first, patches = jnp.split(each, [prefix_tokens], axis=1)
        first = (share[:, None, None] * first.astype(jnp.float32)).sum(0)
        return jnp.concatenate([first, cells.average(patches)]).astype(dtype)[None]

    whole = jnp.concatenate([tokens.prefix, tokens.features], axis=1)
    qkv = vfm.apply(variables, spec.depth - 1, "project_in", whole, method="of_block")
    qkv = QKV(*map(onto_cells, qkv))
    seen = jnp.concatenate([jnp.ones(prefix_tokens, bool), cells.valid])[None]  # [1 p+N], for all queries
    # In chunks on every platform: the scores grow with the square of the image.
    attended = multi_head_attention(qkv, spec.num_heads, seen, config.method.plain_precision, "chunked")
    features = vfm.apply(variables, onto_cells(whole), attended, method="close_last")[0, prefix_tokens:]
    # Every token takes the row of its cell: [N D] to [W S D].
    return replace(tokens, features=features[cells.cell].reshape(count, side_squared, width), prefix=None)


@typed
def foreground_logits(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> Float[Array, "W n"]:
    """Logit of every patch by CLIP-DINOiser's background layer, above 0 where it is foreground.

    A run of CLIP's tower of its own, up to the block that the layer reads; the rest is unused, so XLA drops it.
    """

    def encode(pixels: Array) -> Array:
        return _apply_dinoiser(params, *_encode_clip(params, pixels, config), config, "foreground")

    return _in_batches(encode, windows, config)


def _in_batches(encode: Callable[[Array], Any], windows: Windows, config: SegmenterConfig) -> Any:
    """encode(pixels [b 3 c c]) over all windows, at most config.max_tower_batch of them at a time."""
    pixels = jnp.asarray(windows.pixels)  # [W 3 c c], in batches [batches b 3 c c]
    size = even_batch(len(pixels), config.max_tower_batch)
    whole = len(pixels) // size
    batches = pixels[: whole * size].reshape(whole, size, *pixels.shape[1:])
    encoded = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), jax.lax.map(encode, batches))
    if len(pixels) == whole * size:
        return encoded
    rest = encode(pixels[whole * size :])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), encoded, rest)


def _tower_options(config: SegmenterConfig) -> dict[str, str]:
    # The form is None where the settings belong to no model.
    form = config.tower_attention or REFERENCE.tower_attention
    return {"precision": config.method.plain_precision, "attention_form": form}


def _encode_clip(
    params: SegmenterParams, pixels: Float[Array, "b 3 c c"], config: SegmenterConfig
) -> tuple[Tower, ImageTokens]:
    """CLIP's image tower, and its tokens of some windows."""
    pixels = normalise(pixels, params.clip_spec.pixel_mean, params.clip_spec.pixel_std)
    clip = build_tower(params.clip_spec, jnp.dtype(config.dtype), **_tower_options(config))
    return clip, clip.apply({"params": params.clip}, pixels, method="encode")


def _apply_dinoiser(
    params: SegmenterParams, clip: Tower, tokens: ImageTokens, config: SegmenterConfig, method: str
) -> Array:
    """A method of CLIP-DINOiser's layers on the patches that they read: the input of an MLP of CLIP."""
    index = params.clip_spec.depth - FROM_LAST
    before = tokens.blocks[index - 1] if index else tokens.embedded
    # The block's attention runs a second time here: its tokens are no output of the scanned tower.
    patches = clip.apply({"params": params.clip}, index, "mlp_input", before, method="of_block")
    layers = Dinoiser(params.dinoiser_spec, jnp.dtype(config.dtype), config.method.plain_precision)
    return layers.apply({"params": params.dinoiser}, patches[:, params.clip_spec.prefix_tokens :], method=method)
