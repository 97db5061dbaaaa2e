"""Fits the numbers of a method to a few labelled images by gradient descent through the method itself.

The paper sets rho, alpha_beta, alpha_gamma, the logit scale and the background threshold by hand for a data set. Here
they follow the gradient of a cross-entropy at token resolution, under soft masks (DESIGN 3.5); what is reported, and
what the preset is for, is the method with its own hard masks. The towers run once an image.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gla_jax.analysis.ablate import Encoded, encode, has_background, label_settings
from gla_jax.analysis.token_labels import UNLABELLED, token_targets
from gla_jax.config import BASELINES, SegmenterConfig
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets.dataset import TINY_WORLD_SIZE, Dataset, Example
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.protocols import Protocol
from gla_jax.images.windows import Windows
from gla_jax.support.files import write_text
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    aggregate_windows,
    compared_features,
    patch_features,
    token_logits,
)
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import METHOD_NUMBERS, NUMBERS, PRESET_FORMAT, join_or
from gla_jax.support.errors import UserError
from gla_jax.support.progress import track
from gla_jax.support.shapes import Array, Float, Int, Integer
from gla_jax.support.version import VERSION

# Narrow enough to be near the method, wide enough that tokens on either side of rho are felt.
MASK_TEMPERATURE = 0.05
THRESHOLD_WIDTH = 0.02  # of the sigmoid that stands for the background threshold, in probability
# Adam takes full steps along slopes well above it: a number that hardly matters hardly moves.
SLOPE_THAT_MATTERS = 1e-2
# At a threshold of 0 no probability is near it, so it has no slope: a fit starts from the released runs' value.
FIRST_THRESHOLD = 0.1
# mIoU of a few images moves by single pixels: as much decides nothing, the loss does.
MIOU_NOISE = 0.05


class Tuned(NamedTuple):
    """The numbers that are fitted, in coordinates in which every real number is allowed."""

    anchor_threshold: Array
    dynamic_shift: Array
    dynamic_scale: Array
    logit_scale: Array
    threshold: Array


def coordinates(config: SegmenterConfig) -> Tuned:
    """The coordinates of a configuration: rho in -1..1, scales above 0, the threshold in 0..1.

    A number at the end of its range, where the coordinate is infinite, is taken as near to it. Raises UserError for a
    method that lacks one of the numbers.
    """
    method = config.method
    if not method.proxy_anchors or method.dynamic_shift is None or method.dynamic_scale is None:
        choices = join_or(sorted(row.gla for row in BASELINES.values() if row.gla))
        raise UserError(f"only a method with anchors and dynamic normalisation can be tuned; name {choices}.")
    rho, threshold = np.clip(method.anchor_threshold, -0.999, 0.999), np.clip(config.threshold, 0.001, 0.999)
    above_zero = np.maximum([method.dynamic_shift, method.dynamic_scale, config.logit_scale], 0.001)
    return Tuned(*map(jnp.float32, (np.arctanh(rho), *np.log(above_zero), np.log(threshold / (1 - threshold)))))


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


class Labelled(NamedTuple):
    """One image after the towers: its label map, and targets [W S] int32, the class of every token or UNLABELLED."""

    encoded: Encoded
    label: Integer[np.ndarray, "h w"]
    targets: Int[np.ndarray, "W S"]


def labelled(segmenter: Segmenter, example: Example, ignore: int = 255) -> Labelled:
    """Run the towers over an image. Raises UserError when no token of it is labelled."""
    encoded = encode(segmenter, example.image, [segmenter.config])
    compared = compared_features(encoded.tokens, BASELINES[segmenter.config.method.baseline].features[0])
    targets = token_targets(example.label, encoded.grid, *compared.shape[:2], ignore)
    if (targets == UNLABELLED).all():
        raise UserError(
            f"the image {example.image_id} has nothing labelled, so nothing can be fitted to it; leave it out."
        )
    return Labelled(encoded, example.label, targets)


def class_log_probabilities(
    logits: Float[Array, "W S Q"],
    class_of_prompt: Int[Array, " Q"],
    config: SegmenterConfig,
    classes: int,
    background: bool,
) -> Float[Array, "L W S"]:
    """Log of the best synonym's probability of every class; with a background, mixed with what falls to class 0.

    A token falls by a sigmoid of how far its best probability is below the threshold: labels take it at once.
    """
    by_query = jnp.moveaxis(jax.nn.log_softmax(config.logit_scale * logits, axis=-1), -1, 0)
    by_class = jax.ops.segment_max(by_query, class_of_prompt, classes)
    if not background:
        return by_class
    below = (config.threshold - jnp.exp(by_class.max(0))) / THRESHOLD_WIDTH
    stays = by_class + jax.nn.log_sigmoid(-below)[None]
    return stays.at[0].set(jnp.logaddexp(stays[0], jax.nn.log_sigmoid(below)))


@partial(jax.jit, static_argnames=("classes", "background"))
def loss(
    config: SegmenterConfig,
    tokens: WindowTokens,
    windows: Windows,
    targets: Int[Array, "W S"],
    bank: Float[Array, "Q E"],
    class_of_prompt: Int[Array, " Q"],
    params: SegmenterParams,
    classes: int,
    background: bool,
) -> Float[Array, ""]:
    """Mean cross-entropy of the labelled tokens of one image, every window's token by itself."""
    gathered = aggregate_windows(tokens, windows, params, config.method)
    logits = token_logits(patch_features(gathered, tokens, params, config), bank)
    by_class = class_log_probabilities(logits, class_of_prompt, config, classes, background)
    counted = (targets != UNLABELLED).astype(jnp.float32)
    picked = jnp.take_along_axis(by_class, jnp.maximum(targets, 0)[None], 0)[0]
    return -(picked * counted).sum() / counted.sum()


@partial(jax.jit, static_argnames=("classes", "background"))
def _slope(tuned: Tuned, config: SegmenterConfig, *about, classes: int, background: bool) -> tuple[Array, Tuned]:
    def soft(tuned: Tuned) -> Array:
        here = configured(tuned, config, background)
        here = replace(here, method=replace(here.method, mask_temperature=MASK_TEMPERATURE))
        return loss(here, *about, classes=classes, background=background)

    return jax.value_and_grad(soft)(tuned)


@dataclass(frozen=True)
class Problem:
    """What a loss is taken over, besides image and settings."""

    segmenter: Segmenter
    row: Protocol
    ignore: int = 255

    @property
    def background(self) -> bool:
        """Whether class 0 takes tokens below the threshold, so that there is one to fit."""
        return has_background(self.row)

    def about(self, image: Labelled) -> tuple:
        """The arrays that loss reads of an image, after its config."""
        prompts = self.row.vocabulary
        class_of_prompt = np.asarray(prompts.class_of_prompt, np.int32)
        tokens, windows = image.encoded.tokens, image.encoded.windows
        return (
            tokens,
            windows,
            image.targets,
            self.segmenter.text_embeddings(prompts),
            class_of_prompt,
            self.segmenter.params,
        )

    @property
    def structure(self) -> dict[str, int | bool]:
        """What decides the compiled program of loss."""
        return {"classes": len(self.row.classes), "background": self.background}


class Fit(NamedTuple):
    """What a fit found: the settings, and the loss under soft masks of the image of every step."""

    config: SegmenterConfig
    losses: tuple[float, ...]


def fit(
    problem: Problem, images: Sequence[Labelled], start: SegmenterConfig, steps: int = 60, learning_rate: float = 0.05
) -> Fit:
    """Adam over the coordinates from the settings of a start, one image a step in turn."""
    first = replace(start, threshold=start.threshold or FIRST_THRESHOLD) if problem.background else start
    tuned = coordinates(first)
    transform = optax.adam(optax.cosine_decay_schedule(learning_rate, steps), eps=SLOPE_THAT_MATTERS)
    state, losses = transform.init(tuned), []
    for step in track(range(steps), "steps"):
        with jax.default_matmul_precision("highest"):
            value, gradient = _slope(tuned, start, *problem.about(images[step % len(images)]), **problem.structure)
        losses.append(float(value))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            update, state = transform.update(gradient, state, tuned)
        tuned = optax.apply_updates(tuned, update)
    found = configured(tuned, start, problem.background)
    # Six digits, as the preset keeps them: what is measured is what it holds.
    return Fit(jax.tree.map(lambda number: round(float(number), 6), found), tuple(losses))


def figures(problem: Problem, images: Sequence[Labelled], configs: Sequence[SegmenterConfig]) -> list[dict[str, float]]:
    """Of every configuration over some images: "loss", the mean over images, and "miou" in percent."""
    segmenter, prompts, classes = problem.segmenter, problem.row.vocabulary, len(problem.row.classes)
    areas, losses = [Areas.zeros(classes)] * len(configs), np.zeros(len(configs))
    for image in images:
        for found in label_settings(segmenter, image.encoded, configs, segmenter.text_embeddings(prompts), prompts):
            areas[found.index] = areas[found.index].merge(
                image_areas(found.labels, image.label, classes, problem.ignore)
            )
        with jax.default_matmul_precision("highest"):
            losses += [float(loss(config, *problem.about(image), **problem.structure)) for config in configs]
    return [
        {"loss": float(total) / len(images), "miou": one.scores().miou}
        for total, one in zip(losses, areas, strict=True)
    ]


class Parts(NamedTuple):
    """Indices of the images that are fitted, and of those that only measure."""

    fitted: tuple[int, ...]
    held_out: tuple[int, ...]


def divide(available: int, images: int, hold_out: float) -> Parts:
    """Images spread evenly over a data set, whose neighbours are often alike, and the held-out ones among them.

    A share above 0 holds out one image at least. Raises UserError when no image is left to fit on.
    """
    count = min(images, available)
    held = max(round(count * hold_out), 1) if hold_out > 0 else 0
    if held >= count:
        raise UserError(f"of {count} images {held} are held out, which leaves none to fit on; give more with --images.")
    chosen = np.linspace(0, available - 1, count).round().astype(int).tolist()
    kept_back = {round((index + 1) * count / held) - 1 for index in range(held)}
    return Parts(
        tuple(index for place, index in enumerate(chosen) if place not in kept_back),
        tuple(index for place, index in enumerate(chosen) if place in kept_back),
    )


@dataclass(frozen=True)
class Report:
    """A fit: its start and end, and by part ("fitted", "held out") the images and the figures of both, hard masks."""

    start: SegmenterConfig
    end: SegmenterConfig
    images: Mapping[str, tuple[str, ...]]
    figures: Mapping[str, tuple[dict[str, float], dict[str, float]]]
    losses: tuple[float, ...]

    @property
    def worse(self) -> bool:
        """Whether mIoU fell on the held-out images (all, when none are held out), or hardly moved and the loss rose."""
        before, after = self.figures.get("held out", self.figures["fitted"])
        if abs(after["miou"] - before["miou"]) > MIOU_NOISE:
            return after["miou"] < before["miou"]
        return after["loss"] > before["loss"]

    def lines(self) -> Iterator[str]:
        """The report for a terminal: figures of both parts, then the numbers that moved."""
        for part, (before, after) in self.figures.items():
            yield (
                f"{part:8s} ({len(self.images[part])})   loss {before['loss']:.6f} -> {after['loss']:.6f}"
                f"   mIoU {before['miou']:.3f} -> {after['miou']:.3f}"
            )
        for name in NUMBERS:
            before, after = number(self.start, name), number(self.end, name)
            if before != after:
                yield f"{name:16s} {before:.4g} -> {after:.4g}"


def number(config: SegmenterConfig, name: str) -> float:
    """One of the numbers that are fitted."""
    return float(getattr(config.method if name in METHOD_NUMBERS else config, name))


def tune(segmenter: Segmenter, dataset: Dataset, row: Protocol, *, images: int, hold_out: float, steps: int) -> Report:
    """Fit the segmenter's settings to some images of a data set, and measure both parts with hard masks.

    Raises UserError when no image is left to fit on or one has nothing labelled.
    """
    start, parts = segmenter.config, divide(len(dataset.ids), images, hold_out)
    problem = Problem(segmenter, row, dataset.ignore)
    everything = track(parts.fitted + parts.held_out, "images encoded")
    encoded = [labelled(segmenter, dataset.read(index), dataset.ignore) for index in everything]
    fitted, held_out = encoded[: len(parts.fitted)], encoded[len(parts.fitted) :]
    found = fit(problem, fitted, start, steps)
    by_part = {"fitted": (parts.fitted, fitted)} | ({"held out": (parts.held_out, held_out)} if held_out else {})
    return Report(
        start,
        found.config,
        {name: tuple(dataset.ids[index] for index in indices) for name, (indices, _) in by_part.items()},
        {name: tuple(figures(problem, some, (start, found.config))) for name, (_, some) in by_part.items()},
        found.losses,
    )


def fitting_scenes(dataset: Dataset) -> Dataset:
    """tiny-world's own training scenes in place of the held-out ones; any other data set as it is."""
    if dataset.benchmark != TINY_WORLD:
        return dataset
    from gla_jax.tiny_world.scenes import render

    def read(index: int) -> Example:
        scene = render(10**9 + index, *TINY_WORLD_SIZE, split="train")  # far from the seeds of the training
        return Example(ids[index], scene.image, scene.labels)

    ids = tuple(f"train-{name}" for name in dataset.ids)
    return replace(dataset, ids=ids, read=read)


def write_preset(
    path: Path, report: Report, method: str, prompts: str, origin: Mapping[str, str], keep_start: bool
) -> None:
    """The settings as a file that --preset takes, whole or not there.

    method: the name of what was fitted; prompts: of the list of prompts that it was fitted on.
    """
    chosen = report.start if keep_start else report.end
    content = {
        "format": PRESET_FORMAT,
        "version": VERSION,
        "method": method,
        "prompts": prompts,
        "windows": asdict(chosen.windows),
        "numbers": {name: number(chosen, name) for name in NUMBERS},
        "holds": "start" if keep_start else "fit",
        "tuned_on": {**origin, "images": report.images},
        "figures": {part: {"start": before, "end": after} for part, (before, after) in report.figures.items()},
        "losses": [round(value, 6) for value in report.losses],
    }
    write_text(path, json.dumps(content, indent=1) + "\n")
