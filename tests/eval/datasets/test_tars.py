"""Tars must give the images and labels of the folder they were made of, in order, and name what is wrong with them."""

import io
import tarfile

import pytest

from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.support.errors import DataError
from tests.eval import trees

CLASSES = "thing 0\nthing 1\n"


@pytest.fixture
def folder(tmp_path):
    return trees.folder(tmp_path / "folder", 2, [0, 1, 255])


def write_tar(path, members):
    """A tar of (name, content)."""
    path.parent.mkdir(exist_ok=True)
    (path.parent / "classes.txt").write_text(CLASSES)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def files(folder):
    names = {"one.png": "images/one.png", "two.jpg": "images/two.jpg"}
    labels = {f"{stem}.label.png": f"labels/{stem}.png" for stem in ("one", "two")}
    return {name: (folder / path).read_bytes() for name, path in (names | labels).items()}


def test_a_folder_and_its_tars_are_the_same_data(folder, files, tmp_path):
    first = [("./one.png", files["one.png"]), ("./one.label.png", files["one.label.png"]), ("one.json", b"{}")]
    write_tar(tmp_path / "tars/a.tar", first)
    write_tar(tmp_path / "tars/b.tar", [("two.jpg", files["two.jpg"]), ("two.label.png", files["two.label.png"])])
    ours, theirs = open_dataset("folder", tmp_path / "tars"), open_dataset("folder", folder)
    assert ours.ids == theirs.ids == ("one", "two")
    assert ours.names.classes == ("thing 0", "thing 1")
    assert ours.fingerprint == theirs.fingerprint
    for index in range(2):
        for part, expected in zip(ours.read(index)[1:], theirs.read(index)[1:], strict=True):
            assert (part == expected).all()
    alone = open_dataset("folder", tmp_path / "tars/b.tar")
    assert alone.ids == ("two",)


def test_names_in_folders_and_a_png_beside_a_jpeg_is_its_label(files, tmp_path):
    write_tar(
        tmp_path / "tars/a.tar",
        [("city/x.1.jpg", b""), ("city/x.jpg", files["two.jpg"]), ("city/x.png", files["two.label.png"])],
    )
    dataset = open_dataset("folder", tmp_path / "tars")
    assert dataset.ids == ("city/x",)
    assert dataset.read(0).label.shape == trees.SIZE


def test_a_tar_beside_the_folders_that_were_unpacked_of_it_is_left_alone(folder, files):
    write_tar(folder / "download.tar", [("folder/images/one.png", files["one.png"])])
    (folder / "classes.txt").write_text(CLASSES)
    assert open_dataset("folder", folder).origin == str(folder)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "holds no images"),
        (["one.png"], "1 of 1 images have no label; the first is one"),
        (["one.png", "one.jpg", "one.label.png"], r"holds 1 images and 2 labels of one"),
        (["one.label.png"], "holds 0 images and 1 labels of one"),
        (["one.png", "one.label.png", "one.png"], "holds one.png twice"),
        (["../one.png", "../one.label.png"], "for an image id"),
        (["/one.png", "/one.label.png"], "for an image id"),
        (["C:/one.png", "C:/one.label.png"], "for an image id"),
    ],
)
def test_faults_are_named(files, tmp_path, members, reason):
    contents = {name: files["one.label.png"] if "label" in name else files["one.png"] for name in members}
    write_tar(tmp_path / "tars/a.tar", [(name, contents[name]) for name in members])
    with pytest.raises(DataError, match=reason):
        open_dataset("folder", tmp_path / "tars")


def test_an_id_in_two_tars_a_cut_tar_and_a_compressed_one(files, tmp_path):
    pair = [("one.png", files["one.png"]), ("one.label.png", files["one.label.png"])]
    for name in "ab":
        write_tar(tmp_path / f"tars/{name}.tar", pair)
    with pytest.raises(DataError, match=r"one is in .*a\.tar and in .*b\.tar"):
        open_dataset("folder", tmp_path / "tars")
    (tmp_path / "tars/b.tar").unlink()
    path = tmp_path / "tars/a.tar"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"a\.tar"):
        open_dataset("folder", tmp_path / "tars").read(0)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tmp_path / "tars/classes.txt", "one.png")
    with pytest.raises(DataError, match="write a plain one, not compressed"):
        open_dataset("folder", tmp_path / "tars")
