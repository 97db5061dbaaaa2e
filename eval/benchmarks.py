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
    """Where one way of keeping a data set has its files, relative to the root.

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
    """One row: its folder may be --data itself or a folder of it named in roots; images of the full validation set."""

    key: str
    title: str
    images: int | None
    roots: tuple[str, ...] = ()
    layouts: tuple[FolderLayout, ...] = ()
    background: bool = False  # class 0 also takes pixels below the threshold


@dataclass(frozen=True)
class ClassNames:
    """A class-name file: palette holds RGB triples; prompts[setting] those of every class, in order."""

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...] | None
    prompts: dict[str, tuple[tuple[str, ...], ...]]
    tables: dict[str, dict[int, int]]


JPEG = (".jpg",)
VOC_ROOTS = ("VOCdevkit/VOC2012", "VOC2012", "voc")
VOC_SPLIT = "ImageSets/Segmentation/val.txt"
CONTEXT_ROOTS = ("VOCdevkit/VOC2010", "VOC2010", "context")
CONTEXT_SPLIT = "ImageSets/SegmentationContext/val.txt"
COCO_FOLDERS = ("images/val2017", "val2017")
TRAIN_IDS, LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"


def _voc(encoding: str) -> tuple[FolderLayout, ...]:
    return (FolderLayout("JPEGImages", (".jpg", ".png"), "SegmentationClass", ".png", encoding, VOC_SPLIT),)


def _context(encoding: str) -> tuple[FolderLayout, ...]:
    return (FolderLayout("JPEGImages", JPEG, "SegmentationClassContext", ".png", encoding, CONTEXT_SPLIT),)


def _coco(converted_suffix: str) -> tuple[FolderLayout, ...]:
    converted = (FolderLayout(images, JPEG, "annotations/val2017", converted_suffix) for images in COCO_FOLDERS)
    raw = (
        FolderLayout(images, JPEG, labels, ".png", "stuffthingmaps")
        for images in COCO_FOLDERS
        for labels in ("annotations/val2017", "stuffthingmaps/val2017", "val2017")
    )
    return (*converted, *raw)


BENCHMARKS: dict[str, Benchmark] = {
    row.key: row
    for row in (
        Benchmark("voc21", "PASCAL VOC 2012, with background", 1449, VOC_ROOTS, _voc("plain"), background=True),
        Benchmark("voc20", "PASCAL VOC 2012", 1449, VOC_ROOTS, _voc("zero_ignored")),
        Benchmark(
            "context60", "PASCAL Context, with background", 5104, CONTEXT_ROOTS, _context("plain"), background=True
        ),
        Benchmark("context59", "PASCAL Context", 5104, CONTEXT_ROOTS, _context("zero_ignored")),
        Benchmark(
            "coco_object",
            "COCO-Object, with background",
            5000,
            ("coco_object", "coco_stuff164k", "coco", "coco_stuff"),
            _coco("_instanceTrainIds.png"),
            background=True,
        ),
        Benchmark(
            "coco_stuff164k",
            "COCO-Stuff 164k",
            5000,
            ("coco_stuff164k", "coco", "coco_stuff"),
            _coco("_labelTrainIds.png"),
        ),
        Benchmark(
            "cityscapes",
            "Cityscapes",
            500,
            ("cityscapes",),
            tuple(
                FolderLayout("leftImg8bit/val", ("_leftImg8bit.png",), "gtFine/val", suffix, encoding)
                for suffix, encoding in ((TRAIN_IDS, "plain"), (LABEL_IDS, "labelIds"))
            ),
        ),
        Benchmark(
            "ade20k",
            "ADE20K-150",
            2000,
            ("ade/ADEChallengeData2016", "ADEChallengeData2016", "ade20k"),
            (FolderLayout("images/validation", JPEG, "annotations/validation", ".png", "zero_ignored"),),
        ),
        Benchmark(
            "camvid",
            "CamVid, test",
            233,
            ("camvid", "CamVid", "camvid_test"),
            (
                FolderLayout("images", (".png",), "labels", ".png", "last_ignored", "val.txt"),
                FolderLayout("test", (".png",), "testannot", ".png", "last_ignored"),
            ),
        ),
        Benchmark(TINY_WORLD, "tiny-world, held-out scenes drawn on the fly", 200),
        Benchmark(
            FOLDER,
            "any folder of images/, labels/ and classes.txt",
            None,
            (),
            (FolderLayout("images", (".jpg", ".jpeg", ".png", ".webp"), "labels", ".png"),),
        ),
    )
}
PAPER_MODEL = "clip-vit-base-patch16+dino-vitb8"
PAPER_BENCHMARKS = (
    "voc21",
    "context60",
    "coco_object",
    "voc20",
    "context59",
    "coco_stuff164k",
    "cityscapes",
    "ade20k",
)


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
        tuple((int(colour[:2], 16), int(colour[2:4], 16), int(colour[4:], 16)) for colour in palette),
        {setting: tuple(tuple(renamed.get(name, [name])) for name in classes) for setting, renamed in prompts.items()},
        {name: {int(raw): index for raw, index in table.items()} for name, table in content.items()},
    )
