"""The order from windows to token logits: towers, aggregation, projection, similarity to the text (DESIGN 2).

Pure functions: they jit, vmap and differentiate. The same functions run as one program or, for large images, in steps
over chunks of windows and queries (segment_in_steps).
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from gla_jax.attention.attend import FORMS, attend_alone, attend_buffer
from gla_jax.attention.baselines import window_attention
from gla_jax.attention.buffer import Buffer, fill_buffer, neighbourhood_queries, resample_tokens
from gla_jax.checkpoints.model_folder import Params, VfmSpec
from gla_jax.config import BASELINES, REFERENCE, MethodConfig, SegmenterConfig
from gla_jax.images.windows import Windows, normalise
from gla_jax.support.arrays import Array, Float, inverse_norms, typed
from gla_jax.support.steps import ONE_PROGRAM, OneProgram, Progress, Steps
from gla_jax.towers.attention import QKV
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import STACKED, VisionSpec, stack_blocks, unstack_blocks
from gla_jax.towers.placement import even_batch, padded_to_steps, step_batch

QUERY_CHUNK = 4096  # queries of a step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmenterParams:
    """The parameters of both image towers as one pytree whose structure carries their specs; one may be absent.

    Without a vfm the tower of the values may give features too, both from one pass of it. Without a CLIP the foundation
    model's features are keys and values, and the joint space is theirs.
    """

    clip: Params | None
    clip_spec: VisionSpec | None = field(metadata={"static": True})
    vfm: Params | None = None
    vfm_spec: VfmSpec | None = field(default=None, metadata={"static": True})

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
        method = config.method
        source = self.features_spec if method.attends_by_features and method.reads_vfm else self.values_spec
        return (config.windows.crop // source.patch_size) ** 2

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
    input; both None without a CLIP; features [W S D]: the vision foundation model's patch tokens, None where nothing
    reads them.
    """

    qkv: QKV | None
    residual: Float[Array, "W t C"] | None
    features: Float[Array, "W S D"] | None
    prefix_tokens: int = field(default=1, metadata={"static": True})

    def compared(self, method: MethodConfig) -> tuple[Float[Array, "W S D"], ...]:
        """The features that GLA compares, of each pass: the VFM's patch tokens or a side of CLIP's own heads."""
        names = BASELINES[method.baseline].features
        return tuple(self.features if name == "vfm" else self.patches(getattr(self.qkv, name)) for name in names)

    @property
    def values(self) -> Float[Array, "W n C"]:
        """CLIP's values of the patches; without a CLIP the features."""
        return self.features if self.qkv is None else self.patches(self.qkv.values)

    def patches(self, tokens: Float[Array, "W t C"]) -> Float[Array, "W n C"]:
        """Tokens of CLIP's last block without the prefix."""
        return tokens[:, self.prefix_tokens :]


@jax.named_scope("gla-towers")
@typed
def encode_windows(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> WindowTokens:
    """Run both towers over the windows, at most config.max_tower_batch of them at a time.

    Raises ValueError when the baseline needs a vision foundation model and there is none.
    """
    dtype, method, limit = jnp.dtype(config.dtype), config.method, config.max_tower_batch
    # The form is None where the settings belong to no model.
    form = config.tower_attention or REFERENCE.tower_attention
    options = {"precision": method.plain_precision, "attention_form": form}
    if method.reads_vfm and params.features_spec is None:
        raise ValueError(f"{method.baseline} compares features of a vision foundation model; none is given")

    def encode(pixels: Array) -> WindowTokens:  # [b 3 c c]
        tokens = features = None
        if params.clip is not None:
            clip_pixels = normalise(pixels, params.clip_spec.pixel_mean, params.clip_spec.pixel_std)
            clip = build_tower(params.clip_spec, dtype, **options)
            tokens = clip.apply({"params": params.clip}, clip_pixels, method="encode")
        if params.vfm is not None and (method.reads_vfm or tokens is None):
            vfm_pixels = normalise(pixels, params.vfm_spec.pixel_mean, params.vfm_spec.pixel_std)
            vfm = build_tower(params.vfm_spec, dtype, **options)
            features = vfm.apply({"params": params.vfm}, vfm_pixels).patch_tokens
        elif method.reads_vfm:  # the same pass gives both
            features = clip.apply({"params": params.clip}, tokens, method="features")
        if tokens is None:
            return WindowTokens(None, None, features)
        return WindowTokens(tokens.qkv, tokens.residual, features, params.clip_spec.prefix_tokens)

    pixels = jnp.asarray(windows.pixels)
    size = even_batch(len(pixels), limit)
    whole = len(pixels) // size
    batches = pixels[: whole * size].reshape(whole, size, *pixels.shape[1:])
    encoded = jax.tree.map(lambda rows: rows.reshape(-1, *rows.shape[2:]), jax.lax.map(encode, batches))
    if len(pixels) == whole * size:
        return encoded
    rest = encode(pixels[whole * size :])
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), encoded, rest)


@typed
def first_queries(
    features: Float[Array, "W S D"], windows: Windows, params: SegmenterParams, method: MethodConfig
) -> Float[Array, "N D"] | None:
    """Queries of the anchors' first iteration where they are not the keys: ClearCLIP starts from neighbourhoods.

    Without the global buffer a window sees no other one, so its neighbourhoods end with it.
    """
    if not (BASELINES[method.baseline].from_neighbours and method.proxy_anchors):
        return None
    valid, origins = jnp.asarray(windows.valid), jnp.asarray(windows.origins)
    fold_shards = FORMS[method.attention].fold_shards if method.global_buffer else None
    return neighbourhood_queries(features, valid, origins, params.clip_spec.patch_size, fold_shards)


@typed
def window_count(windows: Windows, method: MethodConfig) -> Float[Array, ""]:
    """W without padding, over all devices that share an image."""
    return FORMS[method.attention].sum_over_shards(jnp.asarray(windows.valid).astype(jnp.float32).sum())


@typed
def buffers(
    tokens: WindowTokens, windows: Windows, params: SegmenterParams, method: MethodConfig
) -> tuple[tuple[Buffer, Float[Array, "N D"]], ...]:
    """The buffer and the first queries of every pass of a baseline."""
    valid = jnp.asarray(windows.valid)
    passes = []
    for features in tokens.compared(method):
        buffer = fill_buffer(features, tokens.values, valid, method)
        first = first_queries(features, windows, params, method)
        passes.append((buffer, buffer.keys if first is None else first))
    return tuple(passes)


@typed
def aggregate_windows(
    tokens: WindowTokens,
    windows: Windows,
    params: SegmenterParams,
    method: MethodConfig,
    count: Float[Array, ""] | None = None,
) -> Float[Array, "W S C"]:
    """Values of every patch as CLIP's last attention hands them to its output projection, by the method's rule.

    Args:
        tokens: outputs of the towers.
        windows: the same windows.
        params: for the sizes of CLIP's patches and heads.
        method: baseline and stages of GLA.
        count: W of the image, where these windows are a part of it.
    """
    if not method.attends_by_features and tokens.qkv is None:
        return tokens.values  # MaskCLIP's attention, the identity: the only one a foundation model alone takes
    if not method.attends_by_features:
        row = BASELINES[method.baseline]
        heads, prefix, precision = params.clip_spec.num_heads, tokens.prefix_tokens, method.plain_precision
        return tokens.patches(window_attention(tokens.qkv, row, heads, precision, prefix))
    count = window_count(windows, method) if count is None else count
    if not method.global_buffer:
        return sum(
            attend_alone(features, tokens.values, count, method, first_queries(features, windows, params, method))
            for features in tokens.compared(method)
        )
    passes = (attend_buffer(buffer, count, method, first) for buffer, first in buffers(tokens, windows, params, method))
    return sum(passes).reshape(len(windows.valid), -1, tokens.values.shape[-1])


@jax.named_scope("gla-projection")
@typed
def patch_features(
    attended: Float[Array, "W S C"],
    residual: Float[Array, "W t C"] | None,
    params: SegmenterParams,
    config: SegmenterConfig,
) -> Float[Array, "W S E"]:
    """Attended values to CLIP's joint space: out_proj, residual and MLP for whole-block baselines, ln_post, proj.

    Without a CLIP they are features already and stay as they are.

    Args:
        attended: the weighted values.
        residual: input of CLIP's last block, prefix tokens first; read by whole-block baselines alone.
        params: of CLIP's image tower.
        config: baseline, dtype and precision.
    """
    dtype, precision = jnp.dtype(config.dtype), config.method.plain_precision
    if params.clip is None:
        return attended.astype(jnp.float32)
    if BASELINES[config.method.baseline].whole_block:
        residual = residual[:, params.clip_spec.prefix_tokens :]
        residual = resample_tokens(residual, attended.shape[1], precision).astype(dtype)
    else:
        residual = None
    clip = build_tower(params.clip_spec, dtype, precision=precision)
    joint = clip.apply({"params": params.clip}, attended.astype(dtype), residual, method="project")
    return joint.astype(jnp.float32)


@jax.named_scope("gla-labels")
@typed
def token_logits(
    features: Float[Array, "W S E"], text_embeddings: Float[Array, "Q E"], precision: str = "highest"
) -> Float[Array, "W S Q"]:
    """Cosine similarity of every patch with every prompt; rows of text_embeddings have length one."""
    features = features.astype(jnp.float32)
    # Norms are divided out afterwards: unit rows would be a second copy of all features.
    products = jnp.einsum("wse,qe->wsq", features, text_embeddings, precision=precision)
    return products * inverse_norms(features)


@typed
def segment_features(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, run: OneProgram | Steps = ONE_PROGRAM
) -> Float[Array, "W S E"]:
    """Windows to patch features in the joint space: everything that does not depend on the text.

    Args:
        params: both image towers.
        windows: of one image; padded windows give rows without meaning.
        config: method, dtype and what depends on the platform.
        run: as one program or in steps.
    """
    method = config.method
    if not method.global_buffer:
        # Windows do not see each other: every chunk goes all the way by itself, with W as an argument.
        return run.windows(_segment_alone, (windows,), params, config, run.whole(window_count, windows, method))
    # Features of one or more passes (SCLIP compares queries, then keys), CLIP's values, and residual or None.
    *compared, values, residual = run.windows(_read_tokens, (windows,), params, config)
    total = None  # the passes of a baseline are summed
    while compared:
        first = run.whole(first_queries, compared[0], windows, params, method)
        # Features end here: in steps the buffer takes their place in memory.
        buffer = run.whole(fill_buffer, compared.pop(0), values, jnp.asarray(windows.valid), method)
        attended = attend_buffer(buffer, run.whole(window_count, windows, method), method, first, run)
        del buffer
        total = attended if total is None else total + attended
    del values
    total = total.reshape(len(windows.valid), -1, total.shape[-1])
    return run.windows(patch_features, (total, residual), params, config)


@typed
def segment_images(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> Float[Array, "B W S E"]:
    """segment_features of windows [B W ...] of several images.

    The towers take the windows of all images in their batches; the rest goes one image after the other.
    """
    tokens = encode_windows(params, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), windows), config)
    tokens = jax.tree.map(lambda leaf: leaf.reshape(*windows.valid.shape, *leaf.shape[1:]), tokens)
    return jax.lax.map(lambda image: _segment_encoded(*image, params, config), (tokens, windows))


def _segment_encoded(
    tokens: WindowTokens,
    windows: Windows,
    params: SegmenterParams,
    config: SegmenterConfig,
    count: Array | None = None,
) -> Array:
    attended = aggregate_windows(tokens, windows, params, config.method, count)
    return patch_features(attended, tokens.residual, params, config)


def _segment_alone(windows: Windows, params: SegmenterParams, config: SegmenterConfig, count: Array) -> Array:
    return _segment_encoded(encode_windows(params, windows, config), windows, params, config, count)


def _read_tokens(windows: Windows, params: SegmenterParams, config: SegmenterConfig) -> tuple[Array | None, ...]:
    """Of the towers' outputs what the global buffer reads: features of each pass, values, residual or None."""
    tokens = encode_windows(params, windows, config)
    residual = tokens.residual if BASELINES[config.method.baseline].whole_block else None
    return *(features.astype(jnp.float32) for features in tokens.compared(config.method)), tokens.values, residual


@typed
def segment_in_steps(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, progress: Progress | None = None
) -> Float[Array, "W S E"]:
    """segment_features of a large image, in steps over chunks of windows and queries.

    Args:
        params: both image towers.
        windows: W is padded_to_steps; a chunk is step_batch of them, at most config.max_tower_batch.
        config: as in segment_features.
        progress: called with (steps done, steps in all) after each.
    """
    count = len(windows.valid)
    total, chunk = count_steps(count, params.tokens(config), config), step_batch(count, config.max_tower_batch)
    return segment_features(params, windows, config, Steps(chunk, QUERY_CHUNK, total, progress))


def count_steps(windows: int, tokens: int, config: SegmenterConfig) -> int:
    """Steps that an image of `windows` windows of `tokens` tokens takes, padded to whole chunks of windows."""
    chunks, method = -(-windows // config.max_tower_batch), config.method
    if not method.global_buffer:
        return chunks
    # Queries go through the anchors' loop, where there is one, and through the attention.
    rounds = 2 if method.proxy_anchors or method.dynamic_scale is not None else 1
    query_chunks = -(-padded_to_steps(windows, config.max_tower_batch) * tokens // QUERY_CHUNK)
    return 2 * chunks + len(BASELINES[method.baseline].features) * rounds * query_chunks


@typed
def segment_logits(
    params: SegmenterParams, windows: Windows, text_embeddings: Float[Array, "Q E"], config: SegmenterConfig
) -> Float[Array, "W S Q"]:
    """Windows and text to token logits before the logit scale, float32; rows of padded windows hold no meaning.

    Args:
        params: both image towers.
        windows: of one image.
        text_embeddings: a row of length one for every prompt.
        config: method, dtype and precision.
    """
    return token_logits(segment_features(params, windows, config), text_embeddings, config.method.plain_precision)
