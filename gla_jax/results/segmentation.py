"""One image's result: labels, names and scores, as pictures, files and documents."""

import base64
import html
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from PIL import Image

from gla_jax.pictures.drawing import index_image, overlay, palette, palette_image
from gla_jax.results.dataset import FORMATS, Labelled, check_formats, coco_document, label_studio_tasks, yolo_lines
from gla_jax.support.arrays import Float, Int, UInt8
from gla_jax.support.errors import UserError
from gla_jax.support.files import write_beside, write_png
from gla_jax.support.places import make_folder, place

ENDINGS = (".index.png", ".palette.png", ".overlay.png")
SCORES_ENDING = ".scores.npz"


@dataclass(frozen=True, repr=False)
class Segmentation:
    """One image's result.

    labels [h w]: uint8 (uint16 above 256 classes), index into classes; scores [L h w] float32, the probability of each
    class's best synonym, when asked for; image [h w 3] uint8 RGB as it was read; background: the class of pixels below
    the threshold, which formats for objects leave out.
    """

    labels: Int[np.ndarray, "h w"]
    classes: tuple[str, ...]
    image: UInt8[np.ndarray, "h w 3"]
    scores: Float[np.ndarray, "L h w"] | None = None
    background: str | None = None

    def __repr__(self) -> str:
        shares = sorted(self.shares().items(), key=lambda item: -item[1])
        height, width = self.labels.shape
        parts = [f"{name} {100 * share:.1f} %" for name, share in shares if share][:5]
        return f"<Segmentation of {height} x {width} pixels: {', '.join(parts)}>"

    def shares(self) -> dict[str, float]:
        """The share of pixels of every class, 0 to 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return {name: float(count / self.labels.size) for name, count in zip(self.classes, counts, strict=True)}

    @property
    def plain(self) -> int | None:
        """The label of the background, which pictures leave without a colour."""
        return self.classes.index(self.background) if self.background in self.classes else None

    def segments(self) -> list[dict[str, Any]]:
        """Hugging Face's image-segmentation list: {label, mask, score} of every class that occurs, largest first.

        mask is a PIL image of mode L, 255 inside; score is the mean probability inside, None without scores.
        """
        shares = self.shares()
        segments = []
        for index, name in sorted(enumerate(self.classes), key=lambda item: -shares[item[1]]):
            inside = self.labels == index
            if not inside.any():
                continue
            score = None if self.scores is None else float(self.scores[index][inside].mean())
            segments.append({"label": name, "mask": Image.fromarray(inside.astype(np.uint8) * 255), "score": score})
        return segments

    def overlay(self) -> Image.Image:
        """The image with coloured regions and a legend, as a PIL image."""
        return overlay(self.image, self.labels, self.classes, self.plain)

    def save(self, folder: Path | str, name: str, formats: Sequence[str] = ()) -> None:
        """Write NAME.index.png, NAME.palette.png, NAME.overlay.png, with scores NAME.scores.npz (float16 [L h w]).

        The PNGs name the classes in the order of the indices, as JSON in a tEXt chunk `classes`.
        formats: names of FORMATS, whose files are for this image alone. Raises UserError for an unknown one.
        """
        folder, count = place(folder), len(self.classes)
        check_formats(formats)
        if not name or PurePath(name).name != name:
            raise UserError(f"the name {name!r:.200} is no plain name of a file; give the folder apart from it.")
        make_folder(folder)
        pictures = index_image(self.labels, count), palette_image(self.labels, self.classes), self.overlay()
        for ending, picture in zip(ENDINGS, pictures, strict=True):
            write_png(folder / f"{name}{ending}", picture, {"classes": json.dumps(self.classes)})
        if self.scores is not None:
            arrays = {"scores": self.scores.astype(np.float16), "classes": np.array(self.classes)}
            write_beside(folder / f"{name}{SCORES_ENDING}", lambda file: np.savez_compressed(file, **arrays))
        for format_name in formats:
            FORMATS[format_name]([self._labelled(name)], self.classes, self.background, folder)

    def to_coco(self, file_name: str, *, outlines: bool = False) -> dict[str, Any]:
        """COCO's instances document of this image: run lengths, or polygons with outlines."""
        return coco_document([self._labelled(file_name)], self.classes, self.background, outlines=outlines)

    def to_label_studio(self, url: str) -> dict[str, Any]:
        """Label Studio's task of this image, which it loads from `url`, with the labels as brush strokes."""
        return label_studio_tasks([self._labelled(url)], self.classes, self.background)[0]

    def to_yolo(self) -> str:
        """YOLO's segmentation label file of this image; classes are counted without the background."""
        return yolo_lines(self._labelled(""), self.classes, self.background)

    def _labelled(self, path: str) -> Labelled:
        return Labelled(self.labels, path, Path(path).stem)

    def _repr_png_(self) -> bytes:
        """The overlay, as notebooks show it."""
        file = io.BytesIO()
        self.overlay().save(file, format="PNG")
        return file.getvalue()

    def _repr_html_(self) -> str:
        """The overlay with a table of shares, as notebooks show it."""
        colours = palette(self.classes).tolist()
        rows = "".join(
            f'<tr><td style="background: rgb{tuple(colour)}">&emsp;</td><td>{html.escape(name)}</td>'
            f"<td>{100 * share:.1f} %</td></tr>"
            for (name, share), colour in zip(self.shares().items(), colours, strict=True)
            if share
        )
        picture = base64.b64encode(self._repr_png_()).decode()
        return f'<img alt="overlay" src="data:image/png;base64,{picture}"><table>{rows}</table>'


def pictures_exist(folder: Path, name: str, scores: bool) -> bool:
    """True if all pictures that Segmentation.save writes exist."""
    return all((folder / f"{name}{ending}").exists() for ending in (*ENDINGS, *[SCORES_ENDING] * scores))
