"""Other tools read the same masks from our files as we wrote."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from gla_jax.results.dataset import FORMATS, Labelled, check_formats
from gla_jax.results.regions import brush_rle, polygons
from gla_jax.results.segmentation import Segmentation
from gla_jax.support.errors import UserError
from gla_jax.support.places import place

CLASSES = ("sky", "cat & dog", "grass")


def blobs(seed: int, height: int = 37, width: int = 53) -> np.ndarray:
    """Labels 0 to 2 with holes, islands in holes, and regions that touch at corners alone."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(3, height // 4 + 2, width // 4 + 2))
    fine = np.kron(coarse, np.ones((4, 4)))[:, :height, :width] + 0.4 * rng.normal(size=(3, height, width))
    return fine.argmax(0).astype(np.uint8)


@pytest.fixture
def images(tmp_path):
    """Two labelled images whose files exist."""
    for name in "ab":
        Image.new("RGB", (53, 37)).save(tmp_path / f"{name}.jpg")
    return [Labelled(blobs(seed), str(tmp_path / f"{name}.jpg"), name) for seed, name in enumerate("ab")]


# Of pycocotools itself, which does not follow NumPy 2 yet.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["coco", "coco-polygons"])
def test_pycocotools_reads_the_masks(tmp_path, images, name):
    """A mask that moves by a pixel, or a hole that is filled, would spoil whatever is trained on the file."""
    FORMATS[name](images, CLASSES, "sky", tmp_path)
    coco = COCO(tmp_path / f"{name}.json")
    assert [row["name"] for row in coco.loadCats(coco.getCatIds())] == ["cat & dog", "grass"]
    for image, entry in zip(images, coco.loadImgs(coco.getImgIds()), strict=True):
        assert entry["file_name"] == image.path
        for annotation in coco.loadAnns(coco.getAnnIds(entry["id"])):
            mask = image.labels == annotation["category_id"] - 1
            assert (coco.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert len(coco.anns) == 4


def test_yolo_outlines_cover_the_masks(tmp_path, images):
    """Filled by the even-odd rule at pixel centres, outlines give the mask; the background has no number."""
    FORMATS["yolo"](images, CLASSES, "sky", tmp_path)
    for image in images:
        height, width = image.labels.shape
        filled = np.zeros((2, height, width), bool)
        for line in (tmp_path / "yolo" / "labels" / f"{image.name}.txt").read_text().splitlines():
            number, *numbers = line.split()
            ring = np.array(numbers, float).reshape(-1, 2) * [width, height]
            filled[int(number)] ^= inside(ring, height, width)
        assert (filled == (image.labels == np.array([1, 2])[:, None, None])).all()
        assert (tmp_path / "yolo" / "images" / f"{image.name}.jpg").exists()
    # No `path`: Ultralytics would take a relative one from the working directory, and find no images elsewhere.
    described = (tmp_path / "yolo" / "data.yaml").read_text()
    assert described == 'train: images\nval: images\nnames:\n  0: "cat & dog"\n  1: "grass"\n'


def inside(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel centres inside a ring by the even-odd rule."""
    y, x = np.mgrid[:height, :width] + 0.5
    result = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if abs(y0 - y1) > 1e-3:  # edges are horizontal or vertical
            result ^= (np.minimum(y0, y1) <= y) & (y < np.maximum(y0, y1)) & (x < (x0 + x1) / 2)
    return result


def decoded(stream: list[int]) -> np.ndarray:
    """The values of thi.ng's rle-pack, by its published description."""
    bits = "".join(f"{byte:08b}" for byte in stream)
    at = 0

    def read(size: int) -> int:
        nonlocal at
        at += size
        return int(bits[at - size : at], 2)

    count, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        run, length = read(1), read(sizes[read(2)]) + 1
        values += [read(word)] * length if run else [read(word) for _ in range(length)]
    return np.array(values, np.uint8)


@pytest.mark.parametrize("mask", [blobs(3) == 1, np.ones((3, 5), bool), np.arange(70_000).reshape(1, -1) > 66_000])
def test_label_studio_decodes_the_strokes(mask):
    """Runs above 65,536 values are split."""
    pixels = decoded(brush_rle(mask)).reshape(*mask.shape, 4)
    assert (pixels == 255 * mask[..., None]).all()


def test_label_studio_tasks_go_with_their_interface(tmp_path, images):
    FORMATS["label-studio"](images, CLASSES, "sky", tmp_path)
    tasks = json.loads((tmp_path / "label-studio.json").read_text())
    result = tasks[0]["predictions"][0]["result"][0]
    assert (result["original_width"], result["original_height"]) == (53, 37)
    assert result["value"]["brushlabels"] == ["cat & dog"]
    assert 'value="cat &amp; dog"' in (tmp_path / "label-studio.xml").read_text()
    assert "sky" not in (tmp_path / "label-studio.xml").read_text()


@pytest.mark.parametrize("background", ["sky", None])
@pytest.mark.parametrize("name", ["voc", "cvat"])
def test_colours_of_the_masks_are_those_of_the_list(tmp_path, images, name, background):
    """CVAT and the readers of Pascal VOC find a class by its colour in labelmap.txt."""
    FORMATS[name](images, CLASSES, background, tmp_path)
    rows = [line.split(":")[:2] for line in (tmp_path / name / "labelmap.txt").read_text().splitlines()[1:]]
    colours = {tuple(map(int, colour.split(","))): label for label, colour in rows}
    assert len(colours) == len(rows)
    assert (tmp_path / name / "ImageSets" / "Segmentation" / "default.txt").read_text() == "a\nb\n"
    for image in images:
        picture = Image.open(tmp_path / name / "SegmentationClass" / f"{image.name}.png")
        if name == "voc":
            assert (np.asarray(picture) == image.labels).all()
        expected = [n if n != background or name == "voc" else "background" for n in CLASSES]
        pixels = np.asarray(picture.convert("RGB"))
        read = [[colours[tuple(pixel)] for pixel in row] for row in pixels.tolist()]
        assert (np.array(read) == np.array(expected)[image.labels]).all()


def test_a_class_named_background_is_the_one_that_cvat_reads_as_black(tmp_path, images):
    """Two rows of one name would be two labels."""
    names = ["background" if name == "sky" else name for name in CLASSES]
    FORMATS["cvat"](images, names, None, tmp_path)
    rows = (tmp_path / "cvat" / "labelmap.txt").read_text().splitlines()[1:]
    assert [row for row in rows if row.startswith("background:")] == ["background:0,0,0::"]
    pixels = np.asarray(Image.open(tmp_path / "cvat" / "SegmentationClass" / f"{images[0].name}.png"))
    assert (pixels[images[0].labels == names.index("background")] == 0).all()


def test_a_name_with_a_line_break_does_not_become_two_in_a_list(tmp_path):
    assert check_formats(["coco"], [Path("a\nb.png")]) == ("coco",)
    for name in ("voc", "cvat"):
        with pytest.raises(UserError, match=r"'a\\nb.png' has a line break"):
            check_formats([name], [Path("a.png"), Path("a\nb.png")])


def test_many_classes_have_a_colour_each(tmp_path):
    labels = np.arange(300, dtype=np.uint16).reshape(10, 30)
    names = [f"class {index}" for index in range(300)]
    FORMATS["cvat"]([Labelled(labels, "x.png", "x")], names, None, tmp_path)
    rows = (tmp_path / "cvat" / "labelmap.txt").read_text().splitlines()[1:]
    assert len({row.split(":")[1] for row in rows}) == 301


def test_a_result_is_saved_and_shown(tmp_path):
    result = Segmentation(blobs(0), CLASSES, np.zeros((37, 53, 3), np.uint8), background="sky")
    result.save(tmp_path, "photo", ["coco"])
    assert (np.asarray(Image.open(tmp_path / "photo.index.png")) == result.labels).all()
    assert result.to_coco("photo")["annotations"] == json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "cat &amp; dog" in result._repr_html_()
    assert "37 x 53" in repr(result)
    with pytest.raises(UserError, match=r"'coca' is not a format; did you mean coco\?"):
        result.save(tmp_path / "other", "photo", ["coca"])
    for name in ("", "../photo", "a/photo", str(tmp_path / "photo")):
        with pytest.raises(UserError, match="is no plain name of a file; give the folder apart"):
            result.save(tmp_path / "other", name)
    assert not (tmp_path / "other").exists()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("gla_jax.results.dataset.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs rasterio; install it with pip install \"gla-jax\[formats\]\""):
        check_formats(["voc", "yolo"])


def test_a_hole_in_a_hole_is_kept():
    labels = np.zeros((9, 9), np.uint8)
    labels[1:8, 1:8], labels[2:7, 2:7], labels[3:6, 3:6], labels[4, 4] = 1, 0, 1, 0
    filled = np.logical_xor.reduce([inside(ring, 9, 9) for ring in polygons(labels, 1)])
    assert (filled == labels).all()


def test_yolo_goes_to_an_object_store_with_its_images(images):
    """There are no links there: the images are copied."""
    store = place("memory://formats/out")
    FORMATS["yolo"](images, CLASSES, "sky", store)
    copied = (store / "yolo" / "images" / "a.jpg").read_bytes()
    assert copied == Path(images[0].path).read_bytes()
    assert (store / "yolo" / "labels" / "a.txt").read_text()
