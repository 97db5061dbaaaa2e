"""What work costs before it is done: floating-point operations from sizes alone, and seconds from a short measurement.

Operations are those of matrix products, two for every multiply-add: everything else (LayerNorm, softmax, activations,
masks) grows with the tokens alone or with one power less, and is left out. Padding is not work, so it is not counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import jax
import numpy as np

from gla_jax.attention import blockwise
from gla_jax.attention.anchors import AnchorSums
from gla_jax.attention.attend import Queries
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.normalize import Normalization
from gla_jax.checkpoints.model_folder import VfmSpec
from gla_jax.config import BASELINES, MethodConfig, SegmenterConfig
from gla_jax.images.windows import Windows
from gla_jax.pipeline import SegmenterParams
from gla_jax.staged import encode_chunk
from gla_jax.support.shapes import Array
from gla_jax.towers.clip_image import ClipImageSpec
from gla_jax.towers.dinov2 import DinoV2Spec

REPEATS, SECONDS_NOT_REPEATED = 3, 1.0


@dataclass(frozen=True)
class Cost:
    """tokens N of all windows, operations of towers and attention, and the seconds they take on this device."""

    tokens: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        """As it is said before a long run."""
        minutes = self.seconds / 60
        time = f"{self.seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min"
        return f"{self.tokens:,} tokens, {self.flops / 1e12:.1f} TFLOP, about {time} here"


@dataclass(frozen=True)
class Widths:
    """What attention reads of a model at some crop: S tokens a window, n of CLIP, widths D of features, C of values."""

    tokens: int
    clip_tokens: int
    features: int
    values: int


def model_widths(clip: ClipImageSpec, vfm: VfmSpec | None, config: SegmenterConfig) -> Widths:
    """The sizes of a window's tokens under some settings; vfm may be absent when the host does not read it."""
    source = vfm if "vfm" in BASELINES[config.method.baseline].features else clip
    crop = config.windows.crop
    return Widths((crop // source.patch_size) ** 2, (crop // clip.patch_size) ** 2, source.width, clip.width)


def block_flops(tokens: int, width: int, hidden: int, gated: bool = False) -> float:
    """A transformer block on t tokens of width C with an MLP of h hidden units.

    2t (4C^2 + 2Ch) of the linear maps (3Ch where the MLP is gated) and 4t^2 C of q k^T and weights times values.
    """
    return 2 * tokens * (4 * width**2 + (3 if gated else 2) * width * hidden) + 4 * tokens**2 * width


def clip_flops(spec: ClipImageSpec, crop: int) -> float:
    """CLIP's image tower on one window of side c, up to q, k, v of its last block.

    2n 3p^2 C for n = (c/p)^2 patches, depth - 1 blocks on t = 1 + n tokens, and 2t 3C^2.
    """
    patches = (crop // spec.patch_size) ** 2
    tokens = 1 + patches
    embedding = 2 * patches * 3 * spec.patch_size**2 * spec.width
    blocks = (spec.depth - 1) * block_flops(tokens, spec.width, spec.mlp_width)
    return embedding + blocks + 2 * tokens * 3 * spec.width**2


def vfm_flops(spec: VfmSpec, crop: int) -> float:
    """A vision foundation model on one window of side c.

    2n 3p^2 D for n = (c/p)^2 patches and depth blocks on 1 + registers + n tokens.
    """
    patches = (crop // spec.patch_size) ** 2
    extra, gated = 0, False
    if isinstance(spec, DinoV2Spec):
        extra, gated = spec.registers, spec.activation == "swiglu"
    embedding = 2 * patches * 3 * spec.patch_size**2 * spec.width
    return embedding + spec.depth * block_flops(1 + extra + patches, spec.width, spec.mlp_width, gated)


def tower_flops(clip: ClipImageSpec, vfm: VfmSpec | None, config: SegmenterConfig) -> float:
    """Both towers on one window, the vision foundation model only where the host reads it."""
    reads_vfm = "vfm" in BASELINES[config.method.baseline].features
    crop = config.windows.crop
    return clip_flops(clip, crop) + (vfm_flops(vfm, crop) if reads_vfm else 0)


def projection_flops(clip: ClipImageSpec, tokens: int, whole_block: bool) -> float:
    """Gathered values of some tokens to the joint space: 2 (C^2 + CE) a token, 4Ch more where the MLP runs."""
    linear = clip.width**2 + clip.width * clip.embed_dim
    return 2 * tokens * (linear + (2 * clip.width * clip.mlp_width if whole_block else 0))


def pass_flops(queries: int, keys: int, features: int, values: int, method: MethodConfig) -> float:
    """One pass of GLA of q queries over k keys.

    Each anchor iteration is 2qkD for similarities and 2qkD for the sum of the positives (with T = 0 the similarities
    are only counted: 2qkD); the attention is 2qkD for its logits and 2qkC for the values.
    """
    pairs = 2 * queries * keys
    anchors = 0
    if method.proxy_anchors or method.dynamic_scale is not None:
        anchors = features * (2 * method.anchor_iterations or 1)
    return pairs * (anchors + features + values)


def attention_flops(widths: Widths, windows: int, method: MethodConfig) -> float:
    """All passes of a method over an image of W windows, in any form: dense, streaming and sharded do the same.

    A pass over one buffer of N = W S tokens, or W passes over S each when windows stay alone. A host without features
    gathers inside its windows: 4t^2 C for each of its attentions on t = 1 + n tokens.
    """
    host = BASELINES[method.baseline]
    if not method.attends_by_features:
        return windows * len(host.pairs) * 4 * (1 + widths.clip_tokens) ** 2 * widths.values
    buffers, tokens = (1, windows * widths.tokens) if method.global_buffer else (windows, widths.tokens)
    return len(host.features) * buffers * pass_flops(tokens, tokens, widths.features, widths.values, method)


def image_flops(clip: ClipImageSpec, vfm: VfmSpec | None, windows: int, config: SegmenterConfig) -> float:
    """Everything from windows to features in the joint space, text and label map excluded."""
    widths = model_widths(clip, vfm, config)
    tokens = windows * (widths.tokens if config.method.attends_by_features else widths.clip_tokens)
    return (
        windows * tower_flops(clip, vfm, config)
        + attention_flops(widths, windows, config.method)
        + projection_flops(clip, tokens, BASELINES[config.method.baseline].whole_block)
    )


def estimate(params: SegmenterParams, config: SegmenterConfig, windows: int) -> Cost:
    """What an image of some windows will cost on one device, from one tower batch and one attention block.

    Seconds are operations by the speed measured for their kind; the label map is not in it. Takes the time to compile
    and run one tower batch; the program is the one that staged.py runs, so a cache of programs keeps it.
    """
    clip, vfm, method = params.clip_spec, params.vfm_spec, config.method
    widths = model_widths(clip, vfm, config)
    attention = attention_flops(widths, windows, method)
    flops = image_flops(clip, vfm, windows, config)
    with jax.default_matmul_precision("highest"):
        batch = blank_windows(config.windows_at_once, config)
        program = encode_chunk.lower(params, batch, config, method.baseline).compile()
        of_towers = config.windows_at_once * tower_flops(clip, vfm, config)
        seconds = (flops - attention) / of_towers * _quick_seconds(lambda: program(params, batch, config))
        if method.attends_by_features:
            one = replace(method, attention="blockwise", proxy_anchors=True, anchor_iterations=1)
            queries, buffer = random_queries(method.most_of_a_block, widths)
            program = _one_block.lower(queries, buffer, one).compile()
            of_block = pass_flops(one.most_of_a_block, one.most_of_a_block, widths.features, widths.values, one)
            seconds += attention / of_block * _quick_seconds(lambda: program(queries, buffer, one))
    return Cost(windows * widths.tokens, flops, seconds)


def _quick_seconds(run: Callable[[], Any]) -> float:
    """Seconds of one run; a short first one warms up for others, a long one is not worth repeating."""
    taken = []
    while len(taken) <= REPEATS:
        begun = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begun)
        if taken[0] > SECONDS_NOT_REPEATED:
            return taken[0]
    return median(taken[1:])


def blank_windows(count: int, config: SegmenterConfig) -> Windows:
    """Windows of noise, all valid, on the host."""
    rng = np.random.default_rng(0)
    pixels = rng.random((count, 3, config.windows.crop, config.windows.crop), np.float32)
    return Windows(pixels, np.ones(count, bool), np.zeros((count, 2), np.int32))


def random_queries(count: int, widths: Widths) -> tuple[Queries, Buffer]:
    """A buffer of random unit keys and values, and its keys as queries with a fixed shift and scale."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((count, widths.features), np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    values = rng.standard_normal((count, widths.values), np.float32)
    ones = np.ones(count, np.float32)
    buffer = jax.device_put(Buffer(keys, values, np.ones(count, bool)))
    return Queries(buffer.keys, *jax.device_put((ones, Normalization(ones, ones)))), buffer


@jax.jit
def _one_block(queries: Queries, buffer: Buffer, config: MethodConfig) -> tuple[AnchorSums, Array]:
    """An anchor iteration and the attention of one block of queries over one block of keys."""
    sums = blockwise.sum_positives(queries.rows, buffer, config)
    return sums, blockwise.gather(queries.rows, queries.norm, buffer, config)
