"""Everything that the page asks of the model: labels, a comparison, and the attention of a point."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from gla_jax.analysis.explain import explain
from gla_jax.images.reading import read_image
from gla_jax.labels.label_map import whole_logits
from gla_jax.pictures.drawing import PAPER, Entry, Panel, blend, palette, panels, with_window_grid
from gla_jax.predict.features import check_usable
from gla_jax.predict.model import Prepared
from gla_jax.predict.predict import start_label
from gla_jax.results.segmentation import Segmentation
from gla_jax.segmenter import Segmenter
from gla_jax.support.arrays import Array, UInt8, have_directions
from gla_jax.support.errors import ImageError, UserError
from gla_jax.text.prompts import Classes, background_name, check_enough, parse_classes

MAX_UPLOAD_BYTES = 20 * 2**20
MAX_PIXELS = 4096 * 4096
IMAGES_KEPT = 4  # whose features answer further questions without the towers


def read_classes(text: str) -> Classes:
    """Classes as people type them on the page: by lines or commas; synonyms by semicolons. Raises ClassesError."""
    lines = [part for line in text.splitlines() for part in line.split(",")]
    return parse_classes([line for line in map(str.strip, lines) if line])


class Request(NamedTuple):
    """A question to the API: the file of an upload, classes as typed, and names of the model and the method."""

    path: str
    classes: str
    model: str
    method: str


class Answers:
    """Models by name, loaded when first asked for, and the features of the last images; one question at a time."""

    def __init__(self, models: Sequence[str], offline: bool = False, examples: Classes | None = None):
        """Load the first model; the others wait until they are chosen.

        examples: classes that labelled images show, for questions that name none. Raises UserError.
        """
        self.models, self.examples = tuple(models), examples
        self._offline = offline
        self._segmenters: dict[str, Segmenter] = {}
        self._features: OrderedDict[tuple[str, str, str], tuple[Prepared, Array]] = OrderedDict()
        self._lock = threading.Lock()
        first = self.segmenter(self.models[0], "gla")
        if examples is not None:
            first.embeddings(examples)  # its faults are said before the page is there

    def segmenter(self, model: str, method: str) -> Segmenter:
        """A model under a method. Raises UserError for one that the page does not offer."""
        if model not in self.models:
            raise UserError(f"the model {model!r:.60} is not offered here; choose one of {', '.join(self.models)}.")
        if model not in self._segmenters:
            self._segmenters[model] = Segmenter.from_pretrained(model, offline=self._offline)
        return self._segmenters[model].with_settings(method=method)

    def classes(self, text: str | None) -> Classes:
        """Classes as typed, or where nothing is typed those of the labelled images. Raises ClassesError."""
        return self.examples if self.examples and not (text or "").strip() else read_classes(text or "")

    def segment(
        self, path: str, classes: str, model: str, method: str, background: str = "", threshold: float = 0.0
    ) -> Segmentation:
        """Label an uploaded image; a second question on the same image answers without the towers.

        Args:
            path: the file of the upload.
            classes: as typed.
            model: a name that the page offers.
            method: a name of `--method`.
            background: class of the pixels below the threshold, empty for none.
            threshold: a probability.

        Raises UserError.
        """
        image, key = self._read(path)
        parsed, rest = self.classes(classes), background_name((background or "").strip() or None)
        check_enough(parsed, rest)
        with self._lock:
            segmenter = self.segmenter(model, method).with_settings(threshold=threshold if rest else 0.0)
            names, question = segmenter.question(parsed, rest)
            prepared, features = self._encoded(segmenter, image, (key, model, method))
            precision = segmenter.config.method.plain_precision
            logits = whole_logits(features, question.text_embeddings, precision)
            prediction = start_label(logits, prepared, question, segmenter.config)()
        return Segmentation(prediction.labels, names, image, None, rest)

    def segment_together(self, requests: Sequence[Request]) -> list[Segmentation | UserError]:
        """Answer requests that waited together; images with one model, method and classes are one batch.

        A request that cannot be answered gets its sentence and leaves the others alone.
        """
        answers: list[Segmentation | UserError | None] = [None] * len(requests)
        groups: dict[tuple[str, str, str], list[int]] = {}
        for index, (_, *question) in enumerate(requests):
            groups.setdefault(tuple(question), []).append(index)
        for question, indices in groups.items():
            if len(indices) > 1:
                with suppress(UserError):  # of one of them: each is answered by itself below
                    results = self._batch([requests[index].path for index in indices], *question)
                    for index, result in zip(indices, results, strict=True):
                        answers[index] = result
        for index, request in enumerate(requests):
            if answers[index] is None:
                try:
                    answers[index] = self.segment(*request)
                except UserError as error:
                    answers[index] = error
        return answers

    def _batch(self, paths: Sequence[str], classes: str, model: str, method: str) -> list[Segmentation]:
        images = [self._read(path)[0] for path in paths]
        with self._lock:
            return self.segmenter(model, method).batch(images, self.classes(classes))

    def compare(
        self, path: str, classes: str, model: str, background: str = "", threshold: float = 0.0
    ) -> list[Image.Image]:
        """ProxyCLIP and GLA-CLIP with the grid of windows, a picture each; asked as in segment. Raises UserError."""
        asked = [(path, classes, model, method, background, threshold) for method in ("proxyclip", "gla")]
        results = [self.segment(*question) for question in asked]
        segmenter = self.segmenter(model, "gla")
        grid = segmenter.prepare(results[0].image).grid
        names, colours = results[0].classes, palette(results[0].classes)
        row = [
            Panel(with_window_grid(blend(r.image, r.labels, colours, r.plain), grid), title)
            for title, r in zip(("ProxyCLIP: each window alone", "GLA-CLIP: all windows"), results, strict=True)
        ]
        present = np.unique([result.labels for result in results])
        if results[0].plain is not None:
            colours[results[0].plain] = PAPER
        entries = [Entry(names[index], tuple(colours[index].tolist())) for index in present.tolist()]
        return [panels([panel], entries) for panel in row]

    def attention(self, path: str, at: tuple[int, int], model: str) -> Image.Image:
        """The tokens that the token at pixel (x, y) attends to, stage by stage of GLA. Raises UserError."""
        image, _ = self._read(path)
        with self._lock:
            return explain(self.segmenter(model, "gla"), image, at=at).picture()

    def _read(self, path: str | None) -> tuple[UInt8[np.ndarray, "h w 3"], str]:
        """The image of an upload and the hash of its file. Raises ImageError."""
        if not path:
            raise ImageError("there is no image; drop one, or choose a sample.")
        size = Path(path).stat().st_size
        if size > MAX_UPLOAD_BYTES:
            raise ImageError(f"the file has {size >> 20} MiB; the page takes up to {MAX_UPLOAD_BYTES >> 20}.")
        try:
            image = read_image(Path(path))  # never an address: no visitor makes this machine ask others
        except ImageError as error:
            raise ImageError(str(error).replace(path, Path(path).name)) from None
        if image.shape[0] * image.shape[1] > MAX_PIXELS:
            raise ImageError(
                f"the image has {image.shape[1]} x {image.shape[0]} pixels; the page takes up to 4096 x 4096."
            )
        return image, hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def _encoded(
        self, segmenter: Segmenter, image: UInt8[np.ndarray, "h w 3"], key: tuple[str, str, str]
    ) -> tuple[Prepared, Array]:
        if key not in self._features:
            prepared = segmenter.prepare(image)
            features = segmenter.model.features([prepared])[0]
            check_usable(have_directions(features), segmenter.config.dtype)
            self._features[key] = prepared, features
        self._features.move_to_end(key)
        while len(self._features) > IMAGES_KEPT:
            self._features.popitem(last=False)
        return self._features[key]
