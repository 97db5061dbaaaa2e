"""A run from and to an object store must be that of local folders; the store is a server with the interface of S3."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.datasets.tfds_copy import prepare
from gla_jax.support.errors import DataError, UserError
from gla_jax.support.files import folder_lock
from gla_jax.support.places import place, upload
from tests.eval import trees
from tests.small_models import random_pair

pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:the model does not know"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of moto's, s3fs's and TFDS's own dependencies
    pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning"),  # of affine, through rasterio
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
IMAGES = 200
COMMAND = [sys.executable, "-c", "from gla_jax.cli import script; script()"]


@pytest.fixture(scope="module")
def bucket():
    """s3://bucket of a server on loopback, for this process and those it starts."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"
    server.stop()


def put(folder, url):
    target = place(url)
    target.fs.put(f"{folder}/", f"{target.path}/", recursive=True)
    target.fs.invalidate_cache()
    return url


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder of small images with labels in two classes, and a model."""
    root, rng = tmp_path_factory.mktemp("local"), np.random.default_rng(0)
    for name in ("images", "labels"):
        (root / "data" / name).mkdir(parents=True)
    for index in range(IMAGES):
        pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"data/images/{index:03d}.png")
        Image.fromarray((pixels[..., 0] > 127).astype(np.uint8)).save(root / f"data/labels/{index:03d}.png")
    (root / "data/classes.txt").write_text("sand\nwater\n")
    random_pair(root / "model")
    return root


def run(*words):
    return subprocess.Popen([*COMMAND, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def done(*started):
    for process in started:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return said


def without_places(text):
    content = json.loads(text)
    del content["finished"], content["speed"], content["data"]["origin"], content["model"]["name"]
    return content


def test_two_shards_at_once_on_a_store_give_the_local_run(bucket, local, tmp_path):
    words = ["eval", "folder", "--method", "maskclip", "--save-predictions"]
    one = run(*words, "--data", local / "data", "--model", local / "model", "--out", tmp_path / "out")
    data, model = (put(local / name, f"{bucket}/{name}") for name in ("data", "model"))
    done(one)
    words += ["--data", data, "--model", model, "--out", f"{bucket}/out"]
    done(*(run(*words, "--shard", f"{index}/2") for index in range(2)))
    done(run("eval", "merge", f"{bucket}/out"))
    ours, theirs = place(f"{bucket}/out"), tmp_path / "out"
    assert without_places((ours / "results.json").read_text()) == without_places((theirs / "results.json").read_text())
    assert (ours / "per_class.csv").read_bytes() == (theirs / "per_class.csv").read_bytes()
    names = sorted(path.name for path in (theirs / "predictions").iterdir())
    assert sorted(path.name for path in (ours / "predictions").iterdir()) == names
    assert len(names) == IMAGES
    assert all(
        (ours / "predictions" / name).read_bytes() == (theirs / "predictions" / name).read_bytes() for name in names
    )
    # Again, it finds everything done; other settings are refused.
    before = sorted(str(path) for path in ours.glob("shards/*/records/*"))
    done(run(*words, "--shard", "0/2"))
    assert sorted(str(path) for path in ours.glob("shards/*/records/*")) == before
    refused = run(*words, "--shard", "0/2", "--method", "clip")
    assert "other settings" in refused.communicate(timeout=300)[0]
    assert refused.returncode == 2


def test_segment_from_and_to_a_store_goes_on_after_a_kill(bucket, local, tmp_path):
    sizes = ["--short-side", "32", "--crop", "32", "--stride", "32"]
    words = ["--classes", "sand", "--classes", "water", *sizes, "--model", local / "model", "--out"]
    photos = shutil.copytree(local / "data/images", tmp_path / "photos", ignore=lambda _, names: sorted(names)[30:])
    url = put(photos, f"{bucket}/photos")
    one = run("segment", photos, *words, tmp_path / "out")
    killed = run("segment", url, *words, f"{bucket}/segmented")
    out, deadline = place(f"{bucket}/segmented"), time.monotonic() + 120
    while len(list(out.glob("*.overlay.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        out.fs.invalidate_cache()
    killed.kill()
    killed.communicate()
    done(one)
    for lock in out.glob(".gla-jax.lock.*"):  # of the dead run, a minute early
        lock.unlink()
    done(run("segment", url, *words, f"{bucket}/segmented"))
    out.fs.invalidate_cache()
    for path in (tmp_path / "out").glob("*.png"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    document = json.loads((out / "results.json").read_text())
    assert (document["complete"], len(document["images"])) == (True, 30)
    assert document["images"][0]["image"] == f"{url}/000.png"


def examples_of(dataset):
    return [examples_of_one(dataset, index) for index in range(len(dataset.ids))]


def test_a_copy_is_read_from_a_store(bucket, tmp_path):
    data = trees.camvid(tmp_path / "camvid", [0, 3, 11])
    copy = prepare("camvid", data, tmp_path / "copy")
    url = put(copy, f"{bucket}/copy")
    ours, theirs = open_dataset("camvid", place(url)), open_dataset("camvid", data)
    assert examples_of(ours) == examples_of(theirs)
    assert ours.fingerprint == theirs.fingerprint


def test_convert_and_raster_from_and_to_a_store_are_those_of_the_disk(bucket, local, tmp_path):
    """Weights, then a raster in blocks, fetched in parts and written as objects."""
    peer = Path(__file__).parents[1] / "peers/data/timm_dino"
    url = put(peer, f"{bucket}/weights")
    done(run("convert", "dino", f"{url}/model.safetensors", f"{bucket}/converted"))
    done(run("convert", "dino", peer, tmp_path / "converted"))
    config = (place(f"{bucket}/converted") / "config.json").read_bytes()
    assert config == (tmp_path / "converted/config.json").read_bytes()

    pixels = np.random.default_rng(1).integers(0, 256, (3, 300, 400), np.uint8)
    shape = {"height": 300, "width": 400, "count": 3, "dtype": "uint8", "transform": from_origin(0, 300, 1, 1)}
    shape |= {"tiled": True, "blockxsize": 64, "blockysize": 64}
    (tmp_path / "raster").mkdir()
    with rasterio.open(tmp_path / "raster/scene.tif", "w", driver="GTiff", **shape) as out:
        out.write(pixels)
    put(tmp_path / "raster", f"{bucket}/raster")
    words = [
        "--classes",
        "sand",
        "--classes",
        "water",
        "--model",
        local / "model",
        "--method",
        "maskclip",
        "--block",
        "96",
    ]
    words += ["--short-side", "native", "--crop", "32", "--stride", "32", "--vectors"]
    done(run("raster", f"{bucket}/raster/scene.tif", *words, "--out", f"{bucket}/labelled"))
    done(run("raster", tmp_path / "raster/scene.tif", *words, "--out", tmp_path / "labelled"))
    ours = place(f"{bucket}/labelled")
    assert (ours / "labels.tif").read_bytes() == (tmp_path / "labelled/labels.tif").read_bytes()
    names = {path.relative_to(tmp_path / "labelled").as_posix() for path in (tmp_path / "labelled").rglob("*.*")}
    assert {str(path)[len(str(ours)) + 1 :] for path in ours.rglob("*.*")} == names - {".gla-jax.lock"}


def write_tars(data, folder, count=3):
    """The images and labels of a folder as samples, in order of their names."""
    folder.mkdir()
    stems = sorted(path.stem for path in (data / "images").iterdir())
    for number, part in enumerate(np.array_split(stems, count)):
        with tarfile.open(folder / f"part-{number}.tar", "w") as archive:
            for stem in part:
                archive.add(data / f"images/{stem}.png", f"./{stem}.image.png")
                archive.add(data / f"labels/{stem}.png", f"./{stem}.label.png")
                archive.add(data / "classes.txt", f"./{stem}.txt")
    shutil.copy(data / "classes.txt", folder)
    return folder


def test_tars_on_a_store_are_the_folder_they_were_made_of(bucket, local, tmp_path):
    tars = write_tars(local / "data", tmp_path / "tars")
    url = put(tars, f"{bucket}/tars")
    theirs = open_dataset("folder", local / "data")
    for data in (tars, place(url)):
        ours = open_dataset("folder", data)
        assert ours.ids == theirs.ids
        assert ours.fingerprint == theirs.fingerprint
        for index in (0, 77, 199):
            assert examples_of_one(ours, index) == examples_of_one(theirs, index)


def examples_of_one(dataset, index):
    example = dataset.read(index)
    return example.image_id, example.image.tobytes(), example.label.tobytes()


def test_one_holds_a_lock_of_the_store(bucket):
    """The store itself refuses the second creation."""
    folder = place(f"{bucket}/locked")
    with folder_lock(folder, "taken"):
        with pytest.raises(UserError, match="taken"), folder_lock(folder, "taken"):
            pass
        lock = folder / ".gla-jax.lock.0"
        assert not upload(lock, b"mine", new=True)
        assert b"owner" in lock.read_bytes()
    with folder_lock(folder, "taken"):
        pass


def test_a_store_without_the_data_gets_a_sentence(bucket):
    with pytest.raises(DataError, match=r"s3://bucket/nowhere is not a folder"):
        open_dataset("folder", place(f"{bucket}/nowhere"))


def test_a_store_that_does_not_answer_and_one_without_keys_get_a_sentence(local):
    words = ["eval", "folder", "--data", "s3://bucket/data", "--model", local / "model", "--out", "s3://bucket/none"]
    nowhere = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true"}
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    for keys in ({"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y"}, {}):
        environment = without | nowhere | files | keys
        said = subprocess.run(
            [*COMMAND, *map(str, words)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert said.returncode == 2, said.stderr
        assert said.stderr.startswith("error: the object store cannot be used ("), said.stderr
        assert "Traceback" not in said.stderr
