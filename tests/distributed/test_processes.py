"""Two processes over loopback must give the figures and labels of one; a dead one ends the other with a sentence."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from gla_jax.distributed.processes import Processes
from gla_jax.eval.records import read_records
from gla_jax.eval.results import results
from gla_jax.eval.runner import measure
from tests.eval import trees
from tests.eval.test_runner import IMAGES, make_run, same
from tests.small_models import random_pair

COMMAND = "from gla_jax.cli import script; script()"
CODE = "import sys; from tests.distributed.test_processes import take_part; take_part(*sys.argv[1:])"


def take_part(data, out, seconds, method):
    """One process of a run; prints its figures."""
    from pathlib import Path

    import jax

    from gla_jax.distributed import processes

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so would this
    jax.config.update("jax_platforms", "cpu")
    processes.HEARTBEAT_SECONDS = 3
    with processes.joined(False, "finished images are kept") as joined:
        outcome = measure(make_run(Path(data), Path(out), seconds=float(seconds), method=method), joined)
        print(json.dumps(results(outcome)["figures"]), joined.index, joined.count)


def start(data, out, count, seconds=0.0, method="proxyclip"):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for index in range(count):
        environment = {
            **os.environ,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        arguments = [sys.executable, "-c", CODE, str(data), str(out), str(seconds), method]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(arguments, env=environment, **pipes))
    return started


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.voc(tmp_path_factory.mktemp("data") / "VOC2012", [0, 1, 5, 15, 255], IMAGES)


def test_images_are_split_without_gaps():
    shares = [list(Processes(index, 3).share(8)) for index in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_two_processes_give_the_figures_of_one(data, tmp_path):
    one = measure(make_run(data, tmp_path / "one"))
    started = start(data, tmp_path / "two", 2)
    outputs = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    expected = json.dumps(results(one)["figures"])
    assert [out.splitlines()[-1] for out, _ in outputs] == [f"{expected} {index} 2" for index in range(2)]
    records = sorted((tmp_path / "two/records").glob("*.jsonl"))  # beside them lie the processes' empty lock files
    assert [path.read_bytes().count(b"\n") for path in records] == [6, 6]
    # One process goes on where two stopped, and finds nothing left to do.
    same(measure(make_run(data, tmp_path / "two")), one)
    assert len(records[0].read_bytes().splitlines()) == 6


def wait_for_records(out, count=2):
    deadline = time.monotonic() + 90
    while len(read_records(out)) < count and time.monotonic() < deadline:
        time.sleep(0.05)


SECONDS = 2.0  # an image, of a run that is stopped: its six images must not be over before
SENTENCE = "process {} of 2 stopped before the end because it or another process of the run died"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_other_with_a_sentence(data, tmp_path, victim):
    out = tmp_path / "out"
    started = start(data, out, 2, seconds=SECONDS)
    wait_for_records(out)
    started[victim].send_signal(signal.SIGKILL)
    _, errors = started[1 - victim].communicate(timeout=60)
    started[victim].communicate(timeout=60)
    assert started[1 - victim].returncode != 0
    assert SENTENCE.format(2 - victim) in errors
    same(measure(make_run(data, out)), measure(make_run(data, tmp_path / "whole")))


def ended(started, first, code, seconds=60):
    """Error output of the process that should end first, with this exit code, when the other one has followed."""
    _, errors = started[first].communicate(timeout=90)
    assert started[first].returncode == code, errors
    assert "Traceback" not in errors
    _, others = started[1 - first].communicate(timeout=seconds)
    assert started[1 - first].returncode != 0
    assert SENTENCE.format(2 - first) in others
    return errors


def test_a_bad_image_of_one_process_ends_both(tmp_path):
    """The other one would wait at the end for days, and the first one for minutes on its way out."""
    root = trees.voc(tmp_path / "VOC2012", [0, 1], IMAGES)
    (root / f"JPEGImages/{IMAGES[3]}.jpg").write_bytes(b"broken")
    errors = ended(start(root, tmp_path / "out", 2), 1, 2)
    assert f"{IMAGES[3]}.jpg cannot be read" in errors.splitlines()[-1]


def test_a_folder_of_other_settings_ends_all_processes(data, tmp_path):
    measure(make_run(data, tmp_path / "out", limit=1))
    errors = ended(start(data, tmp_path / "out", 2, method="gla"), 0, 2)
    assert "error: " in errors
    assert "other settings" in errors


@pytest.mark.parametrize(("sent", "first", "code"), [(signal.SIGINT, 1, 130), (signal.SIGTERM, 0, 143)])
def test_a_process_that_is_asked_to_stop_does_and_ends_the_other(data, tmp_path, sent, first, code):
    started = start(data, tmp_path / "out", 2, seconds=SECONDS)
    wait_for_records(tmp_path / "out")
    started[first].send_signal(sent)
    assert "stopped; nothing half-written is left" in ended(started, first, code)


def segment(folder, model, out, count, *options):
    """Run gla-jax segment over the folder's images as `count` processes; their error output."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-c",
        "from gla_jax.cli import script; script()",
        "segment",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(out),
    ]
    command += ["--classes", "sand", "--classes", "water", "--short-side", "48", "--crop", "32", "--stride", "16"]
    several = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)} if count > 1 else {}
    started = []
    for index in range(count):
        environment = {**os.environ, **several, **({"JAX_PROCESS_ID": str(index)} if several else {})}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([*command, *options], env=environment, **pipes))
    outputs = [process.communicate(timeout=180) for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs
    return json.loads((out / "results.json").read_text())


def test_two_processes_segment_what_one_does(tmp_path):
    """Images split by process, then every image over the devices of both: the labels of one process."""
    model, folder = random_pair(tmp_path / "model"), tmp_path / "images"
    folder.mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (50, 70 + 20 * index, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    one = segment(folder, model, tmp_path / "one", 1)
    for name, options in (("split", ()), ("together", ("--mesh", "1x2"))):
        two = segment(folder, model, tmp_path / name, 2, *options)
        assert [record["name"] for record in two["images"]] == ["0", "1"]
        for ours, theirs in zip(two["images"], one["images"], strict=True):
            assert ours["shares"] == pytest.approx(theirs["shares"], abs=1e-3)
            expected, found = (
                np.asarray(Image.open(tmp_path / run / f"{ours['name']}.index.png")) for run in ("one", name)
            )
            assert (found == expected).mean() > 0.999
