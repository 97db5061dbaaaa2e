"""Odd command lines: each gets a sentence and exit status 2, none a traceback."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gla_jax.cli import main
from gla_jax.cli.options import DEFAULT_PRESET
from gla_jax.config import DEFAULT_PRESET as CONFIG_PRESET
from gla_jax.config import PRESETS
from tests.small_models import random_pair

HUGE = "9" * 40
T = ["--classes", "sand", "--classes", "water", "--model", "MODEL"]
SEGMENT = ["segment", "PHOTO", *T]
EVAL = ["eval", "tiny-world", "--model", "MODEL"]
EXPLAIN = ["explain", "PHOTO", "--model", "MODEL", "--at", "1,1"]

ODD = [
    ["nothing"],
    ["--nothing"],
    ["-"],
    ["--"],
    [""],
    ["\0"],
    ["segment"],
    ["segment", "PHOTO"],
    ["segment", "PHOTO", "--classes", "sand", "--classes"],
    ["segment", "PHOTO", "--classes", ""],
    ["segment", "PHOTO", "--classes", " "],
    ["segment", "PHOTO", "--classes", ";"],
    ["segment", "PHOTO", "--classes", "gr\udce4ser"],
    ["segment", "PHOTO", "--classes=", "--classes", "sand"],
    ["segment", "PHOTO", "--classes", "sand", "grass", "water"],
    ["segment", "-", *T],
    ["segment", "", *T],
    ["segment", "a\0b", *T],
    ["segment", "x" * 5000, *T],
    ["segment", "/dev/null/photo.png", *T],
    ["segment", "[", *T],
    ["segment", "**", *T],
    [*SEGMENT, "--background", "b\udcff"],
    [*SEGMENT, "--actors", "2"],
    [*EVAL, "--cpus-per-actor", "2"],
    [*SEGMENT, "--background", "rest"],
    [*SEGMENT, "--background", ""],
    [*SEGMENT, "--threshold", "nan"],
    [*SEGMENT, "--threshold", "inf", "--background", "sand"],
    [*SEGMENT, "--threshold", "-1", "--background", "sand"],
    [*SEGMENT, "--threshold", "x"],
    [*SEGMENT, "--model", "nothing"],
    [*SEGMENT, "--model", "+"],
    [*SEGMENT, "--model", "tiny-world+tiny-world"],
    [*SEGMENT, "--model", "~nobody-of-that-name/x"],
    [*SEGMENT, "--model", "x" * 5000],
    [*SEGMENT, "--model", "/dev/zero"],
    [*SEGMENT, "--method", "\udcff"],
    [*SEGMENT, "--method", "-"],
    [*SEGMENT, "--preset", "-"],
    [*SEGMENT, "--preset", "+"],
    [*SEGMENT, "--preset", "336-224-112+"],
    [*SEGMENT, "--preset", "336-224-112+rho-0.7"],
    [*SEGMENT, "--preset", ".json"],
    [*SEGMENT, "--preset", "/dev/zero.json"],
    [*SEGMENT, "--preset", "x" * 5000 + ".json"],
    [*SEGMENT, "--short-side", "0"],
    [*SEGMENT, "--short-side", "-5"],
    [*SEGMENT, "--short-side", "²"],
    [*SEGMENT, "--crop", "0"],
    [*SEGMENT, "--crop", HUGE],
    [*SEGMENT, "--crop", "3"],
    [*SEGMENT, "--crop", "1e3"],
    [*SEGMENT, "--stride", HUGE],
    [*SEGMENT, "--stride", "-1"],
    [*SEGMENT, "--templates", "/proc/self/mem"],
    [*SEGMENT, "--templates", "FOLDER"],
    [*SEGMENT, "--templates", "PHOTO"],
    [*SEGMENT, "--classes-file", "PHOTO"],
    [*SEGMENT, "--out", ""],
    [*SEGMENT, "--out="],
    [*SEGMENT, "--out", "PHOTO"],
    [*SEGMENT, "--out", "/proc/nothing"],
    [*SEGMENT, "--out", "x" * 5000],
    [*SEGMENT, "--dtype", "float64"],
    [*SEGMENT, "--precision", "low"],
    [*SEGMENT, "--batch", "0"],
    [*SEGMENT, "--mesh", ""],
    [*SEGMENT, "--mesh", "0x1"],
    [*SEGMENT, "--mesh", "99x99"],
    [*SEGMENT, "--mesh", f"{HUGE}x{HUGE}"],
    [*SEGMENT, "--mesh", "1x1x1"],
    [*EVAL, "--mesh", ""],
    [*EVAL, "--mesh", "2"],
    [*EVAL, "--limit", "0"],
    [*EVAL, "--threads", HUGE],
    [*EVAL, "--precision", "x"],
    [*EVAL, "--preset", "x\udcff"],
    [*EVAL, "--out", "PHOTO"],
    [*EVAL, "--data", "FOLDER"],
    ["eval"],
    ["eval", ""],
    ["eval", "voc21", "--data", "/dev/null"],
    ["eval", "folder", "--data", "FOLDER"],
    ["eval", "compare", "FOLDER", "FOLDER"],
    ["eval", "prepare", "voc21", "--data", "FOLDER", "--out", "PHOTO"],
    ["ablate", "--baselines", "--stages"],
    ["ablate", "--baselines", "--baseline", "sclip"],
    ["ablate", "--baseline", "clip"],
    ["ablate", "--data", "FOLDER"],
    ["tune", "tiny-world", "--data", "FOLDER"],
    ["ablate", "--grid", "="],
    ["ablate", "--baseline", "sclip", "--grid", "baseline=clearclip,sclip"],
    ["ablate", "--grid", "block_size=0"],
    ["ablate", "--grid", "anchor_threshold=nan"],
    ["ablate", "--preset", "mine.json"],
    ["tune", "--out", "preset"],
    ["tune", "--hold-out", "nan"],
    ["tune", "--images", "0"],
    ["tune", "--method", "clip"],
    [*EXPLAIN, "--at", "99999999999999,1"],
    [*EXPLAIN, "--at", ""],
    [*EXPLAIN, "--anchor-threshold", "nan"],
    [*EXPLAIN, "--out", "x.txt"],
    [*EXPLAIN, "--out", "FOLDER.png"],
    ["crossing", "PHOTO", "--model", "MODEL", "--out", "FOLDER"],
    ["crossing", "PHOTO", "--model", "MODEL", "--out", "/proc/nothing/c.json"],
    ["tune", "--out", "FOLDER.json"],  # before a fit of minutes
    ["ablate", "--grid", "anchor_iterations=1000000000"],
    ["ablate", "--grid", "temperature=1e-50"],
    ["ablate", "--grid", "logit_scale=1e39"],
    [*EXPLAIN, "--mask", "/dev/zero"],
    ["crossing", "tiny-world", "--labels", "FOLDER"],
    ["crossing", "nothing.png"],
    ["bench", "--size", "0x0"],
    ["bench", "--size", "-1x5"],
    ["bench", "--memory-limit", "nan"],
    ["bench", "--memory-limit", "-1"],
    ["bench", "--prompts", HUGE],
    ["bench", "--parts", ","],
    ["bench", "--profile", "PHOTO"],
    ["convert", "clip"],
    ["convert", "mine", "FOLDER", "OUT"],
    ["convert", "clip", "/dev/zero", "OUT"],
    ["convert", "clip", "PHOTO", "OUT"],
    ["convert", "clip", "FOLDER", "OUT", "--heads", "-1"],
    ["convert", "clip", "FOLDER", "OUT", "--image", "PHOTO"],
    ["demo", "--scene", HUGE],
    ["demo", "--out", "PHOTO"],
    ["models", "more"],
    ["info", "--nothing"],
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("places")
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(root / "photo.png")
    for name in ("folder", "folder.png", "folder.json"):
        (root / name).mkdir()
    model = str(random_pair(root / "model"))
    return {
        "PHOTO": str(root / "photo.png"),
        "FOLDER": str(root / "folder"),
        "MODEL": model,
        "OUT": str(root / "out"),
    } | {f"FOLDER{ending}": str(root / f"folder{ending}") for ending in (".png", ".json")}


@pytest.mark.parametrize("words", ODD, ids=lambda words: repr(" ".join(words)[:60]))
def test_an_odd_command_line_is_a_sentence(words, places, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status = main([places.get(word, word) for word in words])
    printed, said = capsys.readouterr()
    assert status == 2, printed + said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.lower().startswith("error: ")]
    assert len(errors) == 1, said


@pytest.mark.parametrize(
    "words",
    [
        ["explain", "photo.png", "--at", "1,1", "--out", "photo.png"],
        ["explain", "photo.png", "--boundaries", *T[:4], "--out", "photo.png", "--mask", "photo.boundaries.png"],
        ["explain", "photo.boundaries.png", "--boundaries", *T[:4], "--out", "photo.png"],
        ["tune", "--out", "classes.json"],
        ["crossing", "photo.png", "--out", "classes.json"],
        ["eval", "compare", "a", "b", "--out", "photo.png"],
        ["eval", "compare", "a", "b", "--out", "a/report.html"],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_a_file_of_the_user_is_not_replaced(words, tmp_path, monkeypatch, capsys):
    """Such as the photo itself, or the results that a page was to be drawn from."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for name in ("photo.png", "photo.boundaries.png"):
        Image.fromarray(np.zeros((40, 60, 3 if name == "photo.png" else 1), np.uint8).squeeze()).save(name)
    (tmp_path / "classes.json").write_text('{"0": "sand"}')
    (tmp_path / "a/report.html").write_text("<!doctype html>\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert main(words) == 2
    assert re.search("is read by this command and would|exists and is no file of this command", capsys.readouterr().err)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path, capsys):
    """`--out /dev/null` of the administrator would end with a regular file there."""
    os.mkfifo(tmp_path / "pipe")
    assert main(["eval", "compare", "a", "b", "--out", str(tmp_path / "pipe")]) == 2
    assert "pipe is a pipe, a socket or a device; name a file with --out" in capsys.readouterr().err
    assert not os.path.isfile(tmp_path / "pipe")


def test_the_default_preset_is_the_settings():
    assert DEFAULT_PRESET == CONFIG_PRESET
    assert DEFAULT_PRESET in PRESETS


def run(words, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from gla_jax.cli import script; script()", *words],
        env=os.environ | environment,
        capture_output=True,
    )


@pytest.mark.parametrize(("platform", "reason"), [("cuda", "plugin"), ("cdua", "not in the list of known backends")])
def test_a_platform_that_is_not_there_is_named(tmp_path, platform, reason):
    done = run(["demo", "--out", str(tmp_path / "out")], JAX_PLATFORMS=platform)
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert platform in said
    assert reason in said
    assert "pip install" in said
    assert "Traceback" not in said
    assert not any(tmp_path.iterdir())


def test_a_coordinator_that_is_no_address_is_one_sentence(places, tmp_path):
    words = [places.get(word, word) for word in SEGMENT] + ["--out", str(tmp_path / "out")]
    done = run(words, JAX_COORDINATOR_ADDRESS="nonsense", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert "Traceback" not in said
    assert [line for line in said.splitlines() if line.startswith("error: ")]
