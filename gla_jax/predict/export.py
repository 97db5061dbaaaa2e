"""A program of fixed shapes that runs where gla-jax is not: parameters and an image to the image's labels."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from gla_jax.checkpoints.model_folder import flatten_params
from gla_jax.config import SegmenterConfig
from gla_jax.images.resize import resize_uint8_traced
from gla_jax.images.windows import Canvas, cut_canvas, padded_origins, token_overlaps
from gla_jax.labels.label_map import blocks_of, label_tile, layout
from gla_jax.labels.prune import best_probabilities, prune
from gla_jax.pipeline import segment_features, token_logits
from gla_jax.predict.model import Model, image_grid
from gla_jax.predict.predict import Question
from gla_jax.support.arrays import Array, Float, Integer, UInt8
from gla_jax.support.errors import UserError

PLATFORMS = ("cpu", "cuda", "tpu")
MAX_PIXELS = 2**26  # every tile of labels stands in the program by itself
TOWER_BATCH = 8  # windows; no device is known yet
Weights = Mapping[str, Float[Array, "..."] | Float[np.ndarray, "..."]]


def exported_weights(model: Model) -> dict[str, Float[np.ndarray, "..."]]:
    """The parameters that the program of a model takes, by path, float32 on the host, of the towers that it runs."""
    params, method = model.params.unstacked(), model.config.method
    parts = {"clip": params.clip, "vfm": params.vfm if method.reads_vfm or params.clip is None else None}
    parts["dinoiser"] = params.dinoiser if method.reads_dinoiser else None
    flat = flatten_params({name: dict(part) for name, part in parts.items() if part})
    return {path: np.asarray(leaf, np.float32) for path, leaf in flat.items()}


def export_labels(model: Model, question: Question, size: tuple[int, int]) -> jax.export.Exported:
    """The program (weights by path, uint8 RGB [h w 3]) -> labels [h w] for one size, for all PLATFORMS at once.

    Args:
        model: parameters on one device, and settings.
        question: prompts and classes, which become constants.
        size: (h, w) of the images in pixels.

    Raises UserError for settings whose labels are not computed on the device and for more than MAX_PIXELS.
    """
    config = _portable(model)
    if size[0] * size[1] > MAX_PIXELS:
        raise UserError(
            f"images of {size[0]}x{size[1]} are too large for one program, which takes {MAX_PIXELS:,} pixels; export "
            "for a part, or use gla-jax raster."
        )
    # All that depends on the size alone is worked out here, on the host, and becomes a constant of the program.
    params, rule, grid = model.params.unstacked(), question.rule(config), image_grid(size, config.windows)
    valid, origins = padded_origins(grid, grid.count)
    where = layout(grid, params.tokens(config), size)
    embeddings, precision = np.asarray(question.text_embeddings), config.method.plain_precision
    edge, overlaps = np.zeros(3 * grid.crop, np.uint8), None
    if config.method.merge_overlaps:
        overlaps = token_overlaps(grid, grid.count, params.patch_size(config.method))

    def labels(weights: Weights, image: UInt8[Array, "h w 3"]) -> Integer[Array, "h w"]:
        tree = unflatten_dict({path: leaf.astype(config.dtype) for path, leaf in weights.items()}, sep="/")
        own = replace(params, **{name: tree.get(name) for name in ("clip", "vfm", "dinoiser")})
        resized = resize_uint8_traced(image, (grid.height, grid.width))
        pieces = (edge, resized.reshape(-1), edge)  # a canvas begins and ends with the bytes of a window's row
        shape = np.array([grid.height, grid.width], np.int32)
        windows = cut_canvas(Canvas(pieces, shape, valid, origins, overlaps), grid.crop, params.values_spec.pixel_mean)
        logits = token_logits(segment_features(own, windows, config), jnp.asarray(embeddings), precision)
        if config.prune_below:
            best = best_probabilities(
                logits, where, rule.class_of_prompt, rule.logit_scale, question.classes, precision
            )
            logits = prune(logits, best, rule.class_of_prompt, config.prune_below)
        result = jnp.zeros(size, rule.dtype)
        for down, across, rows, columns in where.tiles():
            numbers = rule.numbers()
            tile = label_tile(
                logits, rows, columns, blocks_of(down), *numbers, rule.threshold > 0, precision, rule.dtype
            )
            result = result.at[down, across].set(tile[: down.stop - down.start, : across.stop - across.start])
        return result

    weights = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in exported_weights(model).items()}
    image = jax.ShapeDtypeStruct((*size, 3), np.uint8)
    return jax.export.export(jax.jit(labels), platforms=PLATFORMS)(weights, image)


def _portable(model: Model) -> SegmenterConfig:
    """The settings with numbers that suit every platform. Raises UserError for those that a program cannot have."""
    config = model.settings
    if model.mesh is not None or config.method.attention == "ring":
        raise UserError("a program is exported for one device; leave out the mesh.")
    if config.background_margin or config.foreground_below or config.average != "logits":
        raise UserError(
            "background_margin, foreground_below and averaged probabilities are worked out beside the program; export "
            "without them."
        )
    return replace(
        config,
        method=replace(config.method, precision=config.method.precision or "highest"),
        tower_batch=config.tower_batch or TOWER_BATCH,
        tower_attention=config.tower_attention or "chunked",
    )
