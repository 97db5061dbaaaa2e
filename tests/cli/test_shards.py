"""Shards on the command line: the results of one run, whichever machine did which part."""

import json
import shutil

import pytest

from gla_jax.cli import main
from tests.eval import trees
from tests.small_models import random_pair

pytestmark = pytest.mark.filterwarnings("ignore:the model does not know")  # a random model knows a few words only


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(random_pair(tmp_path_factory.mktemp("model")))


def test_merged_shards_of_eval_are_one_run_pictures_included(tmp_path, model, capsys):
    data = trees.voc(tmp_path / "VOC2012", [0, 15], ("b", "a", "c"))
    words = ["eval", "voc21", "voc20", "--data", str(data), "--model", model, "--method", "maskclip"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    for index in range(2):
        assert main([*words, "--out", str(tmp_path / "many"), "--shard", f"{index}/2"]) == 0
    assert main(["eval", "merge", str(tmp_path / "many")]) == 0
    for name in ("summary.md", *(f"{key}/{file}" for key in ("voc21", "voc20") for file in ("per_class.csv",))):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    for key in ("voc21", "voc20"):
        one, many = (json.loads((tmp_path / out / key / "results.json").read_text()) for out in ("one", "many"))
        for content in (one, many):
            del content["finished"], content["speed"]
        assert json.dumps(one) == json.dumps(many)
        pages = [(tmp_path / out / key / "report.html").read_text().splitlines() for out in ("one", "many")]
        assert pages[0].count("<span class=tag>") == pages[1].count("<span class=tag>")
        assert [ours for ours, theirs in zip(*pages, strict=True) if ours != theirs and "base64" in ours] == []
    shutil.rmtree(data)
    capsys.readouterr()
    assert main(["eval", "merge", str(tmp_path / "many"), "--out", str(tmp_path / "apart")]) == 0
    said = capsys.readouterr().err
    assert "warning: voc21: the report has no pictures, as" in said
    assert (tmp_path / "apart/voc21/per_class.csv").read_bytes() == (tmp_path / "one/voc21/per_class.csv").read_bytes()
    assert main(["eval", "merge", str(tmp_path / "many"), str(tmp_path / "one")]) == 2
    assert "name one for the results with --out" in capsys.readouterr().err


def test_shards_of_segment_leave_the_files_of_one_run(tmp_path, model, capsys):
    for seed in range(5):
        trees.save_image(tmp_path / f"photos/{'abcde'[seed]}.png", seed)
    sizes = ["--short-side", "32", "--crop", "32", "--stride", "32"]
    words = ["segment", str(tmp_path / "photos"), "--classes", "sand", "--classes", "water", "--model", model, *sizes]
    one, many = tmp_path / "one", tmp_path / "many"
    assert main([*words, "--out", str(one)]) == 0
    for index in (1, 0, 1):  # whatever the order, and one of them twice
        assert main([*words, "--out", str(many), "--shard", f"{index}/2"]) == 0
    assert "3 of 3 images were done before in" in capsys.readouterr().err
    assert not (many / "results.json").exists()
    assert main([*words, "--out", str(many)]) == 0
    assert "5 of 5 images were done before in" in capsys.readouterr().err
    pictures = sorted(path.name for path in one.glob("*.png"))
    assert pictures == sorted(path.name for path in many.glob("*.png"))
    assert all((one / name).read_bytes() == (many / name).read_bytes() for name in pictures)
    documents = [json.loads((out / "results.json").read_text()) for out in (one, many)]
    for document in documents:
        for image in document["images"]:
            del image["seconds"]
    assert documents[0] == documents[1]
    assert documents[0]["complete"] is True
    assert main([*words, "--out", str(many), "--shard", "0/2", "--classes", "grass"]) == 2
    assert "other settings" in capsys.readouterr().err
