"""One program from one device to many: windows of an image split over the mesh axis `window`, images over `data`.

Every device runs the towers on its own windows and keeps their queries; keys and values are split the same way and go
round a ring (attention/ring.py), so what a device holds shrinks as the mesh grows.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import SegmenterConfig
from gla_jax.images.windows import Windows, bucket
from gla_jax.pipeline import SegmenterParams, segment_features
from gla_jax.support.errors import UserError
from gla_jax.support.shapes import Array, Float

DATA_AXIS = "data"
BY_WINDOW = PartitionSpec(DATA_AXIS, WINDOW_AXIS)
EVERYWHERE = PartitionSpec()


def make_mesh(data: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh (data, window) over some devices (default: all), `data` images at a time.

    Raises UserError when the devices cannot be divided so.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data < 1 or len(devices) % data:
        raise UserError(f"{len(devices)} devices cannot be divided into {data} equal groups; choose a divisor.")
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((data, len(devices) // data), (DATA_AXIS, WINDOW_AXIS), axes, devices=devices)


def read_mesh(given: str, spanning: bool) -> Mesh:
    """A mesh as a user types it, DATAxWINDOW, over the devices of this process or, when spanning, of all processes.

    Raises UserError when there are other devices.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", given)
    if not match:
        raise UserError(f"mesh {given!r} is not DATAxWINDOW; write it as in 1x8.")
    data, wanted = int(match[1]), int(match[1]) * int(match[2])
    if wanted <= jax.local_device_count():
        return make_mesh(data, jax.local_devices()[:wanted])
    if spanning and wanted == jax.device_count():
        return make_mesh(data)
    of_all = f", all processes together {jax.device_count()}" if spanning and jax.process_count() > 1 else ""
    raise UserError(
        f"the mesh {given} needs {wanted} devices, but there are {jax.local_device_count()}{of_all}; make it smaller."
    )


def padded_windows(count: int, mesh: Mesh) -> int:
    """The bucket of `count` windows, rounded up so that every device gets the same number."""
    devices = mesh.shape[WINDOW_AXIS]
    return -(-bucket(count) // devices) * devices


def place_params(params: SegmenterParams, mesh: Mesh) -> SegmenterParams:
    """A copy of the parameters on every device of the mesh."""
    return _global(params, NamedSharding(mesh, EVERYWHERE))


def place_windows(windows: Windows, mesh: Mesh) -> Windows:
    """Windows of a batch of images [B W ...], or of one image [W ...], from host arrays, split over the mesh."""
    spec = BY_WINDOW if windows.valid.ndim == 2 else PartitionSpec(WINDOW_AXIS)
    return _global(windows, NamedSharding(mesh, spec))


def _global(tree, sharding: NamedSharding):
    # Every process has the whole array and contributes the parts of its own devices.
    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(put, tree)


@partial(jax.jit, static_argnames="mesh")
def ring_features(
    params: SegmenterParams, windows: Windows, config: SegmenterConfig, mesh: Mesh
) -> Float[Array, "B W S E"]:
    """segment_features of a batch of images whose windows are split over the mesh; the result is split likewise.

    The attention streams on every device; B is a multiple of the mesh's data axis, W of its window axis.
    """
    config = replace(config, method=replace(config.method, attention="ring"))

    def local(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> Array:
        return jax.lax.map(lambda own: segment_features(params, own, config), windows)

    specs = (EVERYWHERE, BY_WINDOW, EVERYWHERE)
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=BY_WINDOW)(params, windows, config)


@partial(jax.jit, static_argnames="mesh")
def image_features(features: Float[Array, "B W S E"], index: int | Array, mesh: Mesh) -> Float[Array, "W S E"]:
    """The features of one image of a batch, split over all devices by windows alone."""
    one = jax.lax.dynamic_index_in_dim(features, index, keepdims=False)
    return jax.lax.with_sharding_constraint(one, NamedSharding(mesh, PartitionSpec(WINDOW_AXIS)))
