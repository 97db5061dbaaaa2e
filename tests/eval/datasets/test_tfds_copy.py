"""A TensorFlow Datasets copy must give the very examples of the folders, without TensorFlow."""

import os
import subprocess
import sys

import numpy as np
import pytest

from gla_jax.eval.datasets.dataset import examples, open_dataset
from gla_jax.support.errors import DataError
from tests.eval import trees

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of TFDS's own dependencies


def prepare(benchmark, data, out):
    from gla_jax.eval.datasets.tfds_copy import prepare

    return prepare(benchmark, data, out)


def test_a_copy_gives_the_examples_of_the_folders(tmp_path):
    data = trees.voc(tmp_path / "VOC2012", [0, 20, 255], tuple("dbca"))
    copy = prepare("voc20", data, tmp_path / "copies")
    folders = open_dataset("voc20", data)
    for where in (copy, tmp_path / "copies"):
        dataset = open_dataset("voc20", where)
        assert dataset.ids == folders.ids == tuple("dbca")
        for ours, theirs in zip(examples(dataset, range(4)), examples(folders, range(4)), strict=True):
            assert ours.image_id == theirs.image_id
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.label, theirs.label)
        # A run over one goes on over the other, and both can be compared.
        assert dataset.fingerprint == folders.fingerprint
    assert prepare("voc20", data, tmp_path / "copies") == copy
    trees.save_label(data / "SegmentationClass/d.png", trees.label_of([1]), palette=True)
    with pytest.raises(DataError, match="is a copy of other data than"):
        prepare("voc20", data, tmp_path / "copies")


def test_copies_are_not_mistaken_for_each_other(tmp_path):
    copy = prepare("camvid", trees.camvid(tmp_path / "camvid", [0]), tmp_path / "copies")
    with pytest.raises(DataError, match="is a copy of camvid, not of voc21"):
        open_dataset("voc21", copy)
    (copy / "metadata.json").unlink()
    with pytest.raises(DataError, match="is damaged"):
        open_dataset("camvid", copy)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("array_record", lambda content: content[:10], "array_record-00000-of-00001 cannot be read"),
        ("array_record", lambda content: content[:-1], "array_record-00000-of-00001 cannot be read"),
        ("array_record", lambda content: bytes(len(content)), "array_record-00000-of-00001 cannot be read"),
        ("array_record", None, "array_record-00000-of-00001 cannot be read"),
        (
            "metadata.json",
            lambda content: content.replace(b'"a"', b'"../a"'),
            r"metadata\.json has '\.\./a' for an image id",
        ),
        ("metadata.json", lambda content: content.replace(b'"a"', b'"b"'), r"metadata\.json cannot be read \(1 ids"),
        ("metadata.json", lambda content: b"[]", r"metadata\.json cannot be read"),
        ("metadata.json", lambda content: b"[" * 100_000, r"metadata\.json is nested too deep"),
        ("dataset_info.json", lambda content: content[:-5], r"dataset_info\.json is not JSON"),
        ("dataset_info.json", lambda content: b"[]", "not of voc21"),
        ("dataset_info.json", lambda content: content.replace(b'"splits"', b'"spilts"'), "cannot be read"),
        ("features.json", lambda content: content[:-5], r"features\.json is not JSON"),
        ("features.json", None, "cannot be read"),
    ],
)
def test_a_damaged_copy_is_one_sentence_that_names_the_file(tmp_path, name, damage, message):
    copy = prepare("voc21", trees.voc(tmp_path / "VOC2012", [0]), tmp_path / "copies")
    (path,) = (path for path in copy.iterdir() if name in path.name)
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(DataError, match=message):
        open_dataset("voc21", copy)


@pytest.mark.parametrize("name", ["array_record", "features.json", "metadata.json"])
def test_a_pipe_in_a_copy_is_not_waited_for(tmp_path, name):
    copy = prepare("voc21", trees.voc(tmp_path / "VOC2012", [0]), tmp_path / "copies")
    (path,) = (path for path in copy.iterdir() if name in path.name)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=f"{name}.* cannot be read .it is missing or no regular file"):
        open_dataset("voc21", copy)


def test_nothing_is_written_for_data_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="JPEGImages does not exist"):
        prepare("voc21", tmp_path, tmp_path / "copies")
    with pytest.raises(DataError, match="has no TensorFlow Datasets copy"):
        prepare("tiny-world", tmp_path, tmp_path / "copies")
    assert not (tmp_path / "copies").exists()


def test_tensorflow_is_never_imported():
    code = "import sys, gla_jax.eval.datasets.tfds_copy; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_copy_that_names_classes_of_others_imports_none(tmp_path):
    """features.json decides which Python classes TensorFlow Datasets imports and calls: data must not choose them."""
    copy = prepare("voc21", trees.voc(tmp_path / "VOC2012", [0]), tmp_path / "copies")
    path = copy / "features.json"
    path.write_text(
        path.read_text().replace("tensorflow_datasets.core.features.image_feature.Image", "antigravity.Fly")
    )
    assert "antigravity" in path.read_text()
    with pytest.raises(DataError, match=r"features\.json names the Python class antigravity\.Fly"):
        open_dataset("voc21", copy)
    assert "antigravity" not in sys.modules
