"""The pure functions from windows to token logits, stage by stage (DESIGN 2): they jit, vmap and differentiate."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gla_jax.attention.attend import clearclip_queries, gather_values
from gla_jax.attention.baselines import HOSTS, Feature, window_attention
from gla_jax.attention.buffer import inverse_lengths, resample_tokens
from gla_jax.checkpoints.model_folder import Params, VfmSpec, build_vfm
from gla_jax.config import MethodConfig, SegmenterConfig
from gla_jax.images.windows import IMAGENET_DEVIATION, IMAGENET_MEAN, Windows, normalise
from gla_jax.support.shapes import Array, Float, typed
from gla_jax.towers.clip_image import ClipImage, ClipImageSpec
from gla_jax.towers.layers import Heads


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterParams:
    """The parameters of both image towers as one pytree whose structure carries their specs; vfm may be absent."""

    clip: Params
    clip_spec: ClipImageSpec = field(metadata={"static": True})
    vfm: Params | None = None
    vfm_spec: VfmSpec | None = field(default=None, metadata={"static": True})


class WindowTokens(NamedTuple):
    """What the towers know of every window.

    heads: q, k, v of CLIP's last block, CLS first, each [W 1+n C]; residual [W 1+n C]: that block's input; features
    [W S D]: the vision foundation model's patch tokens, None when the host does not read them.
    """

    heads: Heads
    residual: Float[Array, "W t C"]
    features: Float[Array, "W S D"] | None


@typed
def encode_windows(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> WindowTokens:
    """Run the towers over the windows, config.windows_at_once of them at a time.

    Raises ValueError when the host needs a vision foundation model and there is none.
    """
    dtype = jnp.dtype(config.dtype)
    needs_vfm = "vfm" in HOSTS[config.method.host].features
    if needs_vfm and params.vfm is None:
        raise ValueError(f"the host {config.method.host} compares features of a vision foundation model; none is given")

    def encode(pixels: Array) -> WindowTokens:
        clip_pixels = normalise(pixels[None], params.clip_spec.pixel_mean, params.clip_spec.pixel_deviation)
        tokens = ClipImage(params.clip_spec, dtype).apply({"params": params.clip}, clip_pixels, method="encode")
        features = None
        if needs_vfm:
            vfm_pixels = normalise(pixels[None], IMAGENET_MEAN, IMAGENET_DEVIATION)
            features = build_vfm(params.vfm_spec, dtype).apply({"params": params.vfm}, vfm_pixels).patch_tokens[0]
        return WindowTokens(Heads(*(x[0] for x in tokens.heads)), tokens.residual[0], features)

    return jax.lax.map(encode, jnp.asarray(windows.pixels), batch_size=config.windows_at_once)


@typed
def compared_features(tokens: WindowTokens, name: Feature) -> Float[Array, "W S D"]:
    """What GLA compares in one of a host's passes: the VFM's patch tokens or a side of CLIP's own heads."""
    return tokens.features if name == "vfm" else getattr(tokens.heads, name)[:, 1:]


@typed
def gather_windows(
    tokens: WindowTokens, windows: Windows, params: SegmenterParams, method: MethodConfig
) -> Float[Array, "W S C"]:
    """What CLIP's last attention hands to its output projection for every patch, by the method's rule."""
    host = HOSTS[method.host]
    if not method.gathers_by_features:
        return window_attention(tokens.heads, host, params.clip_spec.heads)[:, 1:]
    valid, origins = jnp.asarray(windows.valid), jnp.asarray(windows.origins)
    values = tokens.heads.values[:, 1:]
    passes = []
    for name in host.features:
        features = compared_features(tokens, name)
        first = clearclip_queries(features, valid, origins, params.clip_spec.patch_size, method)
        passes.append(gather_values(features, values, valid, method, first))
    return sum(passes)


@typed
def patch_features(
    gathered: Float[Array, "W S C"], tokens: WindowTokens, params: SegmenterParams, config: SegmenterConfig
) -> Float[Array, "W S E"]:
    """Gathered values to CLIP's joint space: out_proj, residual and MLP for whole-block hosts, ln_post, proj."""
    dtype = jnp.dtype(config.dtype)
    residual = None
    if HOSTS[config.method.host].whole_block:
        residual = resample_tokens(tokens.residual[:, 1:], gathered.shape[1]).astype(dtype)
    clip = ClipImage(params.clip_spec, dtype)
    joint = clip.apply({"params": params.clip}, gathered.astype(dtype), residual, method="project")
    return joint.astype(jnp.float32)


@typed
def token_logits(features: Float[Array, "W S E"], text_bank: Float[Array, "Q E"]) -> Float[Array, "W S Q"]:
    """Cosine similarity of every patch with every text query; the bank's rows have length one."""
    features = features.astype(jnp.float32)
    # Lengths are divided out afterwards: unit rows would be a second copy of all features.
    products = jnp.einsum("wse,qe->wsq", features, text_bank, precision="highest")
    return products * inverse_lengths(features)


@typed
def segment_features(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> Float[Array, "W S E"]:
    """Windows to patch features in the joint space: everything that does not depend on the text."""
    tokens = encode_windows(params, windows, config)
    gathered = gather_windows(tokens, windows, params, config.method)
    return patch_features(gathered, tokens, params, config)


@typed
def segment_logits(
    params: SegmenterParams, windows: Windows, text_bank: Float[Array, "Q E"], config: SegmenterConfig
) -> Float[Array, "W S Q"]:
    """Windows and text bank to token logits before the logit scale, float32; padded windows hold no meaning."""
    return token_logits(segment_features(params, windows, config), text_bank)
