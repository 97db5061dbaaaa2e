"""One program on a mesh of devices: windows of an image are split over its axis `window`, images over `data`.

Every device runs the towers on its own windows and keeps their queries; keys and values are split the same way and
pass round a ring (attention/ring.py), so the memory of each device shrinks as the mesh grows.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import SegmenterConfig
from gla_jax.images.windows import Canvas, Windows, bucket, cut_canvas
from gla_jax.pipeline import Counted, SegmenterParams, segment_images
from gla_jax.support.arrays import Array, Float
from gla_jax.support.errors import UserError

Tree = TypeVar("Tree")
DATA_AXIS = "data"
BY_WINDOW = PartitionSpec(DATA_AXIS, WINDOW_AXIS)
BY_IMAGE = PartitionSpec(DATA_AXIS)
BY_CANVAS = Canvas(BY_IMAGE, BY_IMAGE, BY_WINDOW, BY_WINDOW, BY_WINDOW)
EVERYWHERE = PartitionSpec()


def make_mesh(data: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, window) over devices (default: all), which takes `data` images at a time.

    Raises UserError when the devices do not divide into `data` groups.
    """
    if not isinstance(devices, Iterable | None):
        raise UserError(f"devices is {devices!r:.60}; give a list of devices, as jax.devices() is one.")
    devices = jax.devices() if devices is None else list(devices)
    if isinstance(data, bool) or not isinstance(data, int) or data < 1 or not devices or len(devices) % data:
        raise UserError(f"{len(devices)} devices cannot be divided into {data} equal groups; choose a divisor.")
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, len(devices) // data), (DATA_AXIS, WINDOW_AXIS), axes, devices=devices)


def read_mesh(text: str, spanning: bool) -> Mesh:
    """A mesh as a user types it, DATAxWINDOW, over the devices of this process or, when spanning, of all processes.

    Raises UserError when the text is something else or there are other devices.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text, re.ASCII)
    if not match:
        raise UserError(f"mesh {text[:40]!r} is not DATAxWINDOW; write it as in 1x8.")
    data, devices = int(match[1]), int(match[1]) * int(match[2])
    if devices <= jax.local_device_count():
        return make_mesh(data, jax.local_devices()[:devices])
    if spanning and devices == jax.device_count():
        return make_mesh(data)
    of_all = f", all processes together {jax.device_count()}" if spanning and jax.process_count() > 1 else ""
    raise UserError(
        f"the mesh {text} needs {devices} devices, but there are {jax.local_device_count()}{of_all}; make it smaller."
    )


def padded_windows(count: int, mesh: Mesh) -> int:
    """The bucket of `count` windows, rounded up so that every device gets the same number."""
    devices = mesh.shape[WINDOW_AXIS]
    return -(-bucket(count) // devices) * devices


def place_params(params: SegmenterParams, mesh: Mesh) -> SegmenterParams:
    """A copy of the parameters, from host arrays, on every device of the mesh."""
    return _global(params, NamedSharding(mesh, EVERYWHERE))


def place_parts(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays [B d ...] of a batch of images, from host arrays: the d parts are split over the devices of an image."""
    return _global(tree, NamedSharding(mesh, BY_WINDOW))


def place_canvas(canvas: Canvas, mesh: Mesh) -> Canvas:
    """Canvases [B ...] of a batch of images, from host arrays: every device of an image has all of its pixels."""
    return Canvas(*(_global(part, NamedSharding(mesh, spec)) for part, spec in zip(canvas, BY_CANVAS, strict=True)))


def _global(tree: Tree, sharding: NamedSharding) -> Tree:
    # Every process has the whole array and contributes the parts of its own devices.
    def put(leaf: np.ndarray) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


@partial(jax.jit, static_argnames=("mesh", "counting"))
def ring_features(
    params: SegmenterParams, windows: Windows | Canvas, config: SegmenterConfig, mesh: Mesh, counting: bool = False
) -> Counted:
    """segment_images of images whose windows are split over the mesh; rows are split likewise, counts everywhere.

    Args:
        params: on every device (place_params).
        windows: [B W ...] by place_parts, or Canvas by place_canvas; B is a multiple of the mesh's data axis,
            W of its window axis.
        config: settings; the form of attention is the ring.
        mesh: of make_mesh.
        counting: whether tokens that keep one single key are counted.
    """
    config = replace(config, method=replace(config.method, attention="ring"))

    def local(params: SegmenterParams, windows: Windows | Canvas, config: SegmenterConfig) -> Counted:
        if isinstance(windows, Canvas):
            crop, mean = config.windows.crop, params.values_spec.pixel_mean
            windows = jax.vmap(lambda own: cut_canvas(own, crop, mean))(windows)
        return segment_images(params, windows, config, counting)

    specs = (EVERYWHERE, BY_CANVAS if isinstance(windows, Canvas) else BY_WINDOW, EVERYWHERE)
    split = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=Counted(BY_WINDOW, BY_IMAGE))
    rows, one_key = split(params, windows, config)
    return Counted(rows, jax.lax.with_sharding_constraint(one_key, NamedSharding(mesh, EVERYWHERE)))


@partial(jax.jit, static_argnames="mesh")
def image_features(features: Float[Array, "B W S E"], index: int | Array, mesh: Mesh) -> Float[Array, "W S E"]:
    """The features of one image of a batch, split over all devices by windows alone."""
    one = jax.lax.dynamic_index_in_dim(features, index, keepdims=False)
    return jax.lax.with_sharding_constraint(one, NamedSharding(mesh, PartitionSpec(WINDOW_AXIS)))
