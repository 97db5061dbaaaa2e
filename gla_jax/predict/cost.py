"""The cost of an image before it is segmented: operations from sizes alone, and seconds from a short measurement.

Operations are those of matrix products, two for every multiply-add: everything else (LayerNorm, softmax, activations,
masks) grows with the tokens alone or with one power less, and is left out. Padding is not work, so it is not counted.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from gla_jax.checkpoints.model_folder import VfmSpec
from gla_jax.config import BASELINES, MethodConfig, SegmenterConfig
from gla_jax.images.windows import WindowGrid, Windows, token_overlaps
from gla_jax.pipeline import SegmenterParams, segment_in_steps
from gla_jax.towers.layers import VisionSpec

REPEATS, SECONDS_NOT_REPEATED = 4, 1.0
SEVERAL = 4  # tower batches of the larger image that is measured


@dataclass(frozen=True)
class Cost:
    """tokens N of all windows, operations of towers and attention, and the seconds they take on this device."""

    tokens: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        """The line that is shown before a long run."""
        minutes = self.seconds / 60
        time = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        return f"{self.tokens:,} tokens, {self.flops / 1e12:.1f} TFLOP, about {time} here"


@dataclass(frozen=True)
class Widths:
    """Sizes of a window's tokens: S that are compared, n of CLIP, widths D of features and C of values.

    prefix_tokens: of CLIP before its patches, CLS; SigLIP has none.
    """

    tokens: int
    clip_tokens: int
    features: int
    values: int
    prefix_tokens: int = 1


def model_widths(params: SegmenterParams, config: SegmenterConfig) -> Widths:
    """The sizes of a window's tokens under some settings; the VFM may be absent when the baseline does not read it."""
    values, crop = params.values_spec, config.windows.crop
    if config.method.reads_dinoiser:
        patches = (crop // values.patch_size) ** 2
        return Widths(patches, patches, params.dinoiser_spec.projected, values.embed_dim)
    source = params.features_spec if config.method.reads_vfm else values
    tokens = ((crop // spec.patch_size) ** 2 for spec in (source, values))
    return Widths(*tokens, source.width, values.width, values.prefix_tokens)


def _block_flops(tokens: int, width: int, hidden: int, gated: bool = False) -> float:
    """A transformer block on t tokens of width C with an MLP of h hidden units, which has a third map when gated.

    2t (4C^2 + 2Ch) of the linear maps (3Ch when gated) and 4t^2 C of q k^T and weights times values.
    """
    return 2 * tokens * (4 * width**2 + (3 if gated else 2) * width * hidden) + 4 * tokens**2 * width


def clip_flops(spec: VisionSpec, crop: int) -> float:
    """CLIP's image tower on one window of side c, up to q, k, v of its last block.

    2n 3p^2 C for n = (c/p)^2 patches, depth - 1 blocks on t = prefix + n tokens, and 2t 3C^2.
    """
    patches = (crop // spec.patch_size) ** 2
    tokens = spec.prefix_tokens + patches
    embedding = 2 * patches * 3 * spec.patch_size**2 * spec.width
    blocks = (spec.depth - 1) * _block_flops(tokens, spec.width, spec.mlp_width)
    return embedding + blocks + 2 * tokens * 3 * spec.width**2


def vfm_flops(spec: VfmSpec, crop: int) -> float:
    """A vision foundation model on one window of side c.

    2n 3p^2 D for n = (c/p)^2 patches and depth blocks on prefix + n tokens.
    """
    patches = (crop // spec.patch_size) ** 2
    embedding = 2 * patches * 3 * spec.patch_size**2 * spec.width
    gated = spec.activation == "swiglu"
    return embedding + spec.depth * _block_flops(spec.prefix_tokens + patches, spec.width, spec.mlp_width, gated)


def dinoiser_flops(clip: VisionSpec, projected: int, crop: int) -> float:
    """CLIP-DINOiser's 3x3 convolution on n patches, 2n 9C P, and the attention of a block that runs once more."""
    patches, width = (crop // clip.patch_size) ** 2, clip.width
    return 2 * patches * 9 * width * projected + _block_flops(clip.prefix_tokens + patches, width, 0)


def projection_flops(clip: VisionSpec, tokens: int, whole_block: bool) -> float:
    """Gathered values of some tokens to the joint space: 2 (C^2 + CE) a token, 4Ch more where the MLP runs.

    In place of CE a tower with a head has the weights of that (joint_weights).
    """
    linear = clip.width**2 + clip.joint_weights
    return 2 * tokens * (linear + (2 * clip.width * clip.mlp_width if whole_block else 0))


def attention_flops(widths: Widths, windows: float, method: MethodConfig) -> float:
    """All passes of a method over an image of W windows, in any form: dense, blockwise and ring do the same.

    A pass over one buffer of N = W S tokens, or W passes over S each when windows stay alone. Each anchor iteration is
    2N^2 D for similarities and 2N^2 D for the sum of the positives (with T = 0 the similarities are only counted:
    2N^2 D); the attention is 2N^2 D for its logits and 2N^2 C for the values. A baseline without features attends
    inside its windows: 4t^2 C for each of its attentions on t = prefix + n tokens.
    """
    baseline = BASELINES[method.baseline]
    if not method.attends_by_features:
        return windows * len(baseline.pairs) * 4 * (widths.prefix_tokens + widths.clip_tokens) ** 2 * widths.values
    buffers, tokens = (1, windows * widths.tokens) if method.global_buffer else (windows, widths.tokens)
    counts = method.proxy_anchors or method.dynamic_scale is not None
    products = 1 + (2 * method.anchor_iterations or 1 if counts else 0)
    return len(baseline.features) * buffers * 2 * tokens**2 * (products * widths.features + widths.values)


def image_flops(params: SegmenterParams, windows: int, config: SegmenterConfig, merged: float = 1.0) -> float:
    """Everything from windows to features in the joint space, text and label map excluded; merged: as in estimate."""
    widths, method, crop = model_widths(params, config), config.method, config.windows.crop
    clip = params.clip_spec
    if params.vfm_spec is None or clip is None:  # one tower goes all the way and gives both, or is all there is
        towers = (vfm_flops if clip is None or method.reads_vfm else clip_flops)(params.values_spec, crop)
    else:
        towers = clip_flops(clip, crop) + (vfm_flops(params.vfm_spec, crop) if method.reads_vfm else 0)
    if method.reads_dinoiser:
        towers += dinoiser_flops(clip, params.dinoiser_spec.projected, crop)
    if method.stitches:  # scores and weighted values over all cells, in place of those of a window
        stitched, alone = (windows * widths.tokens) ** 2, windows * widths.tokens**2
        towers += 4 * (stitched - alone) * widths.features / windows
    tokens = windows * (widths.tokens if method.attends_by_features else widths.clip_tokens)
    projection = projection_flops(clip, tokens, BASELINES[method.baseline].whole_block) if clip else 0
    return windows * towers + attention_flops(widths, windows * merged, method) + projection


def merged_share(grid: WindowGrid, params: SegmenterParams, config: SegmenterConfig) -> float:
    """Tokens that attend, over all tokens of an image: below 1 where overlapping ones are merged."""
    if not config.method.merge_overlaps:
        return 1.0
    members = token_overlaps(grid, grid.count, params.patch_size(config.method)).members
    return len(members) / (grid.count * params.tokens(config))


def estimate(params: SegmenterParams, config: SegmenterConfig, windows: int, merged: float = 1.0) -> Cost:
    """The cost of an image of some windows on one device, by small images that go through in steps.

    Towers and projection grow with the windows. The attention has a part that does, every query's own, and one that
    grows with their square: where it would take longer than the towers an image of SEVERAL tower batches tells the two
    apart. The label map is not counted. Takes the time to compile and run those images; their towers are the large
    image's program.

    Args:
        params: both image towers.
        config: settings of the platform.
        windows: W.
        merged: of merged_share; an image with merged tokens attends as a smaller one does without.
    """
    flops, tokens = image_flops(params, windows, config, merged), windows * model_widths(params, config).tokens
    config = replace(config, method=replace(config.method, merge_overlaps=False))
    scale = windows / config.max_tower_batch
    attending = scale * merged
    towers, attention, projection = _measured(params, config, 1)
    quadratic = attention
    if attention * attending > towers and attending > SEVERAL:
        _, several, _ = _measured(params, config, SEVERAL)
        quadratic = (several - SEVERAL * attention) / (SEVERAL**2 - SEVERAL)
        # Of a part below zero, which is noise, nothing is left; the larger image says more about the other.
        quadratic = min(max(quadratic, 0.0), several / SEVERAL**2)
        attention = several / SEVERAL + quadratic * (1 - SEVERAL)
    seconds = (towers + projection) * scale + (attention - quadratic) * attending + quadratic * attending**2
    return Cost(tokens, flops, float(seconds))


def _measured(params: SegmenterParams, config: SegmenterConfig, batches: int) -> np.ndarray:
    """Seconds [3] of towers, attention and projection of an image of some tower batches."""
    runs: list[np.ndarray] = []
    while len(runs) < 2 or (len(runs) < REPEATS and runs[-1].sum() < SECONDS_NOT_REPEATED):
        steps = _step_seconds(params, config, batches)
        runs.append(np.array([part.sum() for part in np.split(steps, [batches, max(len(steps) - batches, batches)])]))
    return np.median(runs[1:], axis=0)  # the first run compiles


def _step_seconds(params: SegmenterParams, config: SegmenterConfig, batches: int) -> np.ndarray:
    """Seconds of each step of an image of some tower batches: towers, attention, projection.

    Where each window is alone there is one step for each batch.
    """
    ends = [time.perf_counter()]
    windows = blank_windows(batches * config.max_tower_batch, config)
    segment_in_steps(params, windows, config, lambda done, steps: ends.append(time.perf_counter()))
    return np.diff(ends)


def blank_windows(count: int, config: SegmenterConfig) -> Windows:
    """Windows of noise, all valid, on the host."""
    rng = np.random.default_rng(0)
    pixels = rng.random((count, 3, config.windows.crop, config.windows.crop), np.float32)
    return Windows(pixels, np.ones(count, bool), np.zeros((count, 2), np.int32))
