"""Two actors of a real Ray cluster must give the figures of one run, whatever dies on the way."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import gla_jax
from gla_jax.cli.app import _with_ray_address
from gla_jax.cluster import workers
from gla_jax.cluster.pool import IMAGES_OF_A_SHARD, shards_for
from gla_jax.segmenter import Segmenter
from tests.eval import trees
from tests.small_models import random_pair

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
COMMAND = [sys.executable, "-c", "from gla_jax.cli import script; script()"]
STEMS = tuple(f"image-{index:02d}" for index in range(3 * IMAGES_OF_A_SHARD))
RAY = ("--ray", "--actors", "2", "--cpus-per-actor", "1")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    data = trees.voc(root / "VOC2012", [0, 15, 255], STEMS)
    return ["eval", "voc21", "--data", data, "--model", random_pair(root / "model"), "--method", "maskclip"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    start(*words, "--out", out).communicate(timeout=300)
    return results(out)


def start(*words, token=""):
    environment = os.environ | {"GLA_JAX_TEST": token, "RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*COMMAND, *map(str, words)], env=environment, **pipes)


def results(out):
    content = json.loads((out / "results.json").read_text())
    del content["finished"], content["speed"]
    return content


def actors(token):
    """Processes of this test's actors."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = b"EvalWorker" in (folder / "cmdline").read_bytes()
            if named and f"GLA_JAX_TEST={token}\0".encode() in (folder / "environ").read_bytes():
                yield int(folder.name)


def wait_for(what, process):
    deadline = time.monotonic() + 240
    while not (there := list(what())) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    return there


@needs_ray
def test_a_killed_actor_s_shard_is_done_by_another(words, whole, tmp_path):
    token = secrets.token_hex(8)
    process = start(*words, *RAY, "--out", tmp_path, "--log", tmp_path / "log.jsonl", token=token)
    wait_for(lambda: tmp_path.glob("shards/*/records/*.jsonl"), process)
    victim = wait_for(lambda: actors(token), process)[0]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert results(tmp_path) == whole
    # The driver logs every image once, in whichever order the shards end.
    logged = {
        line["image"]: line["miou"] for line in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    }
    assert logged == whole["per_image"]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(STEMS)


@needs_ray
def test_a_killed_driver_goes_on(words, whole, tmp_path):
    process = start(*words, *RAY, "--out", tmp_path)
    finished = wait_for(lambda: tmp_path.glob("shards/*/shard.json"), process)
    process.kill()
    process.communicate()
    before = {path: (path.parent / "records/process-0000.jsonl").read_bytes() for path in finished}
    process = start(*words, *RAY, "--out", tmp_path)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert results(tmp_path) == whole
    assert {path: (path.parent / "records/process-0000.jsonl").read_bytes() for path in finished} == before


@needs_ray
def test_segment_by_ray_and_what_fails_is_one_sentence(words, tmp_path):
    for index in range(3):
        trees.save_image(tmp_path / f"photos/{index}.png", index)
    (tmp_path / "photos/bad.png").write_bytes(b"no image")
    sizes = ["--short-side", "32", "--crop", "32", "--stride", "32"]
    order = ["segment", tmp_path / "photos", "--classes", "sand", "--classes", "water", *sizes, "--out"]
    model = words[words.index("--model") + 1]
    runs = [
        start(*order, tmp_path / "one", "--model", model),
        start(*order, tmp_path / "ray", "--model", model, *RAY),
        start(*order, tmp_path / "no", "--model", tmp_path / "nowhere", *RAY),
    ]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [1, 1, 2], said
    assert "bad.png cannot be read as an image" in said[1]
    assert next(line for line in said[2].splitlines() if "nowhere" in line).startswith("error: ")
    assert "Traceback" not in said[2]
    for path in (tmp_path / "one").glob("*.png"):
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()
    documents = [json.loads((tmp_path / out / "results.json").read_text()) for out in ("one", "ray")]
    for document in documents:
        for image in document["images"]:
            del image["seconds"]
    assert documents[0] == documents[1]


def test_batches_of_ray_data_get_labels(words):
    model = str(words[words.index("--model") + 1])
    sizes = {"short_side": 32, "crop": 32, "stride": 32}
    worker = gla_jax.ray.Segmenter(["sand", "water"], model, settings=sizes)
    alone = Segmenter.from_pretrained(model, **sizes)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, width, 3), np.uint8) for width in (32, 32, 40)]
    expected = [alone(image, ["sand", "water"]).labels for image in images]
    same = worker({"image": np.stack(images[:2]), "path": np.array(["a", "b"])})
    assert same["path"].tolist() == ["a", "b"]
    assert np.array_equal(same["labels"], np.stack(expected[:2]))
    column = np.empty(3, object)
    column[:] = images
    for labels, wanted in zip(worker({"image": column})["labels"], expected, strict=True):
        assert np.array_equal(labels, wanted)


def test_folders_travel_as_absolute_paths(tmp_path, monkeypatch):
    """Actors have a working folder of their own; a plus may stand between models or in a folder's name."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip", "cats+dogs"):
        (tmp_path / name).mkdir()
    assert workers._absolute("cats+dogs") == str(tmp_path / "cats+dogs")
    assert workers._absolute("clip+dino-vitb8") == f"{tmp_path / 'clip'}+dino-vitb8"
    assert workers._absolute(None) is None


def test_shards_are_small_and_do_not_depend_on_the_cluster():
    for images in (1, 16, 17, 40, 5000, 10**6):
        shards = shards_for(images)
        assert len(shards) <= 4096
        assert sum(len(shard.part(images)) for shard in shards) == images
        assert max(len(shard.part(images)) for shard in shards) <= max(IMAGES_OF_A_SHARD, images / 4096 + 1)
    assert shards_for(0) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["eval", "a", "--ray"], ["eval", "a", "--ray", "here"]),
        (["eval", "--ray", "tiny-world"], ["eval", "--ray", "here", "tiny-world"]),
        (["--ray", "--actors", "2"], ["--ray", "here", "--actors", "2"]),
        (["--ray", "auto"], ["--ray", "auto"]),
        (["--ray", "ray://head:10001", "x"], ["--ray", "ray://head:10001", "x"]),
        (["--ray", "10.0.0.1:6379"], ["--ray", "10.0.0.1:6379"]),
    ],
)
def test_the_address_may_be_left_out(words, expected):
    assert _with_ray_address(words) == expected


@needs_ray
def test_a_dataset_of_ray_data_is_mapped(words):
    code = (
        "import sys, numpy as np, ray, gla_jax\n"
        "if __name__ == '__main__':\n"
        "    ray.init(num_cpus=2, include_dashboard=False, logging_level='ERROR')\n"
        "    rows = [{'number': n, 'image': np.full((24, 32, 3), 40 * n, np.uint8)} for n in range(4)]\n"
        "    kwargs = {'classes': ['sand', 'water'], 'model': sys.argv[1],\n"
        "              'settings': {'short_side': 32, 'crop': 32, 'stride': 32}}\n"
        "    dataset = ray.data.from_items(rows).map_batches(\n"
        "        gla_jax.ray.Segmenter, fn_constructor_kwargs=kwargs, batch_size=2, concurrency=1)\n"
        "    print(sorted((row['number'], row['labels'].shape) for row in dataset.take_all()))\n"
    )
    model = words[words.index("--model") + 1]
    said = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, timeout=300)
    assert said.stdout.splitlines()[-1:] == [str([(number, (24, 32)) for number in range(4)])], said.stderr
