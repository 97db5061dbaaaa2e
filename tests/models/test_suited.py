"""Numbers that a foundation model chooses: said once, never over what a user writes, and nothing for others."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from gla_jax.checkpoints.model_folder import Checkpoint, write_checkpoint
from gla_jax.cli import main
from gla_jax.config import METHODS, NUMBER_SETTINGS, MethodConfig, SegmenterConfig
from gla_jax.models import suited
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import names_numbers, settings_from_options
from gla_jax.towers.dino import DinoSpec, DinoV2Spec
from tests.small_models import random_pair, random_params

SMALL = DinoV2Spec(image_size=518, patch_size=14, width=384, depth=12, num_heads=6, mlp_width=1536)
CENTRED = replace(MethodConfig(), **NUMBER_SETTINGS["centred"])


def of(spec):
    return Checkpoint("dinov2", spec, {}, "", Path("models/dinov2-small"))


def test_the_papers_pair_keeps_the_published_numbers():
    base = DinoSpec(image_size=224, patch_size=8, width=768, depth=12, num_heads=12, mlp_width=3072)
    for vfm in (None, of(base), of(replace(SMALL, width=768)), of(replace(SMALL, registers=4))):
        assert suited.suited(SegmenterConfig(), vfm) == SegmenterConfig()


@pytest.mark.parametrize("name", METHODS)
def test_gla_over_its_features_takes_them_and_says_so_and_published_baselines_do_not(name):
    config = SegmenterConfig(METHODS[name])
    if name == "gla":
        with pytest.warns(UserWarning, match=r"dinov2-small runs under --preset 336-224-112\+centred"):
            assert suited.suited(config, of(SMALL)).method == CENTRED
    else:
        assert suited.suited(config, of(SMALL)) == config


@pytest.mark.parametrize(
    ("preset", "fields", "named"),
    [
        ("336-224-112", (), False),
        ("448-336-112", ("alpha_beta", "short_side"), False),
        ("336-224-112+rho-0.55", (), True),
        ("centred", (), True),
        ("mine.json", (), True),
        ("336-224-112", ("rho",), True),
    ],
)
def test_what_a_user_writes_wins(preset, fields, named):
    assert names_numbers(preset, fields) == named


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model whose features count as those of a measured model."""
    folder = random_pair(tmp_path_factory.mktemp("pair"))
    spec = DinoV2Spec(image_size=28, patch_size=14, width=8, depth=1, num_heads=2, mlp_width=8)
    write_checkpoint(folder / "v2", spec, random_params(spec, 2), {"source": "random"})
    return f"{folder / 'clip'}+{folder / 'v2'}"


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(suited, "measured_numbers", lambda vfm: "centred")


def test_a_segmenter_takes_them_and_keeps_them_with_another_method(pair, measured):
    with pytest.warns(UserWarning, match="measured for its features"):
        segmenter = Segmenter.from_pretrained(pair)
    numbers = NUMBER_SETTINGS["centred"]
    assert all(getattr(segmenter.config.method, name) == value for name, value in numbers.items())
    assert segmenter.with_settings(method="gla").config.method == segmenter.config.method
    assert segmenter.with_settings(method="sclip").config.method.anchor_threshold == 0.55
    assert segmenter.with_settings(method="gla", rho=0.6).config.method.calibration is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Segmenter.from_pretrained(pair, preset="rho-0.55").config.method.calibration is None
        assert Segmenter.from_pretrained(pair, settings_from_options()).config.method.calibration is None


def test_the_commands_say_so_once(pair, measured, tmp_path, capsys):
    options = ["--model", pair, "--limit", "1"]
    assert main(["crossing", "tiny-world", *options]) == 0
    assert capsys.readouterr().err.count("measured for its features") == 1
    assert main(["crossing", "tiny-world", *options, "--anchor-threshold", "0.5"]) == 0
    assert "measured for its features" not in capsys.readouterr().err
    assert main(["tune", "tiny-world", "--preset", "centred", "--out", str(tmp_path / "p.json")]) == 2
    assert "keeps no calibration" in capsys.readouterr().err


def test_an_exported_program_takes_them_too(pair, measured, tmp_path, capsys):
    pytest.importorskip("flatbuffers", reason="flatbuffers is not installed")
    options = ["export", pair, "--classes", "sand", "--classes", "water", "--size", "56x56"]
    assert main([*options, "--out", str(tmp_path / "program.jax")]) == 0
    assert capsys.readouterr().err.count("measured for its features") == 1
    assert main([*options, "--preset", "rho-0.55", "--out", str(tmp_path / "other.jax")]) == 0
    assert "measured for its features" not in capsys.readouterr().err
