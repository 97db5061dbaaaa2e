"""The parts of a model that are measured: towers, attention, labels and a whole image.

Every part runs the functions that segment an image. Weights, windows, features and text may be random: none of these
programs depends on the numbers.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gla_jax.attention.attend import aggregate_values
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.bench.options import RANDOM, Options
from gla_jax.bench.timing import Bench, Row, random_array
from gla_jax.checkpoints.model_folder import VfmSpec, abstract_params
from gla_jax.config import METHODS, SegmenterConfig
from gla_jax.distributed.mesh import make_mesh, padded_windows
from gla_jax.images.windows import Windows, bucket, token_overlaps
from gla_jax.labels.label_map import layout, whole_logits
from gla_jax.pipeline import Counted, SegmenterParams, aggregate_windows, encode_windows, patch_features
from gla_jax.predict.cost import (
    Widths,
    attention_flops,
    blank_windows,
    clip_flops,
    image_flops,
    merged_share,
    model_widths,
    projection_flops,
    vfm_flops,
)
from gla_jax.predict.model import MAX_PROGRAM_WINDOWS, Model, Prepared
from gla_jax.predict.predict import Question, label_logits, predict, start_together
from gla_jax.support.arrays import Array, l2_normalize
from gla_jax.support.errors import UserError
from gla_jax.support.progress import track
from gla_jax.towers.clip import ClipImageSpec
from gla_jax.towers.dino import DinoSpec
from gla_jax.towers.dinoiser import DinoiserSpec
from gla_jax.towers.layers import VisionSpec

# The published pair: CLIP ViT-B/16 and DINO ViT-B/8.
CLIP_BASE = ClipImageSpec(224, 16, width=768, depth=12, num_heads=12, mlp_width=3072, embed_dim=512)
DINO_BASE = DinoSpec(224, 8, width=768, depth=12, num_heads=12, mlp_width=3072)


def random_params(
    clip: VisionSpec, vfm: VfmSpec | None, seed: int = 0, dinoiser: DinoiserSpec | None = None
) -> SegmenterParams:
    """Towers of some sizes, and CLIP-DINOiser's layers, with random weights, drawn by NumPy, which compiles nothing."""
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)
        return noise + np.float32(1) if path[-1].key == "scale" else noise  # of a LayerNorm

    parts = []
    for spec in (clip, vfm, dinoiser):
        parts += (spec and jax.tree_util.tree_map_with_path(draw, dict(abstract_params(spec)))), spec
    return SegmenterParams(*parts)


def load_model(options: Options, offline: bool = False) -> Model:
    """The towers that --model names. Raises UserError when they cannot be loaded or do not fit the sizes."""
    if options.model == RANDOM:
        return Model.place(random_params(CLIP_BASE, DINO_BASE), options.config)
    from gla_jax.segmenter import Segmenter

    model = Segmenter.from_pretrained(options.model, options.config, offline=offline).model
    if model.params.clip is None:
        raise UserError(f"{options.model} is a foundation model alone, which bench does not measure; name a CLIP too.")
    return model


def bench_mesh(devices: int) -> Mesh:
    """A mesh of the first devices. Raises UserError when there are fewer."""
    if devices > len(jax.devices()):
        raise UserError(f"{devices} devices are asked for and {len(jax.devices())} are here; lower --devices.")
    return make_mesh(devices=jax.devices()[:devices])


class Subject(NamedTuple):
    """A model, an image of RGB noise and random prompts, every prompt a class."""

    options: Options
    model: Model
    widths: Widths
    image: np.ndarray
    prepared: Prepared
    question: Question

    @classmethod
    def of(cls, options: Options, model: Model) -> "Subject":
        """The image and the prompts of some options."""
        count, width = options.prompts, model.params.clip_spec.embed_dim
        image = np.random.default_rng(0).integers(0, 256, (*options.size, 3), np.uint8)
        question = Question(l2_normalize(random_array((count, width))), np.arange(count, dtype=np.int32), count)
        return cls(options, model, model_widths(model.params, model.config), image, model.prepare(image), question)

    def labels(self, features: Array) -> np.ndarray:
        """The label map of the image by features [W S E]."""
        config = self.model.config
        if self.model.labels_together:
            started = start_together(self.model, Counted(features[None]), [self.prepared], self.question)
            return started.labels[0]().labels
        logits = whole_logits(features, self.question.text_embeddings, config.method.plain_precision)
        return label_logits(logits, self.prepared, self.question, config).labels


def part_rows(subject: Subject, bench: Bench, forms: tuple[str, ...] | None = None) -> Iterator[Callable[[], Row]]:
    """Measurements of the chosen parts, in order, each runs when it is called; forms: of the attention, None: all."""
    options = subject.options
    if "towers" in options.parts:
        yield from _tower_rows(subject, bench)
    if "attention" in options.parts:
        for form in forms or options.forms:
            yield partial(attention_row, form, "attention", options.grid.count, subject, bench)
    if "labels" in options.parts:
        yield partial(_label_row, subject, bench)
    if "image" in options.parts:
        # Dense attention is there to be compared; the attention part measures whether it fits.
        yield from (partial(_image_row, form, subject, bench) for form in options.forms if form != "dense")


def sweep_rows(subject: Subject, bench: Bench) -> Iterator[Row]:
    """The attention alone over 1, 2, 4, ... windows in every form; a form that needs too much memory ends there."""
    forms = list(subject.options.forms)
    doublings = [2**power for power in range((subject.options.max_windows or 0).bit_length())]
    for windows in track(doublings, "windows swept") if doublings else ():
        for form in tuple(forms):
            row = attention_row(form, "sweep", windows, subject, bench)
            if row.stopped:
                forms.remove(form)
            yield row


def bench_row(part: str, name: str, flops: dict[str, float], subject: Subject, bench: Bench, windows: int = 0) -> Row:
    """A row that is not measured yet; windows: W, 0 for those of the image."""
    windows = windows or subject.options.grid.count
    return Row(part, name, windows, windows * subject.widths.tokens, flops, bench.ideal(flops))


def _tower_rows(subject: Subject, bench: Bench) -> Iterator[Callable[[], Row]]:
    """CLIP, the vision foundation model, and the projection of attended values to the joint space."""
    params, config, widths = subject.model.params, subject.model.config, subject.widths
    count, crop = subject.options.grid.count, config.windows.crop
    windows = jax.device_put(blank_windows(bucket(count), config))

    def measured(name: str, flops: float, function: Callable, *arguments: Any) -> Callable[[], Row]:
        row = bench_row("towers", name, {config.dtype: flops}, subject, bench)
        return lambda: bench.measure_program(row, jax.jit(function), *arguments)

    def features(*arguments: Any) -> Array:
        return encode_windows(*arguments).features  # CLIP's output is unused, so XLA eliminates CLIP

    clip_alone = replace(config, method=METHODS["vanilla"])  # a baseline that reads no features
    yield measured("CLIP", count * clip_flops(params.clip_spec, crop), encode_windows, params, windows, clip_alone)
    yield measured("features", count * vfm_flops(params.features_spec, crop), features, params, windows, config)
    attended = random_array((bucket(count), widths.tokens, widths.values))
    flops = projection_flops(params.clip_spec, count * widths.tokens, whole_block=False)
    yield measured("projection", flops, patch_features, attended, None, params, config)


def attention_row(form: str, part: str, windows: int, subject: Subject, bench: Bench, **step: Any) -> Row:
    """From features and values of all windows to the weighted values of every token.

    In a ring windows are split over devices: XLA's plan is that of each of them, the ceiling that of all.

    Args:
        form: of the attention.
        part: of the table that the row belongs to.
        windows: W; those of the image where overlaps are merged.
        subject: the sizes.
        bench: measures.
        step: a field of the method that is measured in place of the method's own.
    """
    widths, devices, model = subject.widths, subject.options.devices, subject.model
    method = replace(model.config.method, attention=form, **step)
    name = ", ".join([form, *(f"{field} {value}" for field, value in step.items())])
    share = merged_share(subject.prepared.grid, model.params, replace(model.config, method=method))
    mesh = bench_mesh(devices) if form == "ring" else None
    padded = padded_windows(windows, mesh) if mesh else bucket(windows)
    arrays = (
        random_array((padded, widths.tokens, widths.features)),
        random_array((padded, widths.clip_tokens, widths.values)),
        jnp.arange(padded) < windows,
    )

    overlaps = None
    if method.merge_overlaps:
        overlaps = token_overlaps(subject.prepared.grid, padded, model.params.patch_size(method))

    def attend(*arrays: Array) -> Array:
        return aggregate_values(*arrays, method, overlaps=overlaps)

    if mesh:
        bench, split = bench.on_devices(devices), PartitionSpec(WINDOW_AXIS)
        arrays = jax.device_put(arrays, NamedSharding(mesh, split))
        attend = jax.shard_map(attend, mesh=mesh, in_specs=split, out_specs=split)
    row = bench_row(part, name, {"float32": attention_flops(widths, windows * share, method)}, subject, bench, windows)
    return bench.measure_program(row, jax.jit(attend), *arrays)


def label_flops(subject: Subject) -> float:
    """From features to the label map: 2NEQ of the logits, then upsampling along each axis, tile by tile.

    A tile of r x c pixels that sees b x d tokens, k of the b in a pixel row, is 2bdcQ for its columns and 2krcQ for
    its rows.
    """
    grid, tokens = subject.options.grid, subject.widths.tokens
    prompts, width = subject.question.text_embeddings.shape
    upsampling = 0
    for down, _, rows, columns in layout(grid, tokens, subject.options.size).tiles():
        band, pixels = columns.matrix.shape
        upsampling += len(rows.starts) * band * pixels + rows.taps.shape[1] * (down.stop - down.start) * pixels
    return 2.0 * prompts * (grid.count * tokens * width + upsampling)


def _label_row(subject: Subject, bench: Bench) -> Row:
    """From features in the joint space to the label map of the image."""
    width = subject.model.params.clip_spec.embed_dim
    features = random_array((bucket(subject.options.grid.count), subject.widths.tokens, width))
    row = bench_row("labels", "stitching", {"float32": label_flops(subject)}, subject, bench)
    return bench.measure(row, lambda: subject.labels(features))


def _image_row(form: str, subject: Subject, bench: Bench) -> Row:
    """An image from pixels to labels, as Segmenter does it: in one program, or in steps when it has many windows."""
    options, model, count = subject.options, subject.model, subject.options.grid.count
    config, attention = model.config, attention_flops(subject.widths, count, model.config.method)
    flops = dict.fromkeys((config.dtype, "float32"), 0.0)
    flops[config.dtype] += image_flops(model.params, count, config) - attention
    flops["float32"] += attention + label_flops(subject)
    if form == "ring":
        bench = bench.on_devices(options.devices)
        model = Model.place(model.params, options.config, bench_mesh(options.devices))

    def run() -> np.ndarray:
        (prediction,) = predict(model, [model.prepare(subject.image)], subject.question)
        return prediction.labels

    return bench.measure(bench_row("image", form, flops, subject, bench), run)


@jax.jit
def _stages(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> dict[str, Array]:
    tokens = encode_windows(params, windows, config)
    attended = aggregate_windows(tokens, windows, params, config.method)
    joint = patch_features(attended, tokens.residual, params, config)
    return {"values": tokens.values, "features": tokens.features, "joint": joint}


def agreement(subject: Subject, offline: bool = False) -> dict[str, Any] | None:
    """Tokens and labels of the image compared with those of float32 towers of the same weights.

    values and features: of the towers; joint: after the method, where a rounded similarity may flip a hard mask; of
    each the cosine over all tokens, "mean" and "least". labels: the share of equal pixels, every prompt a class. None
    for float32 itself and for an image that does not fit into one program.
    """
    options, count = subject.options, subject.options.grid.count
    if options.config.dtype == "float32" or count > MAX_PROGRAM_WINDOWS:
        return None
    reference = replace(options, config=replace(options.config, dtype="float32"))
    tokens, labels = [], []
    for each in (subject, Subject.of(reference, load_model(reference, offline))):
        rows = _stages(each.model.params, each.prepared.windows, each.model.config)
        tokens.append({name: np.asarray(l2_normalize(stage[:count])) for name, stage in rows.items()})
        labels.append(each.labels(rows["joint"]))
    cosines = {name: (tokens[0][name] * tokens[1][name]).sum(-1) for name in tokens[0]}
    figures = {name: {"mean": float(each.mean()), "least": float(each.min())} for name, each in cosines.items()}
    return figures | {"labels": float((labels[0] == labels[1]).mean())}
