"""The programs of an image from windows to labels, as shapes: what the package runs, traced for chips not here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.bench.options import RANDOM, Options
from gla_jax.bench.products import REST
from gla_jax.bench.sizes import model_specs
from gla_jax.checkpoints.model_folder import abstract_params
from gla_jax.config import SegmenterConfig
from gla_jax.distributed.labels import split_logits
from gla_jax.distributed.mesh import (
    BY_CANVAS,
    BY_WINDOW,
    EVERYWHERE,
    make_mesh,
    padded_windows,
    ring_features,
)
from gla_jax.images.windows import PIECES, Canvas, Windows, bucket, cut_canvas, piece_bytes, token_overlaps
from gla_jax.labels.label_map import LabelRule, blocks_of, label_tile, layout
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.pipeline import SegmenterParams, query_chunk, segment_features, token_logits
from gla_jax.predict.model import MAX_PROGRAM_WINDOWS, check_settings, merged_patch, on_device
from gla_jax.support.steps import OneProgram
from gla_jax.towers.placement import padded_to_steps, platform_numbers, step_batch

Shape = jax.ShapeDtypeStruct


@dataclass
class Program:
    """A program to compile.

    function(*arguments): of shapes with shardings; runs: how often an image, or a batch of images under a mesh, runs
    it; beside: bytes on the device that are none of its own; devices: among which its operations are split where the
    traced program shows all of them; part: of what lies in no scope.
    """

    name: str
    function: Callable
    arguments: tuple
    runs: int = 1
    beside: int = 0
    devices: int = 1
    part: str = REST


@dataclass
class Recorder(OneProgram):
    """Notes the programs of an image that goes through in steps, while it is traced as if it were one.

    shape: gives an argument its sharding; held: bytes of the parameters, which stay on the device in every step.
    """

    config: SegmenterConfig
    shape: Callable[[Any], Any]
    held: int
    programs: list[Program] = field(default_factory=list)

    def whole(self, function: Callable, *arguments: Any) -> Any:
        """Note function(*arguments)."""
        result = function(*arguments)
        if jax.tree.leaves(result):
            self._note(function, arguments)
        return result

    def windows(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """Note function over chunks of windows."""
        chunk = step_batch(len(jax.tree.leaves(parts)[0]), self.config.max_tower_batch)
        return self._chunks(chunk, function, parts, shared, static)

    def queries(self, function: Callable, parts: tuple, *shared: Any, **static: Any) -> Any:
        """Note function over chunks of queries."""
        chunk = query_chunk(len(jax.tree.leaves(parts)[0]), self.config.method)
        return self._chunks(chunk, function, parts, shared, static)

    def _chunks(self, size: int, function: Callable, parts: tuple, shared: tuple, static: dict[str, Any]) -> Any:
        function = wraps(function)(partial(function, **static))
        result = function(*parts, *shared)
        length = len(jax.tree.leaves(parts)[0])
        full = tree_bytes((result, parts))  # is there beside a chunk of it
        for rows, runs in ((size, length // size), (length % size, 1)):
            if rows and runs:
                chunk = jax.tree.map(lambda x, rows=rows: Shape((rows, *x.shape[1:]), x.dtype), parts)
                self._note(function, (*chunk, *shared), runs, full * (length - rows) // length)
        return result

    def _note(self, function: Callable, arguments: tuple, runs: int = 1, beside: int = 0) -> None:
        if not any(isinstance(each, SegmenterParams) for each in arguments):
            beside += self.held
        name = function.__name__.strip("_")
        self.programs.append(Program(name, function, jax.tree.map(self.shape, arguments), runs, beside))


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype"))


def abstract_model(options: Options) -> SegmenterParams:
    """The shapes of a model's image towers in the towers' dtype. Raises UserError for a name that is none."""
    clip, vfm = model_specs(DEFAULT_MODEL if options.model == RANDOM else options.model)
    params = SegmenterParams(abstract_params(clip), clip, None if vfm is None else abstract_params(vfm), vfm)
    return jax.tree.map(lambda leaf: Shape(leaf.shape, jnp.dtype(options.config.dtype)), params)


def on_chip(options: Options, params: SegmenterParams, device: Any) -> tuple[SegmenterParams, SegmenterConfig]:
    """Parameters and settings as Model places them on a device. Raises UserError when they do not go together."""
    config = on_device(check_settings(options.config, params), params, device)
    if platform_numbers(device).scan_blocks:
        params = jax.eval_shape(lambda whole: whole.stacked(), params)
    return params, config


def placed(sharding: Any) -> Callable[[Any], Shape]:
    """From an array, a shape or a number to its shape with a sharding."""

    def shape(leaf: Any) -> Shape:
        if not hasattr(leaf, "dtype"):  # a number of the settings, which jit takes as it is
            return Shape((), jnp.float32, sharding=sharding, weak_type=True)
        return Shape(leaf.shape, leaf.dtype, sharding=sharding)

    return shape


@dataclass(frozen=True)
class Work:
    """An image, or `data` images at once on a mesh, on compile-only devices.

    params: shapes of the model; config: settings of the platform.
    """

    options: Options
    params: SegmenterParams
    config: SegmenterConfig
    devices: list[Any]
    data: int = 1

    @cached_property
    def mesh(self) -> Mesh | None:
        """The mesh over several devices."""
        return make_mesh(self.data, self.devices) if len(self.devices) > 1 else None

    @property
    def in_steps(self) -> bool:
        """True if the image goes through in steps, as Model does it."""
        return self.mesh is None and self.options.grid.count > MAX_PROGRAM_WINDOWS

    @property
    def padded(self) -> int:
        """The number of windows, padded as Model does it."""
        count = self.options.grid.count
        if self.mesh:
            return padded_windows(count, self.mesh)
        return padded_to_steps(count, self.config.max_tower_batch) if self.in_steps else bucket(count)

    @property
    def canvas(self) -> Canvas:
        """Shapes of what goes to the device of an image."""
        windows, padded = self.config.windows, self.padded
        piece = Shape((piece_bytes(padded, windows.crop, windows.stride),), np.uint8)
        places = Shape((2,), np.int32), Shape((padded,), np.bool_), Shape((padded, 2), np.int32)
        patch, overlaps = merged_patch(self.params, self.config.method), None
        if patch is not None:
            devices = self.mesh.shape[WINDOW_AXIS] if self.mesh else 1
            overlaps = token_overlaps(self.options.grid, padded, patch, devices)
            overlaps = jax.tree.map(lambda leaf: Shape(leaf.shape, leaf.dtype), overlaps)
        return Canvas((piece,) * PIECES, *places, overlaps)

    def cut(self, canvas: Canvas) -> Windows:
        """The windows of an image."""
        return cut_canvas(canvas, self.config.windows.crop, self.params.values_spec.pixel_mean)

    @property
    def features(self) -> Shape:
        """Shape [W S E] of the features of an image."""
        tokens, width = self.params.tokens(self.config), self.params.clip_spec.embed_dim
        return Shape((self.padded, tokens, width), jnp.float32)

    def placed(self, tree: Any, spec: PartitionSpec = EVERYWHERE) -> Any:
        """A tree of shapes on the mesh, or on the one device."""
        return jax.tree.map(placed(NamedSharding(self.mesh, spec) if self.mesh else self._first), tree)

    @property
    def _first(self) -> SingleDeviceSharding:
        return SingleDeviceSharding(self.devices[0])

    def programs(self) -> list[Program]:
        """All programs, in order."""
        return [*self._feature_programs(), *self._label_programs()]

    def _feature_programs(self) -> list[Program]:
        params, config, mesh = self.params, self.config, self.mesh
        if mesh:
            parts = zip(_batch(self.canvas, self.data), BY_CANVAS, strict=True)
            canvas = Canvas(*(self.placed(part, spec) for part, spec in parts))
            image = partial(ring_features, config=config, mesh=mesh)
            return [Program("image", image, (self.placed(params), canvas))]
        if self.in_steps:
            recorder = Recorder(config, placed(self._first), tree_bytes(params))
            windows = jax.eval_shape(self.cut, self.canvas)
            jax.eval_shape(lambda p, w: segment_features(p, w, config, recorder), params, windows)
            cut = Program("cut_windows", self.cut, (self.placed(self.canvas),), beside=recorder.held)
            return [cut, *recorder.programs]

        def image(params: SegmenterParams, canvas: Canvas) -> jax.Array:
            return segment_features(params, self.cut(canvas), config)

        return [Program("image", image, self.placed((params, self.canvas)))]

    def _label_programs(self) -> Iterator[Program]:
        """From features to labels; on a mesh the devices of an image share its tiles, one after the other."""
        config, prompts, held, mesh = self.config, self.options.prompts, tree_bytes(self.params), self.mesh
        precision, tokens = config.method.plain_precision, self.features.shape[1]
        text = self.placed(Shape((prompts, self.features.shape[2]), jnp.float32))
        if mesh:
            features = self.placed(_batch(self.features, self.data), BY_WINDOW)
            logits = partial(split_logits, mesh=mesh, precision=precision)
            yield Program("token_logits", logits, (features, text), 1, held, mesh.size, "labels")
        else:
            logits = partial(token_logits, precision=precision)
            yield Program("token_logits", logits, (self.placed(self.features), text), 1, held, part="labels")
        tiles: dict[int, list[Any]] = {}
        for down, _, rows, columns in layout(self.options.grid, tokens, self.options.size).tiles():
            tiles.setdefault(blocks_of(down, self.devices[0].platform), []).append((rows, columns))
        rule = LabelRule(np.arange(prompts, dtype=np.int32), config.logit_scale, dtype=np.uint8)
        for blocks, each in tiles.items():

            def tile(logits: jax.Array, rows: Any, columns: Any, blocks: Any = blocks) -> jax.Array:
                return label_tile(logits, rows, columns, blocks, *rule.numbers(), False, precision, rule.dtype)

            shapes = Shape((self.padded, tokens, prompts), jnp.float32), *each[0]
            runs = -(-len(each) // (mesh.shape[WINDOW_AXIS] if mesh else 1))
            yield Program("label_tile", tile, jax.tree.map(placed(self._first), shapes), runs, held, part="labels")


def _batch(tree: Any, images: int) -> Any:
    return jax.tree.map(lambda leaf: Shape((images, *leaf.shape), leaf.dtype), tree)
