"""The whole way from an image and class names to a label map, as one object with loaded weights."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.attention.baselines import HOSTS
from gla_jax.checkpoints.model_folder import Checkpoint, ClipSpec, Params
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import (
    DATA_AXIS,
    image_features,
    padded_windows,
    place_params,
    place_windows,
    sharded_features,
)
from gla_jax.images.reading import as_rgb
from gla_jax.images.resize import rescale_size, resize_uint8
from gla_jax.images.windows import WindowGrid, Windows, bucket, cut_windows, window_grid
from gla_jax.labels.label_map import label_map, layout, score_map, whole_logits
from gla_jax.models.pretrained import resolve
from gla_jax.pictures.drawing import overlay
from gla_jax.pipeline import SegmenterParams, segment_features
from gla_jax.staged import Progress, padded_to_batches, staged_features
from gla_jax.support.batches import grouped
from gla_jax.support.errors import ClassesError, UserError
from gla_jax.support.shapes import Array, Float, Int, UInt8
from gla_jax.text.embeddings import text_bank
from gla_jax.text.prompts import Classes, parse_classes
from gla_jax.text.tokenizer import load_tokenizer
from gla_jax.towers.clip_image import OPENAI_MEAN, Channels

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from PIL import Image

    Picture = Image.Image | UInt8[np.ndarray, "h w 3"] | str | Path

_segment_features = jax.jit(segment_features)


@jax.jit
def _features_of_batch(params: SegmenterParams, windows: Windows, config: SegmenterConfig) -> Float[Array, "B W S E"]:
    return jax.vmap(lambda own: segment_features(params, own, config))(windows)


def _stacked(windows: Sequence[Windows]) -> Windows:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *windows)


# An image of more windows goes through in steps, so that it can be watched and interrupted.
WINDOWS_IN_ONE_PROGRAM = 64


@dataclass(frozen=True)
class Segmentation:
    """One image's result.

    labels [h w]: uint8 (uint16 above 256 classes), index into classes; scores [L h w] float32, the probability of each
    class's best synonym, when asked for; image [h w 3] uint8 RGB as it was read.
    """

    labels: Int[np.ndarray, "h w"]
    classes: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    scores: Float[np.ndarray, "L h w"] | None = None

    def shares(self) -> dict[str, float]:
        """The share of pixels of every class, 0 to 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {name: float(count / self.labels.size) for name, count in zip(self.classes, counts, strict=True)}

    def segments(self) -> list[dict[str, Any]]:
        """Hugging Face's image-segmentation list: {label, mask, score} of every class that occurs, largest first.

        mask is a PIL image of mode L, 255 inside; score is the mean probability inside, None without scores.
        """
        from PIL import Image

        shares = self.shares()
        found = []
        for index, name in sorted(enumerate(self.classes), key=lambda item: -shares[item[1]]):
            inside = self.labels == index
            if not inside.any():
                continue
            score = None if self.scores is None else float(self.scores[index][inside].mean())
            found.append({"label": name, "mask": Image.fromarray(inside.astype(np.uint8) * 255), "score": score})
        return found

    def overlay(self) -> "Image.Image":
        """The image with coloured regions and a legend, as a PIL image."""
        return overlay(self.image, self.labels, self.classes)


class Prepared(NamedTuple):
    """An image cut into windows, padded, and the grid they lie on."""

    windows: Windows
    grid: WindowGrid

    @property
    def count(self) -> int:
        """The padded number of windows: images with the same one share a program."""
        return len(self.windows.valid)


class Segmenter:
    """A loaded model that segments images by text. Cheap to copy with other settings: weights are shared."""

    def __init__(
        self,
        clip: Checkpoint,
        vfm: Checkpoint | None,
        config: SegmenterConfig | None = None,
        name: str = "",
        mesh: "Mesh | None" = None,
    ):
        """Put the weights on the device, or on all devices of a mesh, over which the windows of an image are split.

        Raises UserError when settings, model and mesh do not go together.
        """
        if not isinstance(clip.spec, ClipSpec):
            raise UserError(f"{clip.folder} holds a {clip.family} model; the first part of a model is a CLIP.")
        self.name = name or str(clip.folder)
        self.clip, self.vfm = clip, vfm
        self.config = config or SegmenterConfig()
        self.model_hash = hashlib.sha256("+".join(part.sha256 for part in (clip, vfm) if part).encode()).hexdigest()
        check_settings(self.config, clip, vfm)
        dtype = jnp.dtype(self.config.dtype)
        self.params = SegmenterParams(
            clip=on_device(clip.params["image"], dtype),
            clip_spec=clip.spec.image,
            vfm=on_device(vfm.params, dtype) if vfm else None,
            vfm_spec=vfm.spec if vfm else None,
        )
        self.mesh = mesh
        if mesh is not None:
            self.params = place_params(self.params, mesh)
        self._tokenizer = load_tokenizer(clip.folder)
        self._banks: dict[Any, Array] = {}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "tiny-world",
        config: SegmenterConfig | None = None,
        *,
        offline: bool = False,
        cache_dir: str | Path | None = None,
        mesh: "Mesh | None" = None,
    ) -> "Segmenter":
        """Load "CLIP+VFM" by names, by model folders or both; names are downloaded and converted once.

        mesh: of gla_jax.make_mesh, splits images over its axis `data` and the windows of each over `window`.

        Raises ModelError when a part is unknown, cannot be downloaded or is damaged.
        """
        clip, vfm = resolve(str(name_or_path), offline=offline, cache_dir=cache_dir)
        return cls(clip, vfm, config, name=str(name_or_path), mesh=mesh)

    def with_config(self, config: SegmenterConfig) -> "Segmenter":
        """The same weights under other settings; nothing is loaded again, and only a change of dtype copies them."""
        if config.dtype != self.config.dtype:
            return Segmenter(self.clip, self.vfm, config, self.name, self.mesh)
        check_settings(config, self.clip, self.vfm)
        other = object.__new__(Segmenter)
        other.__dict__.update(self.__dict__, config=config)
        return other

    def text_bank(self, classes: Classes, templates: Sequence[str] | None = None) -> Float[Array, "Q E"]:
        """Unit text features of every query; templates default to the model's own, else CLIP's 80."""
        templates = tuple(templates) if templates is not None else self.clip.templates
        key = (classes.queries, templates)
        if key not in self._banks:
            self._banks[key] = text_bank(self.clip, self._tokenizer, classes, templates)
        return self._banks[key]

    def steps_through(self, size: tuple[int, int]) -> int:
        """The number of windows of an image of size (h, w) that goes through in steps, 0 for any other."""
        count = image_grid(size, self.config.windows).count
        return count if self.mesh is None and count > WINDOWS_IN_ONE_PROGRAM else 0

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """The host's work on an RGB image, which can run ahead in a thread: its working size, cut into windows."""

        def padding(count: int) -> int:
            if self.mesh is not None:
                return padded_windows(count, self.mesh)
            return padded_to_batches(count, self.config) if count > WINDOWS_IN_ONE_PROGRAM else bucket(count)

        return Prepared(*image_windows(image, self.config.windows, padding, self.params.clip_spec.pixel_mean))

    def window_features(
        self, image: UInt8[np.ndarray, "h w 3"], progress: Progress | None = None
    ) -> tuple[Float[Array, "W S E"], WindowGrid]:
        """Joint-space features of every window token of an RGB image (padded W) and the window grid they lie on.

        progress(steps done, steps) is called for images that go through in steps.
        """
        prepared = self.prepare(image)
        return self.batch_features([prepared], progress)[0], prepared.grid

    def batch_features(
        self, images: Sequence[Prepared], progress: Progress | None = None
    ) -> list[Float[Array, "W S E"]]:
        """Joint-space features of every window token of images with one padded number of windows, as one program."""
        windows = [image.windows for image in images]
        with jax.default_matmul_precision("highest"):
            if self.mesh is not None:
                groups = self.mesh.shape[DATA_AXIS]
                # Every group of devices takes an image; what is left over takes the last one again.
                batch = _stacked(windows + windows[-1:] * (-len(windows) % groups))
                together = sharded_features(self.params, place_windows(batch, self.mesh), self.config, self.mesh)
                return [image_features(together, index, self.mesh) for index in range(len(windows))]
            if images[0].grid.count > WINDOWS_IN_ONE_PROGRAM:
                return [staged_features(self.params, one, self.config, progress) for one in windows]
            if len(windows) == 1:
                return [_segment_features(self.params, windows[0], self.config)]
            return list(_features_of_batch(self.params, _stacked(windows), self.config))

    def __call__(
        self, image: "Picture", classes: Sequence[str] | Classes, *, progress: Progress | None = None, **options: Any
    ) -> Segmentation:
        """Segment one image: `batch` of it alone, with the same options.

        progress(steps done, steps): called while a large image goes through.
        """
        return self.batch([image], classes, progress=progress, **options)[0]

    def batch(
        self,
        images: "Sequence[Picture]",
        classes: Sequence[str] | Classes,
        *,
        background: str | None = None,
        threshold: float | None = None,
        scores: bool = False,
        templates: Sequence[str] | None = None,
        progress: Progress | None = None,
    ) -> list[Segmentation]:
        """Segment images of any sizes; those with one padded number of windows go through the towers together.

        images: paths, PIL images or RGB uint8 [h w 3]; classes: names, synonyms parted by "; "; background: the class
        that takes pixels whose best probability is below threshold, one of classes or a name of its own (then class 0);
        threshold: None takes the settings'. Raises UserError for what cannot be used.
        """
        pixels = [as_rgb(image) for image in images]
        parsed = classes if isinstance(classes, Classes) else parse_classes(classes)
        threshold = float(self.config.threshold if threshold is None else threshold)
        names, class_of_query, background_index = with_background(parsed, background, threshold)
        bank, logit_scale = self.text_bank(parsed, templates), float(self.config.logit_scale)
        dtype = np.uint8 if len(names) <= 256 else np.uint16
        results: list[Segmentation | None] = [None] * len(pixels)
        prepared = [self.prepare(image) for image in pixels]
        for group in grouped(range(len(pixels)), lambda index: prepared[index].count, len(pixels)):
            found = self.batch_features([prepared[index] for index in group], progress)
            for index, features in zip(group, found, strict=True):
                where = layout(prepared[index].grid, features.shape[1], pixels[index].shape[:2])
                with jax.default_matmul_precision("highest"):
                    logits = whole_logits(features, bank)
                    labels = label_map(logits, where, class_of_query, logit_scale, threshold, background_index)
                    probabilities = (
                        score_map(logits, where, class_of_query, logit_scale, len(names)) if scores else None
                    )
                results[index] = Segmentation(labels.astype(dtype), names, pixels[index], probabilities)
        return results


def image_grid(size: tuple[int, int], settings: WindowConfig) -> WindowGrid:
    """The window grid of an image of size (h, w), on its working size."""
    if settings.short_side is not None:
        size = rescale_size(*size, settings.short_side, settings.long_side)
    return window_grid(*size, settings)


def image_windows(
    image: UInt8[np.ndarray, "h w 3"],
    settings: WindowConfig,
    padded: Callable[[int], int] = bucket,
    mean: Channels = OPENAI_MEAN,
) -> tuple[Windows, WindowGrid]:
    """The windows of an RGB image brought to its working size, `padded(W)` of them, and the grid they lie on.

    mean: of the CLIP's pixels, which padding takes.
    """
    grid = image_grid(image.shape[:2], settings)
    return cut_windows(resize_uint8(image, (grid.height, grid.width)), grid, padded(grid.count), mean), grid


def on_device(params: Params, dtype: jnp.dtype) -> Mapping[str, Any]:
    """Parameters as device arrays of a dtype; a processor's share the memory of aligned ones."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, dtype), may_alias=True), dict(params))


def check_settings(config: SegmenterConfig, clip: Checkpoint, vfm: Checkpoint | None) -> None:
    """Raise UserError when a model cannot run under some settings."""
    needs_vfm = "vfm" in HOSTS[config.method.host].features
    if needs_vfm and vfm is None:
        raise UserError(
            f"method {config.method.host} compares features of a vision foundation model, but {clip.folder.name} is a "
            "CLIP alone; name a pair such as CLIP+dino-vitb8, or choose another method."
        )
    parts = {"CLIP": clip.spec.image.patch_size} | ({"the VFM": vfm.spec.patch_size} if needs_vfm else {})
    for part, patch in parts.items():
        if config.windows.crop % patch:
            raise UserError(
                f"crop {config.windows.crop} does not divide into the patches of {patch} pixels that {part} reads; "
                f"choose a multiple of {np.lcm.reduce(list(parts.values()))}."
            )


def with_background(
    classes: Classes, background: str | None, threshold: float
) -> tuple[tuple[str, ...], Int[np.ndarray, " Q"], int]:
    """Class names, class of each query and index of the background class.

    A background that is not among the classes becomes class 0, which only the threshold reaches. Raises ClassesError
    when the threshold and the background do not go together.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ClassesError(f"threshold {threshold} is not a probability; give a number from 0 to 1.")
    class_of_query = np.asarray(classes.class_of_query, np.int32)
    if background is None:
        if threshold > 0:
            raise ClassesError(
                f"threshold {threshold} needs a class for the pixels below it; name one with background."
            )
        return classes.names, class_of_query, 0
    if background in classes.names:
        return classes.names, class_of_query, classes.names.index(background)
    if threshold == 0:
        raise ClassesError(
            f"background {background!r} is not among the classes, so only a threshold could reach it, and that is 0; "
            "set a threshold above 0 or add it to the classes."
        )
    return (background, *classes.names), class_of_query + 1, 0
