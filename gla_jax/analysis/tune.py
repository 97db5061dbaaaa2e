"""Fits the numbers of a method to a few labelled images by gradient descent through the method itself.

The paper sets rho, alpha_beta, alpha_gamma, the logit scale and the background threshold by hand for a data set. Here
they follow the gradient of a cross-entropy at token resolution, under soft masks (DESIGN 3.5); what is reported, and
what the preset is for, is the method with its own hard masks. The towers run once an image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gla_jax.analysis import encoded
from gla_jax.analysis.ablate import has_background
from gla_jax.config import BASELINES, SegmenterConfig
from gla_jax.eval.benchmarks import TINY_WORLD
from gla_jax.eval.datasets.dataset import TINY_WORLD_SIZE, Dataset, Example
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.protocols import Protocol
from gla_jax.labels.label_map import synonyms
from gla_jax.labels.targets import UNLABELLED, token_targets
from gla_jax.predict.predict import Question
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import NUMBERS, join_or, number, preset_content
from gla_jax.support.arrays import Array, Float, Int, Integer
from gla_jax.support.errors import UserError
from gla_jax.support.files import write_json
from gla_jax.support.progress import track

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

    encoded: encoded.Encoded
    label: Integer[np.ndarray, "h w"]
    targets: Int[np.ndarray, "W S"]


@dataclass(frozen=True)
class Problem:
    """A model and the classes that it is fitted to; ignore: value of pixels that have no class.

    question: prompts and classes; background: whether class 0 takes tokens below the threshold, which is fitted then.
    """

    segmenter: Segmenter
    question: Question
    background: bool
    ignore: int = 255

    @classmethod
    def of(cls, segmenter: Segmenter, row: Protocol, ignore: int = 255) -> "Problem":
        """The problem of a benchmark's classes."""
        return cls(segmenter, encoded.vocabulary_question(segmenter, row.vocabulary), has_background(row), ignore)

    def labelled(self, example: Example) -> Labelled:
        """Run the towers over an image. Raises UserError when no token of it is labelled."""
        config = self.segmenter.config
        image = encoded.encode_image(self.segmenter.model, example.image, [config])
        shape = image.tokens.compared(config.method)[0].shape[:2]
        targets = token_targets(example.label, image.prepared.grid, shape, self.ignore)
        if (targets == UNLABELLED).all():
            raise UserError(
                f"the image {example.image_id} has nothing labelled, so nothing can be fitted to it; leave it out."
            )
        return Labelled(image, example.label, targets)

    def inputs(self, image: Labelled) -> tuple:
        """The arrays of an image that loss reads: towers' outputs, windows, weights, text, prompts, targets."""
        (tokens, prepared), _, targets = image
        prompts = synonyms(self.question.class_of_prompt, self.question.classes)
        return tokens, prepared.windows, self.segmenter.params, self.question.text_embeddings, prompts, targets


def class_log_probabilities(
    logits: Float[Array, "W S Q"], prompts: Int[Array, "L m"], config: SegmenterConfig, background: bool
) -> Float[Array, "L W S"]:
    """Log of the best prompt's probability of every class; with a background, mixed with what falls to class 0.

    A token falls by a sigmoid of how far its best probability is below the threshold, where labels take it at once.

    Args:
        logits: of tokens, before the logit scale.
        prompts: of every class, by `synonyms`.
        config: logit scale and threshold.
        background: whether tokens below the threshold fall to class 0.
    """
    by_prompt = jnp.moveaxis(jax.nn.log_softmax(config.logit_scale * logits, axis=-1), -1, 0)
    by_class = by_prompt[prompts].max(1)
    if not background:
        return by_class
    below = (config.threshold - jnp.exp(by_class.max(0))) / THRESHOLD_WIDTH
    stays = by_class + jax.nn.log_sigmoid(-below)[None]
    return stays.at[0].set(jnp.logaddexp(stays[0], jax.nn.log_sigmoid(below)))


@partial(jax.jit, static_argnames="background")
def loss(config: SegmenterConfig, inputs: tuple, background: bool) -> Float[Array, ""]:
    """Mean cross-entropy of the labelled tokens of one image, every window's token by itself."""
    *image, prompts, targets = inputs
    by_class = class_log_probabilities(encoded.encoded_logits(*image, config).rows, prompts, config, background)
    counted = (targets != UNLABELLED).astype(jnp.float32)
    picked = jnp.take_along_axis(by_class, jnp.maximum(targets, 0)[None], 0)[0]
    return -(picked * counted).sum() / counted.sum()


@partial(jax.jit, static_argnames="background")
def _slope(tuned: Tuned, config: SegmenterConfig, inputs: tuple, background: bool) -> tuple[Array, Tuned]:
    def soft(tuned: Tuned) -> Array:
        here = configured(tuned, config, background)
        return loss(replace(here, method=replace(here.method, mask_temperature=MASK_TEMPERATURE)), inputs, background)

    return jax.value_and_grad(soft)(tuned)


def fit(
    problem: Problem, images: Sequence[Labelled], start: SegmenterConfig, steps: int = 60, learning_rate: float = 0.05
) -> tuple[SegmenterConfig, tuple[float, ...]]:
    """Adam over the coordinates, one image a step in turn: the settings at its end, the soft masks' loss at each step.

    Args:
        problem: model and classes.
        images: labelled ones.
        start: settings of a method with all numbers that are fitted.
        steps: of gradient descent.
        learning_rate: of the first step, in coordinates; it falls to 0 by a cosine.
    """
    first = replace(start, threshold=start.threshold or FIRST_THRESHOLD) if problem.background else start
    tuned = coordinates(first)
    transform = optax.adam(optax.cosine_decay_schedule(learning_rate, steps), eps=SLOPE_THAT_MATTERS)
    state, losses = transform.init(tuned), []
    for step in track(range(steps), "steps"):
        value, gradient = _slope(tuned, start, problem.inputs(images[step % len(images)]), problem.background)
        losses.append(float(value))
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its integer step count with floats
            update, state = transform.update(gradient, state, tuned)
        tuned = optax.apply_updates(tuned, update)
    end = configured(tuned, start, problem.background)
    # Six digits, as the preset keeps them: what is measured is what it holds.
    return jax.tree.map(lambda leaf: round(float(leaf), 6), end), tuple(losses)


def figures(problem: Problem, images: Sequence[Labelled], configs: Sequence[SegmenterConfig]) -> list[dict[str, float]]:
    """Figures of every configuration over images: "loss", the mean over images, and "miou" in percent."""
    classes, losses = problem.question.classes, np.zeros(len(configs))
    areas = [Areas.zeros(classes)] * len(configs)
    for image in images:
        for row in encoded.label_settings(problem.segmenter.model, image.encoded, configs, problem.question):
            areas[row.index] = areas[row.index].merge(image_areas(row.labels, image.label, classes, problem.ignore))
        losses += [float(loss(config, problem.inputs(image), problem.background)) for config in configs]
    means = (losses / len(images)).tolist()
    return [{"loss": mean, "miou": one.scores().miou} for mean, one in zip(means, areas, strict=True)]


def divide(available: int, images: int, hold_out: float) -> dict[str, tuple[int, ...]]:
    """Indices of images spread evenly over a data set, whose neighbours are often alike: "fitted" and "held out".

    A share above 0 holds out one image at least. Raises UserError when no image is left to fit on.
    """
    count = min(images, available)
    held = max(round(count * hold_out), 1) if hold_out > 0 else 0
    if held >= count:
        more = "label more" if count == available else "give more with --images"
        raise UserError(f"of {count} images {held} are held out, which leaves none to fit on; {more}.")
    chosen = np.linspace(0, available - 1, count).round().astype(int)
    kept_back = np.isin(np.arange(count), [round((index + 1) * count / held) - 1 for index in range(held)])
    parts = {"fitted": tuple(chosen[~kept_back].tolist())}
    return parts | ({"held out": tuple(chosen[kept_back].tolist())} if held else {})


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
        """True if mIoU fell on the held-out images (all, when none are held out), or hardly moved and the loss rose."""
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


def tune(segmenter: Segmenter, dataset: Dataset, row: Protocol, *, images: int, hold_out: float, steps: int) -> Report:
    """Fit the segmenter's settings to images of a data set, and measure fitted and held-out ones with hard masks.

    Args:
        segmenter: its settings are the start.
        dataset: images with labels.
        row: classes and prompts.
        images: number of images that are used.
        hold_out: share of them that is only measured.
        steps: of the fit.

    Raises UserError when no image is left to fit on or one has nothing labelled.
    """
    start, parts = segmenter.config, divide(len(dataset.ids), images, hold_out)
    problem = Problem.of(segmenter, row, dataset.ignore)
    everything = track(sum(parts.values(), ()), "images encoded")
    labelled = {index: problem.labelled(dataset.read(index)) for index in everything}
    by_part = {part: [labelled[index] for index in indices] for part, indices in parts.items()}
    end, losses = fit(problem, by_part["fitted"], start, steps)
    names = {part: tuple(dataset.ids[index] for index in indices) for part, indices in parts.items()}
    measured = {part: tuple(figures(problem, images, (start, end))) for part, images in by_part.items()}
    return Report(start, end, names, measured, losses)


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

    Args:
        path: of the file.
        report: the fit.
        method: name of the fitted method.
        prompts: name of the list of prompts that it was fitted on.
        origin: benchmark, setting and model.
        keep_start: write the start in place of the end.
    """
    about = {
        "holds": "start" if keep_start else "fit",
        "tuned_on": {**origin, "images": report.images},
        "figures": {part: {"start": before, "end": after} for part, (before, after) in report.figures.items()},
        "losses": [round(value, 6) for value in report.losses],
    }
    write_json(path, preset_content(report.start if keep_start else report.end, method, prompts, about))
