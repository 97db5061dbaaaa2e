"""Whole data sets in other tools' layouts, written from the index PNGs of a run; each file is whole or not there."""

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from gla_jax.pictures.drawing import palette, palette_image
from gla_jax.results.regions import bounding_box, brush_rle, coco_rle, polygons
from gla_jax.settings.options import check_choice
from gla_jax.support.arrays import Bool, Integer
from gla_jax.support.errors import UserError
from gla_jax.support.files import unfinished, write_beside, write_json, write_png, write_text
from gla_jax.support.places import content_of, is_remote, make_folder, place


@dataclass(frozen=True)
class Labelled:
    """One image's labels [h w], index into the classes, the path of the image and the name of its files."""

    labels: Integer[np.ndarray, "h w"]
    path: str
    name: str

    def masks(
        self, classes: Sequence[str], background: str | None
    ) -> Iterator[tuple[int, str, Bool[np.ndarray, "h w"]]]:
        """Index, name and mask of every class that occurs, without the background."""
        for index in np.unique(self.labels).tolist():
            if classes[index] != background:
                yield index, classes[index], self.labels == index


Images = Iterable[Labelled]


def coco_document(
    images: Images, classes: Sequence[str], background: str | None, *, outlines: bool = False
) -> dict[str, Any]:
    """A COCO instances document: one annotation for each class of an image; category ids are index + 1.

    Args:
        images: labels of the images.
        classes: names in the order of the labels.
        background: the class that is not annotated, if any.
        outlines: polygons in place of run lengths; `iscrowd`, which marks run lengths, is 0 then.
    """
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(classes) if name != background]
    entries, annotations = [], []
    for number, image in enumerate(images, 1):
        height, width = image.labels.shape
        entries.append({"id": number, "file_name": image.path, "width": width, "height": height})
        for index, _, mask in image.masks(classes, background):
            rings = [ring.ravel().tolist() for ring in polygons(image.labels, index)] if outlines else None
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": index + 1,
                    "segmentation": rings if outlines else coco_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": bounding_box(mask),
                    "iscrowd": int(not outlines),
                }
            )
    return {"images": entries, "annotations": annotations, "categories": categories}


def label_studio_tasks(images: Images, classes: Sequence[str], background: str | None) -> list[dict[str, Any]]:
    """Label Studio's tasks, with the labels as predictions of brush strokes that a person can correct."""
    tasks = []
    for image in images:
        height, width = image.labels.shape
        fixed = {"type": "brushlabels", "from_name": "tag", "to_name": "image", "image_rotation": 0}
        fixed |= {"original_width": width, "original_height": height}
        results = [
            fixed | {"id": f"class-{index}", "value": {"format": "rle", "rle": brush_rle(mask), "brushlabels": [name]}}
            for index, name, mask in image.masks(classes, background)
        ]
        tasks.append({"data": {"image": image.path}, "predictions": [{"model_version": "gla-jax", "result": results}]})
    return tasks


def label_studio_config(classes: Sequence[str], background: str | None) -> str:
    """The labelling interface that the tasks are for, as XML."""
    from xml.sax.saxutils import quoteattr

    colours = palette(classes)
    labels = [
        f"    <Label value={quoteattr(name)} background={quoteattr('#' + bytes(colours[index].tolist()).hex())}/>\n"
        for index, name in enumerate(classes)
        if name != background
    ]
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n  <BrushLabels name="tag" toName="image">\n'
        f"{''.join(labels)}  </BrushLabels>\n</View>\n"
    )


def yolo_lines(image: Labelled, classes: Sequence[str], background: str | None) -> str:
    """YOLO's segmentation label file: a line for each region, its class and x y of its outline as shares of the image.

    Classes are counted without the background.
    """
    height, width = image.labels.shape
    numbers = {name: number for number, name in enumerate(name for name in classes if name != background)}
    lines = []
    for index, name, _ in image.masks(classes, background):
        for ring in polygons(image.labels, index):
            corners = (ring / [width, height]).ravel()
            lines.append(" ".join([str(numbers[name]), *(f"{value:.6g}" for value in corners)]))
    return "".join(f"{line}\n" for line in lines)


def _write_coco(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    write_json(folder / "coco.json", coco_document(images, classes, background), indent=None)


def _write_coco_polygons(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    content = coco_document(images, classes, background, outlines=True)
    write_json(folder / "coco-polygons.json", content, indent=None)


def _write_label_studio(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    write_json(folder / "label-studio.json", label_studio_tasks(images, classes, background), indent=None)
    write_text(folder / "label-studio.xml", label_studio_config(classes, background))


def _write_yolo(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    root = folder / "yolo"
    for part in ("images", "labels"):
        make_folder(root / part)
    for image in images:
        write_text(root / "labels" / f"{image.name}.txt", yolo_lines(image, classes, background))
        _link(place(image.path), root / "images" / f"{image.name}{Path(image.path).suffix}")
    names = [name for name in classes if name != background]
    lines = [f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(names)]
    # Without `path` Ultralytics starts at the folder of this file; a relative one starts at the working directory.
    write_text(root / "data.yaml", f"train: images\nval: images\nnames:\n{''.join(lines)}")


def _link(image: Path, target: Path) -> None:
    """The image at another place: a link, or a copy where there are no links; a warning where it cannot be read."""
    if not (is_remote(image) or is_remote(target)):
        beside = unfinished(target)
        try:
            beside.symlink_to(image.absolute())
        except (OSError, NotImplementedError):  # Windows without the right, some network folders: a copy, below
            pass
        else:
            os.replace(beside, target)
            return
    try:
        content = content_of(image)
    except OSError as error:
        reason = error.strerror or error
        warnings.warn(f"{image} cannot be read any more ({reason}) and is missing in {target.parent}", stacklevel=2)
        return
    write_beside(target, lambda copy: copy.write(content))


def _write_voc(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    rows = zip(classes, palette(classes).tolist(), strict=True)
    _write_masks(images, lambda labels: palette_image(labels, classes), rows, folder / "voc")


def _write_cvat(images: Images, classes: Sequence[str], background: str | None, folder: Path) -> None:
    colours = palette(classes)
    # CVAT reads black as background, under this name alone, and wants it listed.
    rows = [("background", [0, 0, 0])]
    for index, name in enumerate(classes):
        if name in (background, "background"):
            colours[index] = 0
        else:
            rows.append((name, colours[index].tolist()))
    _write_masks(images, lambda labels: Image.fromarray(colours[labels]), rows, folder / "cvat")


def _write_masks(
    images: Images,
    picture: "Callable[[Integer[np.ndarray, 'h w']], Image.Image]",
    rows: Iterable[tuple[str, Sequence[int]]],
    root: Path,
) -> None:
    """The layout of Pascal VOC: SegmentationClass/NAME.png, the list of names, and names and colours of the classes."""
    for part in ("SegmentationClass", "ImageSets/Segmentation"):
        make_folder(root / part)
    names = []
    for image in images:
        names.append(image.name)
        write_png(root / "SegmentationClass" / f"{image.name}.png", picture(image.labels))
    lines = [f"{name.replace(':', ' ')}:{','.join(map(str, colour))}::\n" for name, colour in rows]
    write_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(lines))
    write_text(root / "ImageSets" / "Segmentation" / "default.txt", "".join(f"{name}\n" for name in names))


Writer = Callable[[Images, Sequence[str], str | None, Path], None]
FORMATS: Mapping[str, Writer] = MappingProxyType(
    {
        "coco": _write_coco,
        "coco-polygons": _write_coco_polygons,
        "label-studio": _write_label_studio,
        "cvat": _write_cvat,
        "yolo": _write_yolo,
        "voc": _write_voc,
    }
)
NEEDS = MappingProxyType({"coco": "pycocotools", "coco-polygons": "rasterio", "yolo": "rasterio"})


LISTS = ("cvat", "voc")  # which name every image on a line


def check_formats(names: Sequence[str], images: Iterable[Path] = ()) -> tuple[str, ...]:
    """The names of formats, each once.

    Raises UserError for an unknown one, for one whose package is missing, and for names of images that it cannot hold.
    """
    for name in names:
        check_choice(name, FORMATS, "format")
        if name in NEEDS and not find_spec(NEEDS[name]):
            raise UserError(f'the format {name} needs {NEEDS[name]}; install it with pip install "gla-jax[formats]".')
    for path in images if set(LISTS) & set(names) else ():
        if len(path.stem.splitlines()) > 1:
            raise UserError(
                f"{path.name!r} has a line break, which ends a name in the lists of {' and '.join(LISTS)}; rename it."
            )
    return tuple(dict.fromkeys(names))
