"""Fits the numbers of a method to a few labelled images by gradient descent through the method itself.

The paper sets rho, alpha_beta, alpha_gamma, the logit scale and the background threshold by hand for a data set. Here
they follow the gradient of a cross-entropy at token resolution, under soft masks (MethodConfig.mask_temperature); what
is reported, and what the preset is for, is the method with its own hard masks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gla_jax.ablate import Ablation, Encoded, Setting, Tally, encode, measure
from gla_jax.config import SegmenterConfig
from gla_jax.errors import UserError
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets import TINY_WORLD_SIZE, Dataset, Example
from gla_jax.eval.protocols import Protocol
from gla_jax.logits import SegmenterParams, gather_windows, patch_features, token_logits
from gla_jax.outputs import write_text
from gla_jax.progress import track
from gla_jax.segmenter import Segmenter
from gla_jax.settings import PRESET_FORMAT, TUNED_FIELDS
from gla_jax.shapes import Array, Float, Int, Integer
from gla_jax.version import VERSION
from gla_jax.windows import WindowGrid

# Narrow enough to be near the method, wide enough that tokens on either side of rho are felt.
MASK_TEMPERATURE = 0.05
THRESHOLD_WIDTH = 0.02  # of the sigmoid that stands for the background threshold, in probability
UNLABELLED = -1


class Tuned(NamedTuple):
    """The numbers that are fitted, in coordinates in which every real number is allowed."""

    anchor_threshold: Array
    dynamic_shift: Array
    dynamic_scale: Array
    logit_scale: Array
    threshold: Array


def coordinates(config: SegmenterConfig) -> Tuned:
    """The coordinates of a configuration: rho in -1..1, scales above 0, the threshold in 0..1.

    Raises UserError for a method that lacks one of the numbers.
    """
    method = config.method
    if not method.proxy_anchors or method.dynamic_shift is None or method.dynamic_scale is None:
        raise UserError("only a method with anchors and dynamic normalisation can be tuned; name gla or gla-clearclip.")
    threshold = min(max(float(config.threshold), 1e-3), 1 - 1e-3)
    return Tuned(
        *(
            jnp.float32(value)
            for value in (
                np.arctanh(method.anchor_threshold),
                np.log(method.dynamic_shift),
                np.log(method.dynamic_scale),
                np.log(config.logit_scale),
                np.log(threshold / (1 - threshold)),
            )
        )
    )


def configured(tuned: Tuned, config: SegmenterConfig, background: bool) -> SegmenterConfig:
    """The configuration at some coordinates; without a background class the threshold stays off."""
    method = replace(
        config.method,
        anchor_threshold=jnp.tanh(tuned.anchor_threshold),
        dynamic_shift=jnp.exp(tuned.dynamic_shift),
        dynamic_scale=jnp.exp(tuned.dynamic_scale),
    )
    threshold = jax.nn.sigmoid(tuned.threshold) if background else 0.0
    return replace(config, method=method, logit_scale=jnp.exp(tuned.logit_scale), threshold=threshold)


def token_targets(
    label: Integer[np.ndarray, "h w"], grid: WindowGrid, windows: int, tokens: int, ignore: int
) -> Int[np.ndarray, "W S"]:
    """The class under the centre of every token, UNLABELLED where ignored, beside the image or in a padded window."""
    side = round(tokens**0.5)
    centres = (np.arange(side) + 0.5) * grid.crop / side
    targets = np.full((windows, side, side), UNLABELLED, np.int32)
    for index, (top, left) in enumerate(grid.origins):
        rows, columns = top + centres, left + centres
        y = np.floor(rows * label.shape[0] / grid.height).astype(int)
        x = np.floor(columns * label.shape[1] / grid.width).astype(int)
        inside = ((rows >= 0) & (rows < grid.height))[:, None] & ((columns >= 0) & (columns < grid.width))[None]
        found = label[np.clip(y, 0, label.shape[0] - 1)[:, None], np.clip(x, 0, label.shape[1] - 1)[None]].astype(int)
        targets[index] = np.where(inside & (found != ignore), found, UNLABELLED)
    return targets.reshape(windows, tokens)


def class_log_probabilities(
    logits: Float[Array, "W S Q"], class_of_query: Int[Array, " Q"], config: SegmenterConfig, classes: int
) -> Float[Array, "L W S"]:
    """Log of the best synonym's probability of every class; with a threshold, mixed with what falls to class 0."""
    by_query = jnp.moveaxis(jax.nn.log_softmax(config.logit_scale * logits, axis=-1), -1, 0)
    by_class = jax.ops.segment_max(by_query, class_of_query, classes)
    if isinstance(config.threshold, float) and config.threshold == 0.0:
        return by_class
    fallen = jax.nn.sigmoid((config.threshold - jnp.exp(by_class.max(0))) / THRESHOLD_WIDTH)
    background = (jnp.arange(classes) == 0).astype(jnp.float32)[:, None, None] * fallen[None]
    return jnp.log((1.0 - fallen[None]) * jnp.exp(by_class) + background + 1e-8)


@partial(jax.jit, static_argnames=("classes", "background"))
def loss(
    tuned: Tuned,
    encoded: Encoded,
    targets: Int[Array, "W S"],
    bank: Float[Array, "Q E"],
    class_of_query: Int[Array, " Q"],
    params: SegmenterParams,
    config: SegmenterConfig,
    classes: int,
    background: bool,
) -> Float[Array, ""]:
    """Mean cross-entropy of the labelled tokens of one image, every window's token by itself, under soft masks."""
    config = configured(tuned, config, background)
    config = replace(config, method=replace(config.method, mask_temperature=MASK_TEMPERATURE))
    gathered = gather_windows(encoded.tokens, encoded.windows, params, config.method)
    logits = token_logits(patch_features(gathered, encoded.tokens, params, config), bank)
    by_class = class_log_probabilities(logits, class_of_query, config, classes)
    labelled = (targets >= 0).astype(jnp.float32)
    picked = jnp.take_along_axis(by_class, jnp.maximum(targets, 0)[None], 0)[0]
    return -(picked * labelled).sum() / jnp.maximum(labelled.sum(), 1.0)


_slope = jax.jit(jax.value_and_grad(loss), static_argnames=("classes", "background"))


class Fit(NamedTuple):
    """What a fit found: the settings, and the loss of every step."""

    config: SegmenterConfig
    losses: tuple[float, ...]


def fit(
    segmenter: Segmenter,
    images: Sequence[Example],
    row: Protocol,
    config: SegmenterConfig,
    *,
    background: bool,
    ignore: int = 255,
    steps: int = 60,
    learning_rate: float = 0.05,
) -> Fit:
    """Adam over the coordinates, one image a step in turn; the towers run once an image."""
    prompts = row.prompts
    bank, class_of_query = segmenter.text_bank(prompts), jnp.asarray(prompts.class_of_query, jnp.int32)
    prepared = []
    for example in images:
        encoded = encode(segmenter, example.image, [config])
        features = encoded.tokens.features
        windows, tokens = (features if features is not None else encoded.tokens.heads.values[:, 1:]).shape[:2]
        targets = token_targets(example.label, encoded.grid, windows, tokens, ignore)
        # The grid is no array; what the loss reads of it is in the targets.
        prepared.append((encoded._replace(grid=None, size=None), jnp.asarray(targets)))
    tuned = coordinates(config)
    transform = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    state, losses = transform.init(tuned), []
    for step in track(range(steps), "steps"):
        encoded, targets = prepared[step % len(prepared)]
        value, gradient = _slope(
            tuned,
            encoded,
            targets,
            bank,
            class_of_query,
            segmenter.params,
            config,
            classes=len(row.classes),
            background=background,
        )
        losses.append(float(value))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            update, state = transform.update(gradient, state, tuned)
        tuned = optax.apply_updates(tuned, update)
    found = jax.tree.map(float, configured(tuned, config, background))
    return Fit(found, tuple(losses))


@dataclass(frozen=True)
class Report:
    """Start and end of a fit by part of the images ("fitted", "held out"): figures of the hard method, percent."""

    start: SegmenterConfig
    end: SegmenterConfig
    figures: dict[str, tuple[dict[str, float], dict[str, float]]]
    losses: tuple[float, ...]

    @property
    def better(self) -> bool:
        """Whether the held-out images (all, when none are held out) have a higher mIoU than at the start."""
        before, after = self.figures.get("held out", self.figures["fitted"])
        return after["miou"] > before["miou"]


def tune(
    segmenter: Segmenter, dataset: Dataset, row: Protocol, *, background: bool, images: int, hold_out: float, steps: int
) -> Report:
    """Fit on the first images of a data set but for a share that is held out; measure both parts with hard masks.

    Raises UserError when no image is left to fit on.
    """
    count = min(images, len(dataset.ids))
    held = round(count * hold_out)
    if count - held < 1:
        raise UserError(
            f"{count} images leave none to fit on when {hold_out:g} of them are held out; give more images."
        )
    start = segmenter.config
    fitted = [dataset.read(index) for index in range(count - held)]
    found = fit(segmenter, fitted, row, start, background=background, ignore=dataset.ignore, steps=steps)
    both = Ablation("", (Setting("start", start), Setting("end", found.config)), {})
    parts = {"fitted": range(count - held)} | ({"held out": range(count - held, count)} if held else {})
    figures = {}
    for name, indices in parts.items():
        before, after = (tally.figures() for tally in _measured(segmenter, both, dataset, row, indices))
        figures[name] = before, after
    return Report(start, found.config, figures, found.losses)


def _measured(
    segmenter: Segmenter, both: Ablation, dataset: Dataset, row: Protocol, indices: range
) -> tuple[Tally, ...]:
    part = replace(dataset, ids=tuple(dataset.ids[i] for i in indices), read=lambda index: dataset.read(indices[index]))
    return measure(segmenter, both, part, row).tallies


def fitting_scenes(dataset: Dataset) -> Dataset:
    """tiny-world's own training scenes in place of the held-out ones; any other data set as it is."""
    if dataset.benchmark != TINY_WORLD:
        return dataset
    from gla_jax.tiny_world.scenes import render

    def read(index: int) -> Example:
        scene = render(10**9 + index, *TINY_WORLD_SIZE, split="train")  # far from the seeds of the training
        return Example(dataset.ids[index], scene.image, scene.labels)

    return replace(dataset, read=read)


def write_preset(path: Path, report: Report, preset: str, origin: dict[str, Any], keep_start: bool) -> None:
    """The settings as a file that --preset takes, whole or not there."""
    chosen = report.start if keep_start else report.end
    numbers = {name: round(float(getattr(chosen.method, name)), 6) for name in TUNED_FIELDS}
    content = {
        "format": PRESET_FORMAT,
        "version": VERSION,
        "base": preset,
        "method": numbers,
        "logit_scale": round(float(chosen.logit_scale), 6),
        "threshold": round(float(chosen.threshold), 6),
        "tuned_on": origin,
        "figures": {part: {"start": before, "end": after} for part, (before, after) in report.figures.items()},
        "losses": [round(value, 6) for value in report.losses],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
