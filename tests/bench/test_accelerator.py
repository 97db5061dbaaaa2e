"""gla-jax bench --accelerator: the series that is run where a GPU or TPU is at hand, here with tiny models."""

import json

import jax
import pytest

from gla_jax.bench import accelerator
from gla_jax.bench.accelerator import LEFT_OUT, Series
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
TINY = {
    "sizes": ((32, 48),),
    "large": ((48, 48),),
    "precisions": ("high", "highest"),
    "batches": (1, 2),
    "config": CONFIG,
    "prompts": 3,
    "repeats": 1,
    "ceiling_sizes": (64,),
    "stream_seconds": 0.0,
}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    def run(**changes):
        folder = str(random_pair(tmp_path / "model"))
        monkeypatch.setattr(accelerator, "SERIES", Series((folder,), **TINY | changes))
        assert main(["bench", "--accelerator", "--out", str(tmp_path / "out")]) == 0
        return json.loads((tmp_path / "out/accelerator.json").read_text())

    return run


def test_a_series_measures_every_case(measured, tmp_path, capsys):
    found = measured()
    cases = [(row["size"], row["precision"], row["batch"], row["large"]) for row in found["images"]]
    assert cases[:3] == [([32, 48], "high", 1, False), ([32, 48], "high", 2, False), ([48, 48], "high", 1, True)]
    assert {case[2] for case in cases[3:]} <= {1, 2}
    assert {case[1] for case in cases[3:]} == {"highest"}
    assert all(row["images_per_second"] > 0 and row["share_of_ceiling"] > 0 for row in found["images"])
    assert found["images"][0]["windows"] == 2
    parts = [(row["part"], row["name"]) for row in found["parts"]]
    assert parts == [
        ("towers", "CLIP"),
        ("towers", "features"),
        ("towers", "projection"),
        ("attention", "blockwise"),
        ("labels", "stitching"),
    ]
    assert all(row["seconds"] > 0 for row in found["parts"])
    assert found["machine"]["device"] == "cpu"
    page = (tmp_path / "out/accelerator.md").read_text()
    assert page in capsys.readouterr().out
    assert page.count("| 32x48 ") == len(cases) - 1 + len(parts)


def test_a_case_that_fails_leaves_the_others(measured, monkeypatch):
    stream = accelerator._stream_seconds

    def fail_together(subject, batch, images):
        if batch == 2:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")
        return stream(subject, batch, images)

    monkeypatch.setattr(accelerator, "_stream_seconds", fail_together)
    found = measured()
    errors = {row["batch"]: row.get("error") for row in found["images"]}
    assert errors == {1: None, 2: "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert len(found["images"]) == 4  # batches of 1 are the best here


def test_without_time_cases_are_left_out_by_name(measured, tmp_path):
    found = measured(minutes=0.0)
    assert {row["error"] for row in found["images"] + found["parts"]} == {LEFT_OUT}
    assert LEFT_OUT in (tmp_path / "out/accelerator.md").read_text()


def test_what_the_series_fixes_is_refused(tmp_path, capsys):
    assert main(["bench", "--accelerator", "--size", "48x64", "--out", str(tmp_path / "out")]) == 2
    assert "--size is fixed by --accelerator" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="this machine has an accelerator")
def test_a_processor_is_refused_at_once(tmp_path, capsys, monkeypatch):
    """The series would hold a laptop for over half an hour, and its figures are no accelerator's."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert main(["bench", "--accelerator", "--out", str(tmp_path / "out")]) == 2
    assert "JAX sees no GPU or TPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
