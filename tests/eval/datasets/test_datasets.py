"""Every layout users have must be read as mmsegmentation reads it; what is missing must be named in one sentence."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gla_jax.eval.datasets.dataset import examples, open_dataset
from gla_jax.eval.datasets.ids import checked_id
from gla_jax.eval.datasets.labels import label_code, read_label
from gla_jax.eval.metrics.areas import image_areas
from gla_jax.eval.protocols import protocol
from gla_jax.eval.runner import Run, measure, prediction_path
from gla_jax.images.reading import read_image
from gla_jax.support.errors import DataError
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter


def first_column(dataset, index=0):
    return dataset.read(index).label[:, 0].tolist()


def test_voc_keeps_the_order_of_its_split_and_palette_indices(tmp_path):
    data = trees.voc(tmp_path / "VOCdevkit/VOC2012", [0, 15, 20, 255])
    dataset = open_dataset("voc21", tmp_path)
    assert dataset.ids == ("b", "a")
    assert first_column(dataset)[:4] == [0, 15, 20, 255]
    assert first_column(open_dataset("voc20", data))[:4] == [255, 14, 19, 255]


def test_context_counts_its_background_or_ignores_it(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2010"
    trees.save_image(root / "JPEGImages/x.jpg")
    trees.save_label(root / "SegmentationClassContext/x.png", trees.label_of([0, 1, 59]))
    (root / "ImageSets/SegmentationContext").mkdir(parents=True)
    (root / "ImageSets/SegmentationContext/val.txt").write_text("x\n")
    assert first_column(open_dataset("context60", tmp_path))[:3] == [0, 1, 59]
    assert first_column(open_dataset("context59", tmp_path))[:3] == [255, 0, 58]


def test_cityscapes_raw_ids_become_train_ids(tmp_path):
    trees.cityscapes(tmp_path / "cityscapes", [7, 33, 0, 6, 11, 255], "_gtFine_labelIds.png")
    dataset = open_dataset("cityscapes", tmp_path)
    assert dataset.ids == ("lindau/lindau_0", "munster/munster_1")  # sorted by path over all cities
    assert first_column(dataset)[:6] == [0, 18, 255, 255, 2, 255]


def test_converted_labels_win_over_raw_ones(tmp_path):
    trees.cityscapes(tmp_path, [7], "_gtFine_labelIds.png")
    trees.cityscapes(tmp_path, [3], "_gtFine_labelTrainIds.png")
    assert first_column(open_dataset("cityscapes", tmp_path))[0] == 3


def test_coco_raw_maps_serve_both_benchmarks(tmp_path):
    trees.coco(tmp_path / "coco_stuff164k", [0, 12, 89, 91, 181, 255], ".png")
    assert first_column(open_dataset("coco_stuff164k", tmp_path))[:6] == [0, 11, 79, 80, 170, 255]
    assert first_column(open_dataset("coco_object", tmp_path))[:6] == [1, 12, 80, 0, 0, 0]


def test_coco_values_that_are_never_used_are_refused(tmp_path):
    trees.coco(tmp_path, [11], ".png")
    with pytest.raises(DataError, match="value 11, which stands for none of the 171 classes"):
        open_dataset("coco_stuff164k", tmp_path).read(0)


def test_coco_in_the_layout_of_the_method_s_release(tmp_path):
    trees.coco(tmp_path / "coco", [0, 170], "_labelTrainIds.png", images="val2017")
    assert first_column(open_dataset("coco_stuff164k", tmp_path))[:2] == [0, 170]


def test_ade_and_camvid_ignore_what_they_do_not_name(tmp_path):
    trees.ade20k(tmp_path / "ade/ADEChallengeData2016", [0, 1, 150])
    trees.camvid(tmp_path / "camvid", [0, 10, 11])
    assert first_column(open_dataset("ade20k", tmp_path))[:3] == [255, 0, 149]
    assert first_column(open_dataset("camvid", tmp_path))[:3] == [0, 10, 255]


def test_a_folder_brings_its_own_classes(tmp_path):
    dataset = open_dataset("folder", trees.folder(tmp_path, 3, [0, 2, 255]))
    assert dataset.ids == ("one", "two")
    assert dataset.names.classes == ("thing 0", "thing 1", "thing 2")
    assert dataset.names.prompts["sclip"][1] == ("thing 1", "object 1")
    assert first_column(dataset)[:3] == [0, 2, 255]


def test_a_folder_of_a_thousand_classes_has_wide_labels(tmp_path):
    dataset = open_dataset("folder", trees.folder(tmp_path, 1000, [0, 999, 65535], np.uint16))
    assert dataset.ignore == 65535
    assert first_column(dataset)[:3] == [0, 999, 65535]


def test_labels_of_8_bits_serve_many_classes_where_they_are_clear(tmp_path):
    dataset = open_dataset("folder", trees.folder(tmp_path / "255", 255, [0, 254, 255]))
    assert first_column(dataset)[:3] == [0, 254, 65535]
    dataset = open_dataset("folder", trees.folder(tmp_path / "300", 300, [0, 254]))
    assert first_column(dataset)[:2] == [0, 254]
    dataset = open_dataset("folder", trees.folder(tmp_path / "256", 256, [0, 255]))
    with pytest.raises(DataError, match="holds 255, which may be the class of that index or pixels to ignore"):
        dataset.read(0)


def test_folders_behind_links_are_read(tmp_path):
    """Data on another disk is often linked in, city by city; a link back up must not go round for ever."""
    elsewhere = trees.cityscapes(tmp_path / "disk", [7], "_gtFine_labelIds.png")
    root = tmp_path / "cityscapes"
    for kind in ("leftImg8bit/val", "gtFine/val"):
        (root / kind).mkdir(parents=True)
        for city in ("munster", "lindau"):
            (root / kind / city).symlink_to(elsewhere / kind / city, target_is_directory=True)
        (root / kind / "up").symlink_to(root, target_is_directory=True)
    assert open_dataset("cityscapes", tmp_path).ids == ("lindau/lindau_0", "munster/munster_1")


def test_other_labels_of_the_same_size_are_other_data(tmp_path):
    """A run must not go on with labels that were corrected in between."""
    root = trees.folder(tmp_path, 3, [0, 2])
    before, path = open_dataset("folder", root).fingerprint, root / "labels/one.png"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(bytes(content))
    assert open_dataset("folder", root).fingerprint != before


def test_tiny_world_needs_nothing():
    dataset = open_dataset("tiny-world", None)
    example = dataset.read(3)
    assert len(dataset.ids) == 200
    assert example.image.shape == (336, 448, 3)
    assert example.label.max() < len(dataset.names.classes)


def test_threads_read_the_asked_ones_in_order(tmp_path):
    dataset = open_dataset("voc21", trees.voc(tmp_path / "VOC2012", [0], tuple("fdbcae")))
    assert [example.image_id for example in examples(dataset, [4, 0, 3], threads=2)] == ["a", "f", "c"]


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        ("voc21", "VOCdevkit/VOC2012/JPEGImages does not exist"),
        ("cityscapes", "gtFine/val/.*_gtFine_labelTrainIds.png or .*_gtFine_labelIds.png"),
        ("coco_object", "coco_object/images/val2017"),
    ],
)
def test_missing_folders_are_named_with_the_layout(tmp_path, benchmark, message):
    with pytest.raises(DataError, match=message):
        open_dataset(benchmark, tmp_path)


def test_missing_files_are_named(tmp_path):
    root = trees.voc(tmp_path / "VOC2012", [0])
    (root / "SegmentationClass/a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 labels are missing; the first is .*a\.png"):
        open_dataset("voc21", tmp_path)
    (root / "SegmentationClass/b.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/b\.png does not exist"):
        open_dataset("voc21", root)
    with pytest.raises(DataError, match="is not a folder"):
        open_dataset("voc21", tmp_path / "nowhere")
    with pytest.raises(DataError, match="name it with --data"):
        open_dataset("voc21", None)
    own = trees.folder(tmp_path / "own", 1, [0])
    (own / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"classes\.txt does not exist"):
        open_dataset("folder", own)


def test_damaged_and_foreign_files_are_named(tmp_path):
    root = trees.voc(tmp_path, [0, 21])
    with pytest.raises(DataError, match="value 21, which stands for none of the 21 classes"):
        open_dataset("voc21", root).read(0)
    (root / "JPEGImages/b.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"b\.jpg cannot be read as an image"):
        open_dataset("voc21", root).read(0)
    trees.save_label(root / "SegmentationClass/a.png", trees.label_of([0])[:4])
    with pytest.raises(DataError, match="they must agree"):
        open_dataset("voc21", root).read(1)
    Image.new("RGB", (12, 9)).save(tmp_path / "colours.png")
    with pytest.raises(DataError, match="index PNG of 8 bits"):
        read_label(tmp_path / "colours.png", label_code("plain", 3), "colours.png")


def test_errors_in_threads_reach_the_caller(tmp_path):
    root = trees.voc(tmp_path, [0])
    (root / "JPEGImages/a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.jpg cannot be read"):
        list(examples(open_dataset("voc21", root), [0, 1]))


def stored_turned(path, orientation, image):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)


def test_a_folder_s_images_are_those_of_segment(tmp_path):
    """Of a 16-bit ramp beside the same image in 8 bits the data set once read a white one."""
    root = trees.folder(tmp_path, 3, [0])
    ramp = np.linspace(0, 65535, 9 * 12).reshape(9, 12).astype(np.uint16)
    Image.fromarray(ramp).save(root / "images/one.png")
    (root / "images/two.jpg").unlink()
    Image.fromarray(((ramp.astype(int) * 255 + 32767) // 65535).astype(np.uint8)).save(root / "images/two.png")
    dataset = open_dataset("folder", root)
    one, two = (dataset.read(index).image for index in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(one, read_image(root / "images/one.png"))
    Image.new("RGBA", (12, 9)).save(root / "images/one.png")
    assert dataset.read(0).image.min() == 255  # transparent


def test_a_folder_s_images_are_turned_and_its_labels_are_not(tmp_path):
    root = trees.folder(tmp_path, 3, [0, 1])
    image = trees.save_image(root / "images/one.png")
    stored_turned(root / "images/one.png", 3, np.rot90(image, 2))
    example = open_dataset("folder", root).read(0)
    np.testing.assert_array_equal(example.image, image)
    assert example.label[:, 0].tolist() == [0, 1] * 4 + [0]
    stored_turned(root / "images/one.png", 6, np.rot90(image))
    np.testing.assert_array_equal(open_dataset("folder", root).read(0).image, image)
    trees.save_label(root / "labels/one.png", np.zeros((12, 9), np.uint8))
    with pytest.raises(DataError, match=r"label of one is \(12, 9\).*turn the label by the image's EXIF orientation 6"):
        open_dataset("folder", root).read(0)


def test_a_benchmark_s_images_are_read_as_stored_which_is_said_once(tmp_path):
    root = trees.voc(tmp_path, [0])
    for stem in ("a", "b"):
        image = np.asarray(Image.open(root / f"JPEGImages/{stem}.jpg"))
        stored_turned(root / f"JPEGImages/{stem}.jpg", 6, image)
    dataset = open_dataset("voc21", root)
    with pytest.warns(UserWarning, match="EXIF orientation 6; voc21 reads images as they are stored") as caught:
        read = list(examples(dataset, [0, 1, 0, 1]))
    assert len(caught) == 1
    assert {example.image.shape for example in read} == {(9, 12, 3)}


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2, 3], [0, 1, 2, 9], [0, 255]])
def test_index_files_of_few_bits_hold_their_indices(tmp_path, values):
    """Pillow reads grey values of 2 and 4 bits as multiples of 85 and 17, those of 1 bit as booleans."""
    label = trees.label_of([value for value in values if value < 10])
    for bits in (1, 2, 4, 8):
        if label.max() < 2**bits:
            packed = trees.packed_png(label, bits)
            read = read_label(packed, label_code("plain", 10), "x")
            np.testing.assert_array_equal(read, label)
            assert read.dtype == np.uint8


def test_labels_of_16_bits_serve_few_classes(tmp_path):
    root = trees.folder(tmp_path, 3, [0, 2, 255, 65535], np.uint16)
    dataset = open_dataset("folder", root)
    assert first_column(dataset)[:4] == [0, 2, 255, 255]
    trees.save_label(root / "labels/one.png", trees.label_of([0, 300], np.uint16))
    with pytest.raises(DataError, match="value 300, which stands for none of the 3 classes"):
        dataset.read(0)


UNSAFE = (
    "/abs/x",
    "../x",
    "a/../../x",
    "a//x",
    "a/",
    "./x",
    "C:x",
    "c:/x",
    "a\\..\\x",
    "a\0x",
    "a\tx",
    "a\x1bx",
    "\udce4x",
)


@pytest.mark.parametrize("image_id", [*UNSAFE, "", None, 3, ["x"]])
def test_ids_that_could_lead_outside_are_refused(image_id):
    with pytest.raises(DataError, match="plain relative name"):
        checked_id(image_id, "a file")


@pytest.mark.parametrize("image_id", ["a", "lindau/lindau_0", "a b.c-d", "...x", "Übung", "12:30", "x" * 300])
def test_ids_that_stay_inside_are_taken(image_id):
    assert checked_id(image_id, "a file") == image_id


@pytest.mark.parametrize("image_id", [name for name in UNSAFE if name != "\udce4x"])
def test_a_split_file_cannot_lead_outside(tmp_path, image_id):
    """A line with a path would write predictions there."""
    root = trees.voc(tmp_path, [0])
    split = root / "ImageSets/Segmentation/val.txt"
    split.write_text(f"b\n{image_id}\n")
    with pytest.raises(DataError, match=r"val\.txt, line 2, has .* for an image id; an id is a plain relative name"):
        open_dataset("voc21", root)


def test_split_files_that_are_no_text_and_names_too_long_are_named(tmp_path):
    root = trees.voc(tmp_path, [0])
    split = root / "ImageSets/Segmentation/val.txt"
    split.write_text("b\n" + "x" * 300)
    with pytest.raises(DataError, match="1 of 2 images are missing"):
        open_dataset("voc21", root)
    split.write_bytes(b"b\n\xff\xfe")
    with pytest.raises(DataError, match=r"val\.txt is not UTF-8 text"):
        open_dataset("voc21", root)


@pytest.mark.parametrize("name", ["JPEGImages/a.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/val.txt"])
def test_pipes_in_a_data_set_are_not_opened(tmp_path, name):
    root = trees.voc(tmp_path, [0])
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(DataError, match=name.rpartition("/")[2]):
        open_dataset("voc21", root)


# What can be seen in the pictures, written down by hand: every class that takes a thousandth of the pixels or more.
SEEN = {
    ("voc21", "voc", "vainf_001"): {"background", "aeroplane"},
    ("voc21", "voc", "vainf_023"): {"background", "sheep"},
    ("voc20", "voc", "vainf_114"): {"bird"},
    ("coco_object", "coco_stuff", "000000000139"): {
        *("background", "person", "chair", "potted plant", "dining table", "tv", "refrigerator", "book", "vase"),
    },
    ("coco_object", "coco_stuff", "000000000785"): {"background", "person", "skis"},
    ("coco_stuff164k", "coco_stuff", "000000000785"): {"person", "skis", "snow", "fog"},
    ("cityscapes", "cityscapes", "frankfurt/frankfurt_000000_000294"): {
        *("road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky", "person", "car"),
    },
    ("ade20k", "ade20k", "ADE_val_00000001"): {"wall", "building", "sky", "tree", "road", "grass", "plant"},
    ("camvid", "camvid_test", "0001TP_008550"): {
        *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "car", "pedestrian", "bicyclist"),
    },
}


def sample(benchmark, folder):
    samples = os.environ.get("GLA_JAX_SAMPLES")
    if not samples:
        pytest.skip("GLA_JAX_SAMPLES names no folder of sample images")
    return open_dataset(benchmark, Path(samples) / folder)


@pytest.mark.parametrize(("benchmark", "folder", "image_id"), SEEN)
def test_sample_pictures_hold_what_can_be_seen(benchmark, folder, image_id):
    dataset = sample(benchmark, folder)
    label = dataset.read(dataset.ids.index(image_id)).label
    shares = np.bincount(label.ravel(), minlength=len(dataset.names.classes)) / label.size
    found = {name for name, share in zip(dataset.names.classes, shares, strict=False) if share >= 0.001}
    assert found == SEEN[benchmark, folder, image_id]


@pytest.mark.parametrize(("benchmark", "folder"), [("voc21", "voc"), ("coco_object", "coco_stuff")])
def test_sample_pictures_are_measured_from_end_to_end(benchmark, folder, tmp_path):
    """What a run counts is what its saved prediction and the label say, under real sizes and prompts."""
    dataset, row = sample(benchmark, folder), protocol(benchmark)
    segmenter = ColourSegmenter(row.config("proxyclip"))
    run = Run(dataset, row, "proxyclip", segmenter, tmp_path, limit=1, save_predictions=True)
    outcome = measure(run)
    example = dataset.read(0)
    with Image.open(prediction_path(tmp_path, example.image_id)) as picture:
        saved = np.asarray(picture)
    counted = image_areas(saved, example.label, len(row.classes))
    for ours, expected in zip(outcome.areas(), counted, strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert min(outcome.records[0].resized) == 336
    assert outcome.boundary().pairs.min() > 0
