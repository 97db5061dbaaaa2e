"""The user's object: a model with its text tower and names, which segments images by words."""

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from gla_jax.checkpoints.model_folder import Checkpoint, ClipSpec
from gla_jax.config import DEFAULT_PRESET, SegmenterConfig
from gla_jax.images.masks import Masks, read_masks
from gla_jax.images.reading import as_rgb
from gla_jax.labels.label_map import whole_logits
from gla_jax.models.pretrained import resolve
from gla_jax.models.suited import suited, with_fields_suited
from gla_jax.pipeline import SegmenterParams
from gla_jax.predict.examples import ExampleClasses, example_embeddings
from gla_jax.predict.features import FeatureMap, feature_map
from gla_jax.predict.model import Model, Prepared
from gla_jax.predict.predict import Question, Ready, label_images, pooled_labels, start_label
from gla_jax.results.segmentation import Segmentation
from gla_jax.settings.options import names_numbers, settings_from_options, with_fields
from gla_jax.support.arrays import Array, Float, Int, UInt8
from gla_jax.support.batches import Stopwatch, read_ahead
from gla_jax.support.errors import ClassesError, ImageError, ModelError, UserError
from gla_jax.support.steps import Progress
from gla_jax.text.embeddings import load_tokenizer, text_embeddings
from gla_jax.text.prompts import (
    Classes,
    background_name,
    check_enough,
    check_templates,
    parse_classes,
    with_background,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh
    from PIL import Image

    from gla_jax.images.windows import WindowGrid

    Picture = Image.Image | UInt8[np.ndarray, "h w 3"] | str | Path


class Segmenter:
    """A loaded model that segments images by text. Cheap to copy with other settings: weights are shared."""

    def __init__(
        self,
        clip: Checkpoint | None,
        vfm: Checkpoint | None,
        config: SegmenterConfig | None = None,
        name: str = "",
        mesh: "Mesh | None" = None,
        dinoiser: Checkpoint | None = None,
    ):
        """Put the weights on the device, or on all devices of a mesh, over which the windows of an image are split.

        Args:
            clip: both towers of a CLIP; None for a foundation model alone, which knows classes by example.
            vfm: a vision foundation model, for methods that compare its features.
            config: settings; the released run's where left out.
            name: of the model in results; its folder's where empty.
            mesh: of gla_jax.make_mesh.
            dinoiser: CLIP-DINOiser's layers on this CLIP, for the methods that read them.

        Raises UserError when settings, model and mesh do not go together.
        """
        if clip is not None and not isinstance(clip.spec, ClipSpec):
            raise UserError(f"{clip.folder} holds a {clip.family} model; the first part of a model is a CLIP.")
        self.name = name or str((clip or vfm).folder)
        self.clip, self.vfm, self.dinoiser = clip, vfm, dinoiser
        parts = [part.sha256 for part in (clip, vfm, dinoiser) if part]
        self.model_hash = hashlib.sha256("+".join(parts).encode()).hexdigest()
        params = SegmenterParams.of(clip, vfm, dinoiser)
        self.model = Model.place(params, SegmenterConfig() if config is None else config, mesh)
        self._tokenizer = load_tokenizer(clip.folder) if clip else None
        self._embeddings: dict[Any, Any] = {}

    def __repr__(self) -> str:
        method, windows = self.config.method, self.config.windows
        parts = f"{method.baseline}{' with the global buffer' if method.global_buffer else ''}"
        sizes = f"short side {windows.short_side or 'native'}, crop {windows.crop}, stride {windows.stride}"
        return f"<Segmenter {self.name}: {parts}; {sizes}; {self.config.dtype}>"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        config: SegmenterConfig | None = None,
        *,
        method: str = "gla",
        preset: str | Path = DEFAULT_PRESET,
        offline: bool = False,
        cache_dir: str | Path | None = None,
        mesh: "Mesh | None" = None,
        suit: bool = False,
        **fields: Any,
    ) -> "Segmenter":
        """Load "CLIP+VFM" by names, by model folders or both; names are downloaded and converted once.

        Args:
            name_or_path: names of `gla-jax models`, folders (one of CLIP-DINOiser's layers too), or "tiny-world".
            config: all settings at once; else they come from the words of the command line that follow.
            method: name of a method.
            preset: name of windows, or a file of gla-jax tune.
            offline: never reach for the network.
            cache_dir: in place of the user's cache folder.
            mesh: of gla_jax.make_mesh, splits images over its axis `data` and the windows of each over `window`.
            suit: take the numbers measured for the model with config too, as without it where preset names none.
            fields: fields of the settings by name, as in with_settings.

        Raises ModelError when no model is named, when a part is unknown, cannot be downloaded or is damaged, UserError
        for settings.
        """
        if config is None:
            config = with_fields(settings_from_options(method=method, preset=preset), fields)
            suit = not names_numbers(preset, fields)
        elif fields or method != "gla" or preset != DEFAULT_PRESET:
            raise UserError("config holds all settings; give either it or their names.")
        clip, vfm, dinoiser = resolve(name_or_path, offline=offline, cache_dir=cache_dir)
        return cls(clip, vfm, suited(config, vfm) if suit else config, str(name_or_path), mesh, dinoiser)

    @property
    def config(self) -> SegmenterConfig:
        """The settings, with what depends on the platform as numbers."""
        return self.model.config

    @property
    def params(self) -> SegmenterParams:
        """Parameters of the image towers on their devices, by their paths on disk.

        On accelerators these are copies: the model itself holds its blocks stacked (model.params).
        """
        return self.model.params.unstacked()

    @property
    def mesh(self) -> "Mesh | None":
        """The devices that windows are split over."""
        return self.model.mesh

    def with_config(self, config: SegmenterConfig) -> "Segmenter":
        """The same weights under other settings; nothing is loaded again, and only a change of dtype copies them."""
        if config.dtype != self.config.dtype:
            return Segmenter(self.clip, self.vfm, config, self.name, self.mesh, self.dinoiser)
        other = copy.copy(self)
        other.model = self.model.with_config(config)
        return other

    def with_settings(self, **fields: Any) -> "Segmenter":
        """The same weights with some settings changed, by the words of the command line or the paper's letters.

        fields: method, short_side, crop, stride, dtype, logit_scale, threshold, and fields of the method such as
        anchor_threshold (or rho), dynamic_shift (alpha_beta), dynamic_scale (alpha_gamma). Raises UserError.
        """
        return self.with_config(with_fields_suited(self.model.settings, fields))

    @property
    def templates(self) -> tuple[str, ...] | None:
        """The model's own prompt templates; None where it takes CLIP's 80, or reads no text."""
        return self.clip.templates if self.clip else None

    def embeddings(
        self, classes: Classes, templates: Sequence[str] | None = None
    ) -> tuple[Float[Array, "Q E"], Int[np.ndarray, " Q"]]:
        """Class embeddings of length one, and the class of each: of every prompt, or of what labelled images show.

        Labelled images go through the same towers and method as the image to be segmented. Raises ClassesError, and
        ModelError for text without a CLIP.
        """
        if not isinstance(classes, ExampleClasses):
            return self.text_embeddings(classes, templates), np.asarray(classes.class_of_prompt, np.int32)
        if templates is not None:
            raise ClassesError(
                "prompt templates are for names, and these classes are known by example; leave them out."
            )
        config = self.model.settings
        key = (classes.sha256, classes.names, config.method, config.windows, config.dtype)
        if key not in self._embeddings:
            rows, present = example_embeddings(self.model, classes)
            self._embeddings[key] = jnp.asarray(rows), present
        return self._embeddings[key]

    def text_embeddings(self, classes: Classes, templates: Sequence[str] | None = None) -> Float[Array, "Q E"]:
        """Text features of length one of every prompt; templates default to the model's own, else CLIP's 80.

        Raises ModelError for a foundation model alone.
        """
        if self.clip is None:
            raise ModelError(
                f"{self.name} is a foundation model alone, which reads no class names: show it labelled images "
                "(--classes-from FOLDER), or add a CLIP, as in clip-vit-base-patch16+dino-vitb8."
            )
        templates = self.clip.templates if templates is None else check_templates(templates)
        key = (classes.prompts, templates)
        if key not in self._embeddings:
            self._embeddings[key] = text_embeddings(self.clip, self._tokenizer, classes, templates)
        return self._embeddings[key]

    def text_bank(self, classes: Classes, templates: Sequence[str] | None = None) -> Float[Array, "Q E"]:
        """The former name of text_embeddings."""
        warnings.warn("text_bank is called text_embeddings now; the old name goes with the next release", stacklevel=2)
        return self.text_embeddings(classes, templates)

    def question(
        self, classes: Classes, background: str | None = None, templates: Sequence[str] | None = None
    ) -> tuple[tuple[str, ...], Question]:
        """Names of the labels in order, and what predict needs of some classes.

        background: the class of pixels below the settings' threshold. Raises ClassesError.
        """
        names, _, index = with_background(classes, background, self.config.background_rules)
        rows, class_of_row = self.embeddings(classes, templates)
        # A background that is not among the classes comes before them.
        return names, Question(rows, class_of_row + (len(names) - len(classes.names)), len(names), index)

    def prepare(self, image: UInt8[np.ndarray, "h w 3"]) -> Prepared:
        """An RGB image brought to its working size and cut into windows."""
        return self.model.prepare(image)

    def window_features(
        self, image: UInt8[np.ndarray, "h w 3"], progress: Progress | None = None
    ) -> "tuple[Float[Array, 'W S E'], WindowGrid]":
        """Joint-space features of every window token of an RGB image (padded W) and the window grid they lie on.

        progress(steps done, steps) is called for images that go through in steps.
        """
        prepared = self.prepare(image)
        return self.model.features([prepared], progress)[0], prepared.grid

    def __call__(
        self,
        image: "Picture",
        classes: Sequence[str] | Mapping[str, Sequence[str]] | Classes,
        *,
        masks: Masks | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Segmentation:
        """Segment one image: `batch` of it alone, with the same options.

        masks: regions of one label each, as batch takes them; progress(steps done, steps): called while a large image
        goes through.
        """
        each = None if masks is None else [masks]
        return self.batch([image], classes, masks=each, progress=progress, **options)[0]

    def batch(
        self,
        images: "Sequence[Picture]",
        classes: Sequence[str] | Mapping[str, Sequence[str]] | Classes,
        *,
        background: str | None = None,
        threshold: float | None = None,
        scores: bool = False,
        templates: Sequence[str] | None = None,
        masks: Sequence[Masks] | None = None,
        progress: Progress | None = None,
    ) -> list[Segmentation]:
        """Segment images of any sizes; those with one padded number of windows go through the towers together.

        Args:
            images: paths, PIL images or RGB uint8 [h w 3].
            classes: names, synonyms separated by "; ", a mapping from names to synonyms, or gla_jax.classes_from.
            background: class of pixels whose best probability is below threshold, one of classes or a name of its own
                (then class 0).
            threshold: None takes the settings'.
            scores: also the probability of every class.
            templates: prompts with {} for the name.
            masks: of each image the regions that get one label each, by mean probability (labels/pool.py): bool arrays
                [h w], the path of an index PNG whose value 0 is no mask, or COCO's run lengths.
            progress: called with (steps done, steps) while a large image goes through.

        Raises UserError for what cannot be used.
        """
        # The rows of one array, and the letters of one path, would be images too.
        if not isinstance(images, Iterable) or isinstance(images, str | bytes) or getattr(images, "ndim", 4) < 4:
            raise ImageError("the images are a single one, or none; give a list of images.")
        pixels = [as_rgb(image) for image in images]
        model, names, question, background = self._ask(classes, background, threshold, templates)
        pooled, regions = masks is not None, []
        if pooled:
            if len(masks) != len(pixels):
                raise UserError(f"there are masks for {len(masks)} images, not {len(pixels)}; give a list for each.")
            regions = [read_masks(own, rgb.shape[:2]) for own, rgb in zip(masks, pixels, strict=True)]

        def around(group: Sequence[Ready]) -> AbstractContextManager[Progress | None] | None:
            return nullcontext(progress) if model.steps_through(group[0].prepared.size) else None

        ready = read_ahead(range(len(pixels)), lambda index: Ready(index, model.prepare(pixels[index])), threads=1)
        results: list[Segmentation | None] = [None] * len(pixels)
        for index, found in label_images(model, ready, question, Stopwatch(), scores=scores or pooled, around=around):
            labels = found.labels
            if pooled:
                labels = pooled_labels(found, regions[index], question, model.config)
            results[index] = Segmentation(labels, names, pixels[index], found.scores if scores else None, background)
        return results

    def features(self, image: "Picture", *, progress: Progress | None = None) -> FeatureMap:
        """Features of an image without classes: [h' w' E] in the joint space, and the places of the cells.

        progress(steps done, steps): called while a large image goes through. Raises UserError.
        """
        return feature_map(self.model, as_rgb(image), progress)

    def segment_features(
        self,
        features: FeatureMap,
        classes: Sequence[str] | Mapping[str, Sequence[str]] | Classes,
        *,
        background: str | None = None,
        threshold: float | None = None,
        scores: bool = False,
        templates: Sequence[str] | None = None,
    ) -> Segmentation:
        """Text against features of `features`: cosines of the cells go bilinearly to the pixels.

        Close to a call on the image, which averages tokens at the pixels themselves, but not the same.

        Args:
            features: of a segmenter with the same CLIP.
            classes: as in batch, and so are background, threshold, scores and templates.

        Raises UserError for what cannot be used.
        """
        model, names, question, background = self._ask(classes, background, threshold, templates)
        width, expected = features.features.shape[-1], question.text_embeddings.shape[-1]
        if width != expected:
            raise UserError(f"the features have {width} numbers a cell, text {expected}; take those of the same CLIP.")
        cells = jnp.asarray(features.features.reshape(-1, 1, width))
        logits = whole_logits(cells, question.text_embeddings, model.config.method.plain_precision)
        found = start_label(logits, features, question, model.config, scores)()
        return Segmentation(found.labels, names, features.image, found.scores, background)

    def _ask(
        self, classes: Any, background: str | None, threshold: float | None, templates: Sequence[str] | None
    ) -> tuple[Model, tuple[str, ...], Question, str | None]:
        parsed = classes if isinstance(classes, Classes) else parse_classes(classes)
        background = background_name(background)
        check_enough(parsed, background)
        chosen = {} if threshold is None else {"threshold": threshold}
        with_background(parsed, background, self.config.background_rules | chosen)
        segmenter = self if threshold is None else self.with_settings(threshold=threshold)
        return segmenter.model, *segmenter.question(parsed, background, templates), background


@lru_cache(maxsize=2)  # weights of the last two models stay in memory
def _loaded(name_or_path: str | Path) -> Segmenter:
    return Segmenter.from_pretrained(name_or_path)


def segment(
    image: "Picture | Sequence[Picture]",
    classes: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    model: str | Path,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> Segmentation | list[Segmentation]:
    """Segment an image, or each of a list, in one call; the model stays loaded for the next one.

    Args:
        image: a path, PIL image or RGB uint8 [h w 3], or a list of them.
        classes: names, with synonyms after semicolons or as a mapping.
        model: as Segmenter.from_pretrained takes it.
        settings: as Segmenter.with_settings takes them.
        options: of Segmenter.batch.

    Raises UserError for what cannot be used.
    """
    segmenter = _loaded(model).with_settings(**(settings or {}))
    return (segmenter.batch if isinstance(image, list | tuple) else segmenter)(image, classes, **options)


def image_segmentation(model: str | Path, **settings: Any) -> Callable[..., list[Any]]:
    """A callable with the output of transformers' image-segmentation pipeline, by the names of the classes.

    It takes an image or a list of images, candidate_labels, and the options of Segmenter.batch, and returns for each
    image a list of {score, label, mask} in the order of the classes; score is None without scores=True.

    settings: as Segmenter.with_settings takes them. Raises UserError for what cannot be used.
    """

    def run(images: "Picture | Sequence[Picture]", candidate_labels: Sequence[str], **options: Any) -> list[Any]:
        found = segment(images, candidate_labels, model=model, settings=settings, **options)
        each = found if isinstance(found, list) else [found]
        order = [sorted(one.segments(), key=lambda part, one=one: one.classes.index(part["label"])) for one in each]
        lists = [[{key: part[key] for key in ("score", "label", "mask")} for part in parts] for parts in order]
        return lists if isinstance(found, list) else lists[0]

    return run
