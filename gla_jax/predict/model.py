"""A model on its devices: parameters of the image towers and resolved settings; no text, no pictures."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.attention.one_key import image_counts
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import BASELINES, MethodConfig, SegmenterConfig, WindowConfig, on_platform, with_plain_numbers
from gla_jax.distributed.mesh import (
    DATA_AXIS,
    image_features,
    padded_windows,
    place_canvas,
    place_params,
    ring_features,
)
from gla_jax.images.resize import rescale_size, resize_uint8
from gla_jax.images.windows import (
    OPENAI_MEAN,
    PIECES,
    Canvas,
    Channels,
    Overlaps,
    WindowGrid,
    Windows,
    bucket,
    cut_canvas,
    cut_windows,
    image_pieces,
    padded_origins,
    piece_bytes,
    stack_overlaps,
    token_overlaps,
    window_grid,
)
from gla_jax.pipeline import Counted, SegmenterParams, counted_features, segment_images, steps_of
from gla_jax.support.arrays import Array, Float, UInt8
from gla_jax.support.errors import UserError
from gla_jax.support.steps import Progress
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from gla_jax.towers.dinoiser import FROM_LAST
from gla_jax.towers.placement import device_memory, padded_to_steps, platform_numbers, platform_of, tower_batch
from gla_jax.window_tokens import foreground_logits

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class Prepared:
    """An image at its working size, before its windows are cut; it unpacks as its windows, their grid and its own size.

    pixels: uint8 RGB at the working size; grid: places of the windows; size: its own (h, w) in pixels; count: the
    padded number of windows, those with the same one share a program; stride: of the windows; mean: RGB in 0..1 of
    what surrounds it; patch_size: of the tokens where overlapping ones are merged, else None.
    """

    pixels: UInt8[np.ndarray, "_ _ 3"]
    grid: WindowGrid
    size: tuple[int, int]
    count: int
    stride: int
    mean: Channels
    patch_size: int | None = None

    @cached_property
    def windows(self) -> Windows:
        """The windows, cut on the host."""
        windows = cut_windows(self.pixels, self.grid, self.count, self.mean)
        return windows._replace(overlaps=self.overlaps(self.patch_size))

    def overlaps(self, patch_size: int | None, devices: int = 1) -> Overlaps | None:
        """Tokens of some size at the same pixel, shared by some devices; None for None."""
        return None if patch_size is None else token_overlaps(self.grid, self.count, patch_size, devices)

    def __iter__(self) -> Iterator[Any]:
        """Its windows, their grid and its own size."""
        return iter((self.windows, self.grid, self.size))


def stack_canvas(images: Sequence[Prepared], devices: int = 1) -> Canvas:
    """The canvases [B ...] of images of one padded number of windows, on the host, without pieces that none needs.

    devices: that share an image.
    """
    first = images[0]
    pieces = image_pieces(
        [image.pixels for image in images], first.grid.crop, piece_bytes(first.count, first.grid.crop, first.stride)
    )
    shapes = np.array([image.pixels.shape[:2] for image in images], np.int32)
    valid, origins = zip(*(padded_origins(image.grid, image.count) for image in images), strict=True)
    overlaps = [image.overlaps(image.patch_size, devices) for image in images]
    overlaps = None if None in overlaps else stack_overlaps(overlaps)
    return Canvas(tuple(pieces), shapes, np.stack(valid), np.stack(origins), overlaps)


@lru_cache(maxsize=16)
def _blank_piece(shape: tuple[int, ...], mesh: "Mesh | None") -> UInt8[Array, "*B b"]:
    """A piece of a canvas behind the last byte of its images, which goes to the device once."""
    blank = np.zeros(shape, np.uint8)
    return jax.device_put(blank) if mesh is None else place_canvas(Canvas((blank,), (), (), ()), mesh).pieces[0]


@lru_cache(maxsize=64)
def image_grid(size: tuple[int, int], settings: WindowConfig) -> WindowGrid:
    """The window grid of an image of size (h, w), on its working size."""
    if settings.short_side is not None:
        size = rescale_size(*size, settings.short_side, settings.long_side)
    return window_grid(*size, settings)


def prepare_image(
    image: UInt8[np.ndarray, "h w 3"],
    settings: WindowConfig,
    padded: Callable[[int], int] = bucket,
    mean: Channels = OPENAI_MEAN,
    patch_size: int | None = None,
) -> Prepared:
    """An RGB image brought to its working size.

    Args:
        image: RGB.
        settings: working size, side and stride of the windows.
        padded: from W to the padded number of windows.
        mean: of the CLIP's pixels, 0 to 1, which pixels outside the image take.
        patch_size: of the tokens where overlapping ones are merged.
    """
    grid = image_grid(image.shape[:2], settings)
    resized = resize_uint8(image, (grid.height, grid.width))
    return Prepared(resized, grid, image.shape[:2], padded(grid.count), settings.stride, mean, patch_size)


# Windows along an axis at one pixel: with the last one, which is shifted back, up to 16 squared tokens are one, a count
# that bfloat16 holds exactly (attention/anchors.py).
MAX_OVERLAP = 15
# An image of more windows goes through in steps, so that it can be watched and interrupted.
MAX_PROGRAM_WINDOWS = 64


@partial(jax.jit, static_argnames="counting")
def _segment_features(params: SegmenterParams, canvas: Canvas, config: SegmenterConfig, counting: bool) -> Counted:
    windows = cut_canvas(canvas, config.windows.crop, params.values_spec.pixel_mean)
    return counted_features(params, windows, config, counting=counting)


_foreground = jax.jit(foreground_logits)
_cut = jax.jit(cut_canvas, static_argnums=(1, 2))


@partial(jax.jit, static_argnames="counting")
def _batch_features(params: SegmenterParams, canvas: Canvas, config: SegmenterConfig, counting: bool) -> Counted:
    crop, mean = config.windows.crop, params.values_spec.pixel_mean
    return segment_images(params, jax.vmap(lambda own: cut_canvas(own, crop, mean))(canvas), config, counting)


@dataclass(frozen=True)
class Model:
    """Parameters on a device, or on all devices of a mesh, and settings.

    config: with what depends on the device filled in; settings: without. On accelerators the parameters are stacked.
    """

    params: SegmenterParams
    config: SegmenterConfig
    mesh: "Mesh | None" = None
    settings: SegmenterConfig | None = None

    @classmethod
    def place(cls, params: SegmenterParams, config: SegmenterConfig, mesh: "Mesh | None" = None) -> "Model":
        """Put parameters on the device in the towers' dtype, or on all devices of a mesh, which splits windows.

        Raises UserError when settings and model do not go together.
        """
        config = check_settings(config, params)
        if mesh is not None and getattr(mesh, "axis_names", None) != (DATA_AXIS, WINDOW_AXIS):
            raise UserError(f"mesh is {mesh!r:.60}; give a mesh of gla_jax.make_mesh.")
        dtype = jnp.dtype(config.dtype)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)  # on the host until all is as it stays
        if platform_numbers(_first_device(mesh)).scan_blocks:
            params = params.stacked()
        if mesh is None:
            # Processors share the memory of aligned arrays of the right dtype.
            placed = jax.tree.map(lambda leaf: jax.device_put(leaf, may_alias=True), params)
        else:
            placed = place_params(params, mesh)
        return cls(placed, config, mesh).with_config(config)

    def with_config(self, config: SegmenterConfig) -> "Model":
        """The same parameters under other settings of the same dtype. Raises UserError when they do not fit."""
        config = check_settings(config, self.params)
        if self.mesh is None and config.method.attention == "ring":
            raise UserError("the ring passes keys from device to device; give a mesh, or take blockwise attention.")
        if config.method.stitches and self.mesh is not None and self.mesh.shape[WINDOW_AXIS] > 1:
            raise UserError(
                f"method {config.method.baseline} stitches all windows of an image on one device; give a mesh of "
                f"{self.mesh.size} images at once ({self.mesh.size}x1), or choose another method."
            )
        return replace(self, config=on_device(config, self.params, _first_device(self.mesh)), settings=config)

    def steps_through(self, size: tuple[int, int]) -> int:
        """Number of windows of an image of size (h, w) that goes through in steps, 0 for any other."""
        count = image_grid(size, self.config.windows).count
        return count if self.mesh is None and count > MAX_PROGRAM_WINDOWS else 0

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The host's work on an RGB image, which can run ahead in a thread: its working size."""

        def padded(count: int) -> int:
            if self.mesh is not None:
                return padded_windows(count, self.mesh)
            in_steps = count > MAX_PROGRAM_WINDOWS
            return padded_to_steps(count, self.config.max_tower_batch) if in_steps else bucket(count)

        patch_size = merged_patch(self.params, self.config.method)
        return prepare_image(image, self.config.windows, padded, self.params.values_spec.pixel_mean, patch_size)

    def features(self, images: Sequence[Prepared], progress: Progress | None = None) -> list[Float[Array, "W S E"]]:
        """Joint-space features of every window token of images with one padded number of windows, as one program.

        progress(steps done, steps) is called for images that go through in steps.
        """
        return [own.rows for own in self.counted(images, progress, counting=False)]

    def counted(
        self, images: Sequence[Prepared], progress: Progress | None = None, counting: bool = True
    ) -> list[Counted]:
        """`features` of every image and, where counting, how many of its tokens keep one single key."""
        if self.mesh is not None:
            together = self.split_features(images, counting)
            rows = [image_features(together.rows, index, self.mesh) for index in range(len(images))]
            return list(map(Counted, rows, image_counts(together.one_key, len(rows))))
        if images[0].grid.count > MAX_PROGRAM_WINDOWS:
            counted = []
            for image in images:
                windows = _cut(self.canvas([image]), image.grid.crop, image.mean)
                run = steps_of(self.params, windows, self.config, progress)
                counted.append(counted_features(self.params, windows, self.config, run, counting))
            return counted
        if len(images) == 1:
            return [_segment_features(self.params, self.canvas(images), self.config, counting)]
        rows, one_key = _batch_features(self.params, self.canvas(images), self.config, counting)
        return list(map(Counted, rows, image_counts(one_key, len(rows))))

    @property
    def labels_together(self) -> bool:
        """True where a few programs label all images of a group, by which a processor gains nothing."""
        return self.mesh is not None or _first_device(None).platform != "cpu"

    def features_together(
        self, images: Sequence[Prepared], progress: Progress | None = None, counting: bool = False
    ) -> Counted:
        """`counted` as arrays [B W S E] and [B]; on a mesh B is padded to a multiple of its data axis."""
        if self.mesh is not None:
            return self.split_features(images, counting)
        if len(images) == 1 or images[0].grid.count > MAX_PROGRAM_WINDOWS:
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *self.counted(images, progress, counting))
        return _batch_features(self.params, self.canvas(images), self.config, counting)

    def compile_features(self, images: Sequence[Prepared]) -> jax.stages.Compiled | None:
        """The program of `features`, compiled and not run; None on a mesh and for images that go through in steps."""
        if self.mesh is not None or images[0].grid.count > MAX_PROGRAM_WINDOWS:
            return None
        program = _segment_features if len(images) == 1 else _batch_features
        return program.lower(self.params, self.canvas(images), self.config, False).compile()

    def foreground(self, images: Sequence[Prepared]) -> list[Float[Array, "W n"]]:
        """Logits of CLIP-DINOiser's background layer of every window token, image after image, on the first device."""
        params = self.params if self.mesh is None else jax.tree.map(lambda leaf: leaf.addressable_data(0), self.params)
        return [_foreground(params, image.windows, self.config) for image in images]

    def split_features(self, images: Sequence[Prepared], counting: bool = False) -> Counted:
        """`counted` of a model on a mesh, as it lies there; B is padded to a multiple of the mesh's data axis."""
        # Every group of devices takes an image; what is left over takes the last one again.
        groups = self.mesh.shape[DATA_AXIS]
        padded = [*images, *[images[-1]] * (-len(images) % groups)]
        return ring_features(self.params, self.canvas(padded), self.config, self.mesh, counting)

    def canvas(self, images: Sequence[Prepared]) -> Canvas:
        """Canvases on their way to the devices; of one image without a mesh, its own."""
        canvas = stack_canvas(images, 1 if self.mesh is None else self.mesh.shape[WINDOW_AXIS])
        missing = PIECES - len(canvas.pieces)
        if self.mesh is not None:
            canvas = place_canvas(canvas, self.mesh)
        else:
            canvas = jax.device_put(jax.tree.map(lambda leaf: leaf[0], canvas) if len(images) == 1 else canvas)
        blanks = (_blank_piece(canvas.pieces[0].shape, self.mesh),) * missing if missing else ()
        return canvas._replace(pieces=canvas.pieces + blanks)


def merged_patch(params: SegmenterParams, method: MethodConfig) -> int | None:
    """Pixels along a side of the tokens where overlapping ones are merged, else None."""
    return params.patch_size(method) if method.merge_overlaps else None


def _first_device(mesh: "Mesh | None") -> jax.Device:
    return jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]


def on_device(config: SegmenterConfig, params: SegmenterParams, device: jax.Device) -> SegmenterConfig:
    """The settings with what depends on the device as numbers; what is set stays."""
    config = on_platform(config, platform_of(device))
    if config.tower_batch is not None:
        return config
    specs = [params.values_spec] + ([params.features_spec] if config.method.reads_vfm and params.clip_spec else [])
    return replace(config, tower_batch=tower_batch(specs, config.windows.crop, config.dtype, device_memory(device)))


def check_settings(config: SegmenterConfig, params: SegmenterParams) -> SegmenterConfig:
    """The settings with plain numbers. Raises UserError when a model cannot run under them."""
    try:
        config = with_plain_numbers(config)
    except ValueError as error:
        raise UserError(f"{error}.") from None
    method, clip, vfm = config.method, params.clip_spec, params.features_spec
    if method.reads_vfm and vfm is None:
        raise UserError(
            f"method {method.baseline} compares features of a vision foundation model, but the model is a CLIP alone; "
            "name a pair such as CLIP+dino-vitb8, or choose another method."
        )
    if (method.reads_dinoiser or config.foreground_below) and params.dinoiser is None:
        what = f"method {method.baseline}" if method.reads_dinoiser else "foreground_below"
        raise UserError(
            f"{what} reads CLIP-DINOiser's two trained layers, which the model lacks; convert them with gla-jax "
            "convert clip-dinoiser last.pt OUT and add +OUT to the model, or choose another method."
        )
    if params.dinoiser is not None and clip.depth < FROM_LAST:
        raise UserError(f"CLIP-DINOiser's layers read block {FROM_LAST} from the last; this CLIP has {clip.depth}.")
    if method.stitches and not (clip and isinstance(vfm, DinoSpec | DinoV2Spec)):
        raise UserError(
            f"method {method.baseline} opens the last block of DINO or DINOv2 beside a CLIP; name such a pair, as "
            "CLIP+dino-vitb8, or choose another method."
        )
    row = BASELINES[method.baseline]
    if clip is None and (row.whole_block or row.pairs or row.attention or set(row.features) - {"vfm"}):
        raise UserError(
            f"the model is a foundation model alone, and {method.baseline} reads the last block of a CLIP; take the "
            "method gla, proxyclip or maskclip (each token alone), or name a pair such as CLIP+dino-vitb8."
        )
    parts = {"CLIP": clip.patch_size} if clip else {}
    parts |= {"the VFM": vfm.patch_size} if method.reads_vfm or clip is None else {}
    for part, patch in parts.items():
        if config.windows.crop % patch:
            raise UserError(
                f"crop {config.windows.crop} does not divide into the patches of {patch} pixels that {part} reads; "
                f"choose a multiple of {np.lcm.reduce(list(parts.values()))}."
            )
    check_merging(config, merged_patch(params, method))
    return config


def check_merging(config: SegmenterConfig, patch_size: int | None) -> None:
    """Raise UserError where overlapping tokens cannot be merged; patch_size: of the tokens, None for no merging."""
    crop, stride = config.windows.crop, config.windows.stride
    if patch_size is None:
        return
    if stride % patch_size:
        raise UserError(
            f"merge_overlaps merges tokens at the same pixel, but with stride {stride} tokens of {patch_size} pixels "
            f"fall beside each other; choose a multiple of {patch_size}."
        )
    if -(-crop // stride) > MAX_OVERLAP:
        raise UserError(
            f"merge_overlaps takes up to {MAX_OVERLAP} windows along an axis at one pixel, but crop {crop} at stride "
            f"{stride} has {-(-crop // stride)}; choose a larger stride."
        )
