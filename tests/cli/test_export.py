"""gla-jax export: a program gives the labels of the segmenter where gla-jax is not, and parameters read back equal."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gla_jax.checkpoints.model_folder import flatten_params
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.images.resize import resize_uint8, resize_uint8_traced
from gla_jax.predict.export import PLATFORMS, export_labels, exported_weights
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import preset_content
from gla_jax.support.errors import UserError
from gla_jax.text.prompts import parse_classes
from tests.small_models import random_pair

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_exported.py"
CLASSES = ["sand; gravel", "water", "a red cloth with dots"]
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("pair"))


@pytest.mark.parametrize("size", [(48, 72), (60, 90), (33, 200), (7, 5)])
def test_a_traced_resize_gives_the_bytes_of_the_other(size):
    """Else a program would see other pixels than the segmenter."""
    found = jax.jit(resize_uint8_traced, static_argnums=1)(IMAGE, size)
    np.testing.assert_array_equal(found, resize_uint8(IMAGE, size))


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "gla", "merge_overlaps": True},
        {"method": "maskclip", "threshold": 0.5},
        {"method": "gla-sclip", "prune_below": 0.4},
    ],
)
def test_a_program_gives_the_labels_of_the_segmenter(pair, fields):
    config = SegmenterConfig(windows=WindowConfig(short_side=48, crop=32, stride=16))
    segmenter = Segmenter.from_pretrained(pair, config).with_settings(**fields)
    background = "water" if fields.get("threshold") else None
    _, question = segmenter.question(parse_classes(CLASSES), background)
    program = export_labels(segmenter.model, question, IMAGE.shape[:2])
    assert program.platforms == PLATFORMS
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    again = jax.export.deserialize(program.serialize())
    weights = exported_weights(segmenter.model)
    assert any(path.startswith("vfm/") for path in weights) == segmenter.config.method.reads_vfm
    labels = np.asarray(again.call(weights, IMAGE))
    expected = segmenter(IMAGE, CLASSES, background=background).labels
    assert labels.dtype == expected.dtype
    assert (labels == expected).mean() > 0.999  # batches of the towers differ, and so the last bits


def test_a_script_runs_it_where_gla_jax_cannot_be_imported(pair, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    words = [word for name in CLASSES for word in ("--classes", name)]
    sizes = ["--method", "maskclip", "--size", "60x90"]
    out = tmp_path / "scene.jax"
    assert main(["export", str(pair), *words, *sizes, "--out", str(out)]) == 0
    assert "for cpu, cuda, tpu; weights in" in capsys.readouterr().out
    Image.fromarray(IMAGE).save(tmp_path / "scene.png")
    block = f"import runpy, sys; sys.modules['gla_jax'] = None; sys.argv[:1] = []; runpy.run_path({str(EXAMPLE)!r})"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", block, "run_exported.py", out, tmp_path / "scene.png"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shares = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    segmenter = Segmenter.from_pretrained(pair, method="maskclip")
    expected = segmenter(IMAGE, CLASSES).shares()
    assert [*shares] == ["sand", "water", "a red cloth with dots"]
    for name, share in shares.items():
        assert float(share.split("%")[0]) == pytest.approx(100 * expected[name], abs=0.2)


def test_parameters_read_back_equal(pair, tmp_path):
    path = tmp_path / "pair.safetensors"
    assert main(["export", str(pair), "--safetensors", str(path)]) == 0
    segmenter = Segmenter.from_pretrained(pair)
    expected = flatten_params({"clip": dict(segmenter.clip.params), "vfm": dict(segmenter.vfm.params)})
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)
    with safe_open(path, "np") as file:
        assert json.loads(json.dumps(file.metadata())) == {"model": str(pair)}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name one file to write"),
        (["--out", "x.jax", "--classes", "a", "--classes", "b"], "give --size HxW, as in 480x640"),
        (["--out", "x.jax", "--size", "480"], "'480' is not HxW"),
        (["--out", "x.jax", "--size", "0x9"], "'0x9' is not HxW"),
        (["--out", "x.jax", "--size", "00x9"], "'00x9' is not HxW"),
        (["--out", ".", "--size", "9x9", "--classes", "a", "--classes", "b"], ". is a folder; name a file with --out"),
        (["--safetensors", "."], ". is a folder; name a file with --safetensors"),
        (["--safetensors", "x", "--background", "sky"], "leave out classes and size"),
        (["--out", "x.safetensors", "--size", "9x9"], "choose another ending"),
        (["--safetensors", "x", "--size", "9x9"], "leave out classes and size"),
        (["--out", "x.jax", "--size", "9x9", "--classes", "a; b"], "the class 'a' alone would take every pixel"),
        (["--out", "ftp://x/y", "--size", "9x9"], "ftp://x/y names no store that is known"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "tiny-world", *words]) != 0
    assert sentence in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("photo.png", ["--size", "32x32"]), ("weights.jax", ["--size", "32x32"]), ("weights.safetensors", [])],
)
def test_a_file_of_others_is_not_replaced(pair, tmp_path, capsys, name, words):
    """Such as weights of the same name beside the program, or the photo where the program was to be named."""
    there = {path: tmp_path / path for path in ("photo.png", "weights.safetensors")}
    Image.fromarray(IMAGE).save(there["photo.png"])
    save_file({"x": IMAGE}, there["weights.safetensors"])
    before = [path.read_bytes() for path in there.values()]
    classes = [word for name in CLASSES for word in ("--classes", name)] if words else []
    option = "--out" if words else "--safetensors"
    assert main(["export", str(pair), *classes, *words, option, str(tmp_path / name)]) == 2
    assert "exists and is no file of gla-jax export; choose another name" in capsys.readouterr().err
    assert [path.read_bytes() for path in there.values()] == before
    assert sorted(tmp_path.iterdir()) == sorted(there.values())


def test_the_background_is_that_of_segment(pair, tmp_path):
    """`none` is no class of that name, and a tuned preset says the threshold."""
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    words = [word for name in CLASSES for word in ("--classes", name)] + ["--size", "32x32"]
    config = SegmenterConfig(windows=WindowConfig(48, 32, 16), threshold=0.4)
    (tmp_path / "p.json").write_text(json.dumps(preset_content(config, "gla", "sclip-prompts", {})))
    for option, extra, names in (
        ("none", [], CLASSES),
        ("wall", ["--preset", str(tmp_path / "p.json")], ["wall", *CLASSES]),
    ):
        out = tmp_path / f"{option}.jax"
        assert main(["export", str(pair), *words, *extra, "--background", option, "--out", str(out)]) == 0
        assert main(["export", str(pair), *words, *extra, "--background", option, "--out", str(out)]) == 0  # its own
        with safe_open(out.with_suffix(".safetensors"), "np") as file:
            assert json.loads(file.metadata()["classes"]) == [name.split(";")[0] for name in names]


def test_settings_that_a_program_cannot_have_are_refused(pair):
    segmenter = Segmenter.from_pretrained(pair).with_settings(background_margin=0.1)
    _, question = segmenter.question(parse_classes(CLASSES), "water")
    with pytest.raises(UserError, match=r"background_margin, .* are worked out beside the program"):
        export_labels(segmenter.model, question, (32, 32))
    with pytest.raises(UserError, match="images of 99999x99999 are too large for one program"):
        export_labels(segmenter.with_settings(background_margin=0.0).model, question, (99999, 99999))
