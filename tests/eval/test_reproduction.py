"""One command to the paper's table, on folders laid out as its benchmarks."""

import json
import re

import pytest

from gla_jax.cli import main
from gla_jax.eval.benchmarks import BENCHMARKS, PAPER_BENCHMARKS
from gla_jax.eval.paper import PAPER_MIOU, paper_miou
from gla_jax.eval.reproduction import OF_A_BENCHMARK, reproduction, reproduction_rows
from tests.eval import trees

pytestmark = pytest.mark.filterwarnings("ignore:the model does not know")


@pytest.fixture
def data(tmp_path):
    """VOC whole, ADE20K without its labels, and nothing of the others."""
    root = tmp_path / "data"
    trees.voc(root / "VOC2012", [0, 15, 255])
    trees.save_image(root / "ade20k/images/validation/ADE_val_00000001.jpg")
    return root


def test_what_is_there_is_measured_and_what_is_missing_is_named(data, tmp_path, capsys):
    """With tiny-world's weights: the figures are eval's, beside the paper's, and the page says whose they are."""
    out = tmp_path / "out"
    words = ["reproduce", "--data", str(data), "--model", "tiny-world", "--out", str(out), "--limit", "1"]
    assert main(words) == 0
    said = capsys.readouterr()
    for name in ("context60", "context59", "coco_object", "coco_stuff164k", "cityscapes", "ade20k"):
        assert f"warning: {name} is left out: {name} is not in {data}" in said.err
        assert BENCHMARKS[name].origin in said.err
    content = json.loads((out / "reproduction.json").read_text())
    rows = {row["benchmark"]: row for row in content["rows"]}
    assert list(rows) == [*PAPER_BENCHMARKS, "average"]
    for name in ("voc21", "voc20"):
        results = json.loads((out / name / "results.json").read_text())
        assert rows[name]["ours"] == results["figures"]["miou"]
        assert rows[name]["paper"] == paper_miou(name, "336-224-112", "gla")
        assert rows[name]["difference"] == pytest.approx(rows[name]["ours"] - rows[name]["paper"], abs=1e-4)
        assert f"1 of {BENCHMARKS[name].images} images" in rows[name]["not_comparable"]
        assert rows[name]["data_sha256"] == results["data"]["sha256"]
    assert rows["ade20k"] | {"paper": 0} == {"benchmark": "ade20k", "paper": 0, "ours": None, "difference": None}
    assert rows["average"]["ours"] is None
    page = (out / "reproduction.md").read_text()
    assert re.search(r"\| voc21 \| 66.30 \| \d+\.\d\d \| -\d+\.\d\d\\\* \| 1 of 1449 \|", page)
    assert content["model"]["sha256"] in page
    assert "| voc21 | 336, 224, 112 | 0.1 | 40.0 |" in page
    assert "| voc20 | 336, 224, 112 | 0.0 | 40.0 |" in page
    assert "| anchor_threshold | 0.55 |" in page
    assert "ade20k was not measured" in page
    assert "* voc21, voc20: not comparable with the paper, the model is not named" in said.out


def test_no_benchmark_and_no_row_of_the_paper_are_errors(tmp_path, capsys):
    words = ["reproduce", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"none of the benchmarks {', '.join(PAPER_BENCHMARKS)} is in {tmp_path}" in said
    assert BENCHMARKS["voc21"].origin in said
    assert main([*words, "--preset", "448-448-224", "--method", "sclip"]) == 2
    assert "the paper's table has no figures of sclip with 448-448-224" in capsys.readouterr().err
    assert main(["reproduce", "--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert (
        said == f"error: {tmp_path / 'nowhere'} is not a folder; name the one that holds the benchmarks with --data.\n"
    )
    assert not (tmp_path / "out").exists()


def test_an_average_is_that_of_all_eight():
    """Of fewer it would look like the paper's, and be another."""
    paper = PAPER_MIOU["336-224-112", "gla"]

    def content(key, miou):
        return {
            "benchmark": key,
            "figures": {"miou": miou},
            "images": {"measured": BENCHMARKS[key].images},
            "protocol": {"setting": "336-224-112", "sha256": "p", **dict.fromkeys(OF_A_BENCHMARK)},
            "data": {"sha256": "d"},
            "not_comparable_with_paper": None,
            "method": "gla",
            "finished": "",
            "model": {},
            "settings": {},
            "machine": {},
        }

    contents = [content(key, own + 1) for key, own in zip(PAPER_BENCHMARKS, paper, strict=False)]
    *rows, average = reproduction_rows(reproduction(contents, {}, []))
    assert rows[0] == ("voc21", "66.30", "67.30", "+1.00", "1449 of 1449")
    assert average == ("average", "44.00", "44.99", "+0.99", "")
    assert reproduction_rows(reproduction(contents[:7], {}, []))[-1] == ("average", "44.00", "-", "-", "")
