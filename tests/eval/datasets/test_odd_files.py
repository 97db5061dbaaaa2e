"""Split files and labels as editors, cameras and careless tools leave them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from gla_jax.eval.datasets import folders
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.datasets.labels import label_code, read_label
from gla_jax.support.errors import DataError
from tests.eval import trees
from tests.images.test_depths import tiff

SPLIT = "ImageSets/Segmentation/val.txt"


@pytest.mark.parametrize("text", ["\ufeffb\na\n", "\ufeffb\r\na\r\n", "b \n\n a", "b\ra\r"])
def test_split_files_of_every_editor(text, tmp_path):
    data = trees.voc(tmp_path, [0, 1])
    (data / SPLIT).write_bytes(text.encode())
    assert open_dataset("voc21", data).ids == ("b", "a")


def test_split_files_are_bounded(tmp_path):
    data = trees.voc(tmp_path, [0, 1])
    os.truncate(data / SPLIT, folders.MAX_SPLIT_BYTES + 1)
    with pytest.raises(DataError, match=r"val\.txt is larger than 64 MiB"):
        open_dataset("voc21", data)


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "AVIF", "WEBP", "TIFF"])
def test_formats_that_change_values_hold_no_labels(kind, tmp_path):
    """A GIF numbers its colours anew and JPEG smooths edges: both give classes that nobody wrote."""
    label = trees.label_of([2, 7, 40])
    options = {"compression": "jpeg"} if kind == "TIFF" else {}
    Image.fromarray(label).save(tmp_path / "a.png", format=kind, quality=100, **options)
    with pytest.raises(DataError, match=rf"^label .*a\.png is a {kind} file, which changes class indices"):
        read_label(tmp_path / "a.png", label_code("plain", 171), str(tmp_path / "a.png"))


@pytest.mark.parametrize("order", "<>")
def test_labels_of_16_bits_in_either_byte_order_are_read(order, tmp_path):
    (tmp_path / "a.png").write_bytes(tiff(np.array([0, 2, 299, 65535], f"{order}u2").tobytes(), 4, 16, order=order))
    read = read_label(tmp_path / "a.png", label_code("plain", 300), "a.png")
    np.testing.assert_array_equal(read, [[0, 2, 299, 65535]])
    assert read.dtype == np.uint16


@pytest.mark.parametrize("orientation", [2, 3, 6])
def test_a_folder_s_labels_are_turned_as_their_own_exif_says(orientation, tmp_path):
    turn = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 6: np.rot90}[orientation]  # what the tag takes back
    image = trees.save_image(tmp_path / "images/a.png")
    label = np.arange(image.shape[0] * image.shape[1], dtype=np.uint8).reshape(image.shape[:2])
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(label.size)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "labels").mkdir()
    Image.fromarray(np.ascontiguousarray(turn(label))).save(tmp_path / "labels/a.png", exif=exif)
    np.testing.assert_array_equal(open_dataset("folder", tmp_path).read(0).label, label)


@pytest.mark.parametrize("version", ["2.0.0", None, [1]])
def test_copies_of_another_version_are_refused(version, tmp_path):
    info = {"name": folders.COPY_NAME, "configName": "voc21", "version": version}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"and version 1\.0\.0 is read; remove it and prepare it again"):
        folders.find_copy("voc21", tmp_path)
    (tmp_path / "dataset_info.json").write_text(json.dumps({**info, "version": folders.COPY_VERSION}))
    assert folders.find_copy("voc21", tmp_path) == tmp_path


def test_labels_whose_images_are_of_a_kind_that_is_not_read_are_named(tmp_path):
    """Images vanished without a word, and the figures were those of the others."""
    data = trees.folder(tmp_path / "mine", 3, [0, 1])
    (data / "images" / "three.tif").write_bytes((data / "images" / "one.png").read_bytes())
    for name in ("three.png", ".hidden.png"):
        (data / "labels" / name).write_bytes((data / "labels" / "one.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 of 3 labels in .*labels are left out, .* the first is three\.png$"):
        dataset = open_dataset("folder", data)
    assert dataset.ids == ("one", "two")


def test_a_folder_of_the_user_is_named_and_not_a_benchmark(tmp_path):
    data = trees.folder(tmp_path / "mine", 3, [0, 1])
    (data / "labels" / "two.png").unlink()
    with pytest.raises(DataError, match=r"^\S+/mine is incomplete: 1 of 2 labels are missing"):
        open_dataset("folder", data)
    (data / "labels" / "one.png").unlink()
    with pytest.raises(DataError, match=r"^\S+/mine holds no labelled images: \S+/one\.png does not exist"):
        open_dataset("folder", data)
