"""The benchmarks: classes, where mmsegmentation's folder layouts keep images and labels, how labels are encoded.

Class lists, palettes and prompts are data in class_names/, one JSON file per benchmark. The files name only the classes
whose prompt is not their own name; label encodings map raw pixel values to classes.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

TINY_WORLD, FOLDER = "tiny-world", "folder"


@dataclass(frozen=True)
class FolderLayout:
    """Places of the files in one way of keeping a data set, relative to its root.

    An image is images/STEM + one of image_suffixes, its label labels/STEM + label_suffix; split is a file of stems,
    without one every image below the folder counts, sorted by path. encoding: "plain", "zero_ignored" (0 and 255 are
    ignored, k is class k - 1), "last_ignored" (the value after the last class is), or a table of the benchmark's
    class-name file.
    """

    images: str
    image_suffixes: tuple[str, ...]
    labels: str
    label_suffix: str
    encoding: str = "plain"
    split: str | None = None


@dataclass(frozen=True)
class Benchmark:
    """One row: its folder may be --data itself or a folder of it named in roots; images of the full validation set.

    origin: where the data is to be had.
    """

    key: str
    title: str
    images: int | None
    roots: tuple[str, ...] = ()
    layouts: tuple[FolderLayout, ...] = ()
    background: bool = False  # class 0 also takes pixels below the threshold
    origin: str = ""


@dataclass(frozen=True)
class ClassNames:
    """A class-name file: palette holds RGB triples; prompts[setting] those of every class, in order."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    prompts: dict[str, tuple[tuple[str, ...], ...]]
    tables: dict[str, dict[int, int]]


JPEG = (".jpg",)
Places = tuple[tuple[str, ...], tuple[FolderLayout, ...]]  # roots and layouts


def _voc(encoding: str) -> Places:
    split = "ImageSets/Segmentation/val.txt"
    layout = FolderLayout("JPEGImages", (".jpg", ".png"), "SegmentationClass", ".png", encoding, split)
    return ("VOCdevkit/VOC2012", "VOC2012", "voc"), (layout,)


def _context(encoding: str) -> Places:
    split = "ImageSets/SegmentationContext/val.txt"
    layout = FolderLayout("JPEGImages", JPEG, "SegmentationClassContext", ".png", encoding, split)
    return ("VOCdevkit/VOC2010", "VOC2010", "context"), (layout,)


def _coco(converted_suffix: str, *roots: str) -> Places:
    """Labels as mmsegmentation converts them, else the raw maps."""
    images, labels = ("images/val2017", "val2017"), ("annotations/val2017", "stuffthingmaps/val2017", "val2017")
    converted = (FolderLayout(folder, JPEG, labels[0], converted_suffix) for folder in images)
    raw = (FolderLayout(folder, JPEG, beside, ".png", "stuffthingmaps") for folder in images for beside in labels)
    return (*roots, "coco_stuff164k", "coco", "coco_stuff"), (*converted, *raw)


_CITYSCAPES = tuple(
    FolderLayout("leftImg8bit/val", ("_leftImg8bit.png",), "gtFine/val", f"_gtFine_{kind}.png", encoding)
    for kind, encoding in (("labelTrainIds", "plain"), ("labelIds", "labelIds"))
)
_OBJECT, _STUFF = _coco("_instanceTrainIds.png", "coco_object"), _coco("_labelTrainIds.png")
_ADE = (
    ("ade/ADEChallengeData2016", "ADEChallengeData2016", "ade20k"),
    (FolderLayout("images/validation", JPEG, "annotations/validation", ".png", "zero_ignored"),),
)
_CAMVID = (
    FolderLayout("images", (".png",), "labels", ".png", "last_ignored", "val.txt"),
    FolderLayout("test", (".png",), "testannot", ".png", "last_ignored"),
)
_VOC_ORIGIN = "VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_CONTEXT_ORIGIN = (
    "the trainval images of http://host.robots.ox.ac.uk/pascal/VOC/voc2010/, with labels and split as mmsegmentation's "
    "tools/dataset_converters/pascal_context.py makes them"
)
_COCO_ORIGIN = (
    "http://images.cocodataset.org/zips/val2017.zip, and stuffthingmaps_trainval2017.zip of "
    "https://github.com/nightrome/cocostuff"
)
_CITYSCAPES_ORIGIN = (
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of https://www.cityscapes-dataset.com, which asks for a "
    "registration"
)
_ADE_ORIGIN = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_FOLDER = FolderLayout("images", (".jpg", ".jpeg", ".png", ".webp"), "labels", ".png")
_ROWS = (
    Benchmark("voc21", "PASCAL VOC 2012, with background", 1449, *_voc("plain"), True, _VOC_ORIGIN),
    Benchmark("voc20", "PASCAL VOC 2012", 1449, *_voc("zero_ignored"), origin=_VOC_ORIGIN),
    Benchmark("context60", "PASCAL Context, with background", 5104, *_context("plain"), True, _CONTEXT_ORIGIN),
    Benchmark("context59", "PASCAL Context", 5104, *_context("zero_ignored"), origin=_CONTEXT_ORIGIN),
    Benchmark("coco_object", "COCO-Object, with background", 5000, *_OBJECT, True, _COCO_ORIGIN),
    Benchmark("coco_stuff164k", "COCO-Stuff 164k", 5000, *_STUFF, origin=_COCO_ORIGIN),
    Benchmark("cityscapes", "Cityscapes", 500, ("cityscapes",), _CITYSCAPES, origin=_CITYSCAPES_ORIGIN),
    Benchmark("ade20k", "ADE20K-150", 2000, *_ADE, origin=_ADE_ORIGIN),
    Benchmark("camvid", "CamVid, test", 233, ("camvid", "CamVid", "camvid_test"), _CAMVID),
    Benchmark(TINY_WORLD, "tiny-world, held-out scenes drawn on the fly", 200),
    Benchmark(FOLDER, "any folder of images/, labels/ and classes.txt", None, (), (_FOLDER,)),
)
BENCHMARKS: dict[str, Benchmark] = {row.key: row for row in _ROWS}
PAPER_MODEL = "clip-vit-base-patch16+dino-vitb8"
PAPER_BENCHMARKS = ("voc21", "context60", "coco_object", "voc20", "context59", "coco_stuff164k", "cityscapes", "ade20k")


@cache
def class_names(key: str) -> ClassNames:
    """The class-name file of a benchmark other than `folder`."""
    if key == TINY_WORLD:
        from gla_jax.tiny_world.vocabulary import CLASSES

        return ClassNames(CLASSES, None, {"sclip": tuple((name,) for name in CLASSES)}, {})
    content: dict[str, Any] = json.loads((files("gla_jax.eval") / "class_names" / f"{key}.json").read_text("utf-8"))
    classes, palette, prompts = (content.pop(name) for name in ("classes", "palette", "queries"))
    return ClassNames(
        tuple(classes),
        tuple(tuple(bytes.fromhex(colour)) for colour in palette),
        {setting: tuple(tuple(renamed.get(name, [name])) for name in classes) for setting, renamed in prompts.items()},
        {name: {int(raw): index for raw, index in table.items()} for name, table in content.items()},
    )
