"""`gla-jax segment --masks FOLDER`: one label for each mask, and images without masks or with new ones."""

import json

import numpy as np
from PIL import Image

from gla_jax.cli import main
from gla_jax.results.regions import coco_rle
from tests.small_models import random_pair

SIZES = ["--short-side", "32", "--crop", "32", "--stride", "32"]


def test_masks_label_regions_and_new_ones_are_read_again(tmp_path, capsys):
    photos, masks, out = (tmp_path / name for name in ("photos", "masks", "out"))
    for folder in (photos, masks):
        folder.mkdir()
    for seed, name in enumerate("abc"):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{name}.png")
    halves = np.repeat([1, 2], [15, 25])[:, None].repeat(40, 1).astype(np.uint8)
    Image.fromarray(halves).save(masks / "a.png")
    (masks / "b.json").write_text(json.dumps([coco_rle(halves == 1), coco_rle(halves == 2)]))
    words = [str(photos), "--classes", "sand", "--classes", "water", "--model", str(random_pair(tmp_path / "model"))]
    words = ["segment", *words, *SIZES, "--out", str(out), "--masks", str(masks)]

    assert main(words) == 1
    assert "has neither c.png nor c.json" in capsys.readouterr().err
    for name in "ab":
        labels = np.asarray(Image.open(out / f"{name}.index.png"))
        assert all(len(np.unique(labels[halves == half])) == 1 for half in (1, 2))
    assert not list(out.glob("*.npz"))

    Image.fromarray(halves.T.copy()).save(masks / "a.png")
    Image.fromarray(halves).save(masks / "c.png")
    assert main(words) == 0
    assert "1 of 3 images were done before" in capsys.readouterr().err
    labels = np.asarray(Image.open(out / "a.index.png"))
    assert all(len(np.unique(labels[half == halves.T])) == 1 for half in (1, 2))

    (masks / "b.png").write_bytes((masks / "a.png").read_bytes())
    (masks / "a.json").write_text(json.dumps([coco_rle(halves[:9] == 1)]))
    (masks / "a.png").unlink()
    Image.fromarray(halves).convert("RGB").save(masks / "c.png")
    assert main([*words[:-3], str(tmp_path / "others"), *words[-2:]]) == 1
    said = capsys.readouterr().err
    assert f"mask 1 of {masks / 'a.json'} has 9 x 40 pixels, the image 40 x 40" in said
    assert f"{masks} has both b.png and b.json; leave the one whose masks count" in said
    assert f"{masks / 'c.png'}: it has colours (RGB)" in said

    assert main(words[:-2]) == 2
    assert "masks was" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "nothing")]) == 2
    assert "there is no folder" in capsys.readouterr().err
