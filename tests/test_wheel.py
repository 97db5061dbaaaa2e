"""The wheel alone, in an empty folder with no checkout near: what `pip install gla-jax` would give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

CHECKOUT = Path(__file__).parents[1]
SHIPPED = ("gla_jax", "convert", "eval", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel's content, built of a copy so that the checkout stays clean."""
    import shutil

    copy, wheels, target = (tmp_path_factory.mktemp(name) for name in ("copy", "wheels", "installed"))
    for name in SHIPPED:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    run(["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(copy)])
    (wheel,) = wheels.glob("*.whl")
    run(["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)])
    return target


def run(arguments, **options):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def command(installed, tmp_path):
    """gla-jax of the wheel in an empty folder; checks that it is the wheel's."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    where = "import gla_jax, gla_jax.eval, gla_jax.convert; print(gla_jax.__file__, gla_jax.eval.__file__)"

    def call(*arguments):
        code = "import sys; from gla_jax.cli import main; sys.exit(main(sys.argv[1:]))"
        return run(["-c", code, *arguments], cwd=tmp_path, env=environment)

    homes = run(["-c", where], cwd=tmp_path, env=environment).split()
    assert all(Path(home).is_relative_to(installed) for home in homes)
    return call


def test_the_wheel_adds_one_name(installed):
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} <= {"gla_jax", "bin"}


def test_demo_and_segment_run(command, tmp_path):
    assert "GLA-CLIP" in command("demo")
    Image.new("RGB", (64, 48), (200, 40, 44)).save(tmp_path / "red.png")
    command("segment", "red.png", "--model", "tiny-world", "--classes", "a red cloth", "--classes", "water")
    assert json.loads((tmp_path / "gla-jax-out" / "results.json").read_text())["images"][0]["size"] == [48, 64]


def test_convert_runs(command, tmp_path):
    """A CLIP without a tokenizer takes OpenAI's, so its vocabulary has to be in the wheel."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**sizes, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    torch.manual_seed(0)
    config = CLIPConfig(projection_dim=16, vision_config={**sizes, "image_size": 32}, text_config=text)
    CLIPModel(config).save_pretrained(tmp_path / "source")
    command("convert", "clip", "source", "converted")
    assert json.loads((tmp_path / "converted" / "config.json").read_text())["family"] == "clip"
    assert (tmp_path / "converted" / "tokenizer.json").exists()
