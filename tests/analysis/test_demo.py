"""The demo: what a new user sees first must be there, right, and show what the method is for."""

import json

import numpy as np
from PIL import Image

from gla_jax.analysis.demo import HEIGHT, WIDTH
from gla_jax.cli import main


def test_demo_writes_a_picture_and_figures_in_which_gla_wins(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert {path.name for path in (tmp_path / "demo").glob("[!.]*")} == {"demo.png", "demo.json"}
    document = json.loads((tmp_path / "demo" / "demo.json").read_text())
    proxyclip, gla = document["methods"]["ProxyCLIP"], document["methods"]["GLA-CLIP"]
    assert gla["miou"] > proxyclip["miou"]
    assert gla["pixel_accuracy"] > proxyclip["pixel_accuracy"]
    assert gla["boundary_error_rate"] < proxyclip["boundary_error_rate"] / 2
    picture = np.asarray(Image.open(tmp_path / "demo" / "demo.png"))
    assert picture.shape[1] >= 4 * WIDTH
    assert picture.shape[0] > HEIGHT
    printed = capsys.readouterr().out
    assert f"{gla['miou']:.1f}" in printed
    assert "demo.png" in printed


def test_a_scene_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["demo", "--scene", "-3", "--out", str(tmp_path / "demo")]) == 2
    assert "'--scene'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
