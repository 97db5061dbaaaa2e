"""The commands, from a shell's point of view: what they print, write and refuse."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from gla_jax.cli.eval import app
from gla_jax.support.errors import UserError
from tests.eval import trees
from tests.eval.test_protocols import preset_file
from tests.small_models import random_pair

pytestmark = [
    pytest.mark.filterwarnings("ignore:the model does not know"),  # a random model knows a few words only
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),  # of TFDS's own dependencies
]


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


def test_the_list_needs_no_data():
    result = call("--list")
    assert result.exit_code == 0
    assert "coco_stuff164k" in result.stdout
    assert "as the PAPER reports it" in result.stdout


def test_a_run_leaves_its_files_and_goes_on(tmp_path, model):
    data, out = trees.camvid(tmp_path / "camvid", [0, 3, 11]), tmp_path / "out"
    arguments = ("camvid", "--data", data, "--model", model, "--method", "proxyclip", "--out", out)
    first = call(*arguments, "--save-predictions")
    assert first.stdout.startswith("camvid, proxyclip: mIoU ")
    written = {path.name for path in out.iterdir()}
    assert written == {
        "results.json",
        "per_class.csv",
        "report.html",
        "report.md",
        "records",
        "predictions",
        "run.json",
    }
    with Image.open(out / "predictions/x.png") as picture:
        assert np.asarray(picture).max() < 11
    content = json.loads((out / "results.json").read_text())
    assert content["images"] == {"measured": 1, "in_data": 1, "labelled": True}
    assert "\n  1 image, " in first.stdout
    assert content["paper"] is None
    again = call(*arguments, "--save-predictions")
    assert again.stdout == first.stdout
    with pytest.raises(UserError, match="other settings"):
        call(*arguments)


def test_several_benchmarks_get_folders_of_their_own(tmp_path, model):
    root = trees.voc(tmp_path / "VOC2012", [0, 15], ("a",))
    out = tmp_path / "out"
    said = call("voc21", "voc20", "--data", root, "--model", model, "--method", "maskclip", "--out", out).stdout
    figures = [json.loads((out / key / "results.json").read_text())["benchmark"] for key in ("voc21", "voc20")]
    assert figures == ["voc21", "voc20"]
    rows = (out / "summary.md").read_text().splitlines()
    assert [row.split(" | ")[0] for row in rows[4:7]] == ["| voc21", "| voc20", "| average"]
    together = json.loads((out / "summary.json").read_text())
    mious = [row["figures"]["miou"] for row in together["benchmarks"]]
    assert together["average"]["miou"] == pytest.approx(sum(mious) / 2)
    assert f"{together['average']['miou']:.2f}" in said
    assert together["paper_average"] is None
    with pytest.raises(UserError, match="differ in their benchmark"):
        call("compare", out / "voc21", out / "voc20", "--out", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match=r"is not the name of a page; end it with \.html"):
        call("compare", out / "voc21", out / "voc21", "--out", tmp_path / "page")
    call("compare", out / "voc21", out / "voc21", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "<td>0.00" in page
    assert "+0.00" not in page


def test_a_folder_with_its_own_classes(tmp_path, model):
    data = trees.folder(tmp_path / "mine", 3, [0, 1, 255])
    call("folder", "--data", data, "--model", model, "--method", "maskclip", "--out", tmp_path / "out")
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["class"] for row in content["per_class"]] == ["thing 0", "thing 1", "thing 2"]
    assert content["protocol"]["queries"] == 6


def test_a_preset_of_tune_is_for_the_method_it_was_tuned_for(tmp_path, model):
    arguments = ("tiny-world", "--model", model, "--offline", "--preset", preset_file(tmp_path / "mine.json"))
    with pytest.raises(UserError, match="tuned for the method gla, not for maskclip"):
        call(*arguments, "--method", "maskclip", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prepare_makes_a_copy_that_data_takes(tmp_path, model):
    data = trees.camvid(tmp_path / "camvid", [0, 3, 11])
    assert "gla_benchmark/camvid" in call("prepare", "camvid", "--data", data, "--out", tmp_path / "copies").stdout
    arguments = ("camvid", "--model", model, "--method", "maskclip")
    call(*arguments, "--data", data, "--out", tmp_path / "a")
    call(*arguments, "--data", tmp_path / "copies", "--out", tmp_path / "b")
    first, second = (json.loads((tmp_path / name / "results.json").read_text()) for name in "ab")
    assert first["figures"] == second["figures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no benchmark is named"),
        (("voc",), "'voc' is not a benchmark"),
        (("tiny-world", "--method", "nothing"), "'nothing' is not a method"),
        (("tiny-world", "--preset", "nothing"), "'nothing' is not a preset"),
        (("tiny-world", "--dtype", "half"), "'half' is not a dtype"),
        (("tiny-world", "--preset", "nothing.json"), r"nothing\.json cannot be read"),
        (("voc21",), "name it with --data"),
    ],
)
def test_mistakes_get_a_sentence_and_write_nothing(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        call(*arguments, *(("--out", tmp_path / "out") if arguments else ()))
    assert not (tmp_path / "out").exists()
