"""Ablations: many settings of a method measured on one benchmark; the towers run once an image."""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp

from gla_jax.analysis.ablation import Ablation
from gla_jax.analysis.ablation_report import Tally, as_table, write_files
from gla_jax.analysis.encoded import encode_image, example_sums, label_settings, vocabulary_question
from gla_jax.distributed.shards import Shard
from gla_jax.eval.benchmarks import BENCHMARKS
from gla_jax.eval.datasets.by_example import example_classes
from gla_jax.eval.datasets.dataset import Dataset, examples
from gla_jax.eval.metrics.areas import Areas, image_areas
from gla_jax.eval.metrics.boundary import BoundaryCounts, boundary_counts
from gla_jax.eval.protocols import Protocol
from gla_jax.eval.report.page import counted
from gla_jax.pictures.charts import require_matplotlib
from gla_jax.predict.examples import ClassSums, ExampleClasses, check_present
from gla_jax.predict.model import Model
from gla_jax.predict.predict import Question
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.support.progress import track

if TYPE_CHECKING:
    from rich.table import Table

NO_OTHERS: Mapping[str, Segmenter] = MappingProxyType({})


class Measured(NamedTuple):
    """The tallies of all settings in order, the seconds of the towers, and the number of images."""

    tallies: tuple[Tally, ...]
    tower_seconds: float
    images: int


class TowerGroup(NamedTuple):
    """Settings under which the towers compute the same: a model with the first of them, and the indices of all."""

    model: Model
    indices: list[int]


def tower_groups(
    segmenter: Segmenter, ablation: Ablation, others: Mapping[str, Segmenter] = NO_OTHERS
) -> list[TowerGroup]:
    """One group, but for models, windows, precision and tower_batch; arguments as in measure.

    Features of CLIP-DINOiser's layers and stitched ones take the place of a foundation model's, and joint features
    that of values: other groups.
    """
    groups: dict[tuple, TowerGroup] = {}
    for index, (_, config, name) in enumerate(ablation.settings):
        own = others.get(name, segmenter)
        method = config.method
        towers = method.precision, config.max_tower_batch, method.reads_dinoiser, method.stitches, method.pools_joint
        key = name, config.windows, *towers
        groups.setdefault(key, TowerGroup(own.model.with_config(config), [])).indices.append(index)
    return list(groups.values())


def questions_by_example(
    groups: Sequence[TowerGroup], ablation: Ablation, parts: Sequence[ExampleClasses]
) -> list[tuple[Question, ...]]:
    """For each of several parts of labelled images the question of every setting, from all parts but that one.

    Of a single part, from itself; groups: of all settings.
    """
    classes = len(parts[0].names)
    widths = {index: model.params.joint_width for model, indices in groups for index in indices}
    sums = [[ClassSums.zeros(classes, widths[index]) for index in sorted(widths)] for _ in parts]
    places = [(part, index) for part, own in enumerate(parts) for index in range(own.count)]
    for part, index in track(places, "labelled images"):
        example = parts[part].read(index)
        for model, indices in groups:
            configs = [ablation.settings[place].config for place in indices]
            shown = example_sums(model, example, configs, classes, parts[part].ignore)
            for place, own in zip(indices, shown, strict=True):
                sums[part][place] = sums[part][place].merge(own)

    def questions(left_out: int) -> tuple[Question, ...]:
        shown = [own for part, own in enumerate(sums) if part != left_out or len(parts) == 1]
        totals = [reduce(ClassSums.merge, of_setting) for of_setting in zip(*shown, strict=True)]
        beside = f", outside fold {left_out + 1} of {len(parts)}" if len(parts) > 1 else ""
        # Most settings see the same classes: one warning for all of them.
        for total in {tuple(total.count > 0): total for total in totals}.values():
            check_present(total, parts[0].names, f"{parts[0].origin}{beside}")
        rows = (total.embeddings() for total in totals)
        return tuple(Question(jnp.asarray(embeddings), present, classes) for embeddings, present in rows)

    return [questions(part) for part in range(len(parts))]


def measure(
    segmenter: Segmenter,
    ablation: Ablation,
    dataset: Dataset,
    row: Protocol,
    limit: int | None = None,
    shown: ExampleClasses | None = None,
    folds: int | None = None,
    others: Mapping[str, Segmenter] = NO_OTHERS,
) -> Measured:
    """Figures of every setting over the first images of a data set, as `gla-jax eval` counts them.

    Args:
        segmenter: the model of settings that name none.
        ablation: settings that fit their models; boundary errors are counted at the edges of each one's windows.
        dataset: images with labels.
        row: prompts.
        limit: images at most, None for all.
        shown: labelled images that show the classes, in place of the prompts.
        folds: parts of the images, in each of which the labels of the other parts show the classes.
        others: the models of a grid over models, by name.
    """
    groups = tower_groups(segmenter, ablation, others)
    images, tower_seconds = range(min(limit or len(dataset.ids), len(dataset.ids))), 0.0
    classes, parts = len(row.classes), [images]
    if folds is not None:
        if folds > len(images):
            way_out = f"choose --folds up to {len(images)}" if len(images) > 1 else "folds need two images at least"
            raise UserError(f"{counted(len(images))} cannot make {folds} folds; {way_out}.")
        parts = [Shard(fold, folds).part(len(images)) for fold in range(folds)]
        questions = questions_by_example(groups, ablation, [example_classes(dataset, part) for part in parts])
    elif shown is not None:
        questions = questions_by_example(groups, ablation, [shown])
    else:
        named = [others.get(setting.model, segmenter) for setting in ablation.settings]
        questions = [tuple(vocabulary_question(own, row.vocabulary) for own in named)]
    per_image = [question for part, question in zip(parts, questions, strict=True) for _ in part]
    tallies = [Tally(Areas.zeros(classes), BoundaryCounts.zeros(), 0.0)] * len(ablation.settings)
    for index, example in zip(track(images, "images measured"), examples(dataset, images), strict=True):
        for model, indices in groups:
            begun = time.perf_counter()
            configs = [ablation.settings[index].config for index in indices]
            encoded = encode_image(model, example.image, configs)
            tower_seconds += time.perf_counter() - begun
            resized = encoded.prepared.grid.height, encoded.prepared.grid.width
            own_questions = [per_image[index][place] for place in indices]
            for place, labels, seconds, one_key in label_settings(model, encoded, configs, own_questions):
                areas, boundary, before, counts = tallies[indices[place]]
                if one_key is not None:
                    counts = counts[0] + int(one_key.one), counts[1] + int(one_key.tokens)
                areas = areas.merge(image_areas(labels, example.label, classes, dataset.ignore))
                edges = boundary_counts(labels, example.label, resized, model.config.windows, dataset.ignore)
                tallies[indices[place]] = Tally(areas, boundary.merge(edges), before + seconds, counts)
    return Measured(tuple(tallies), tower_seconds, len(images))


def has_background(row: Protocol) -> bool:
    """True if class 0 is a background, which pixels below a threshold become."""
    return BENCHMARKS[row.benchmark].background or row.classes[0] == "background"


def warn_of_idle_fields(ablation: Ablation, row: Protocol) -> None:
    """Warn where a grid over logit_scale or threshold cannot have the effect that its user expects."""
    thresholds = {setting.config.threshold for setting in ablation.settings}
    if "logit_scale" in ablation.varied() and thresholds == {0.0}:
        warnings.warn("logit_scale moves no label while the threshold is 0: add a grid of threshold", stacklevel=2)
    if thresholds != {0.0} and not has_background(row):
        first = row.classes[0]
        warnings.warn(f"{row.benchmark} has no background: pixels below the threshold become {first!r}", stacklevel=2)


def run_ablation(
    segmenter: Segmenter,
    ablation: Ablation,
    dataset: Dataset,
    row: Protocol,
    folder: Path,
    limit: int | None = None,
    shown: ExampleClasses | None = None,
    folds: int | None = None,
    others: Mapping[str, Segmenter] = NO_OTHERS,
) -> "Table":
    """Measure an ablation and write ablation.json, ablation.csv and ablation.png; returns the table.

    Args:
        segmenter: the model of settings that name none.
        ablation: the settings to compare.
        dataset: images with labels.
        row: prompts and windows.
        folder: an existing one.
        limit: images at most, None for all.
        shown: labelled images that show the classes, in place of the prompts.
        folds: as in measure.
        others: as in measure.

    Raises UserError when a setting does not fit its model.
    """
    require_matplotlib()
    # The model checks settings, and fills in the numbers of its platform.
    settings = (
        one._replace(config=others.get(one.model, segmenter).model.with_config(one.config).config)
        for one in ablation.settings
    )
    ablation = replace(ablation, settings=tuple(settings))
    warn_of_idle_fields(ablation, row)
    tallies, tower_seconds, images = measure(segmenter, ablation, dataset, row, limit, shown, folds, others)
    models = [{"name": one.name, "sha256": one.model_hash} for one in others.values() or (segmenter,)]
    note = f"{row.benchmark}, {counted(images)}" + ("" if others else f", model {segmenter.name}")
    if shown or folds:
        note += f"; classes by example from {shown.origin if shown else f'the other of {folds} folds'}"
    about = {
        "classes_from": {"origin": shown.origin, "sha256": shown.sha256} if shown else folds and {"folds": folds},
        "benchmark": row.benchmark,
        "preset": row.setting,
        "protocol_sha256": row.sha256,
        "models" if others else "model": models if others else models[0],
        "data": {"origin": dataset.origin, "sha256": dataset.fingerprint},
        "images": {"measured": images, "in_data": len(dataset.ids)},
        "tower_seconds": tower_seconds,
    }
    write_files(folder, ablation, tallies, note, about)
    return as_table(ablation, tallies, note)
