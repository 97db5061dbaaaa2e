"""The page of a bench run shows every figure, aligned, and no name on it is markup."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from gla_jax.bench.report import markdown, sweep_picture
from gla_jax.pictures import charts
from gla_jax.pictures.drawing import FIRST_COLOURS

HEAD = {
    "command": "gla-jax bench --model 'a_[b]'",
    "date": "2026-11-27",
    "version": "0.1",
    "machine": {"jax": "0.10", "devices": 1, "device": "cpu", "processor": "A [x] *B*", "cores": 2, "memory": 2**33},
    "model": {"name": "tiny|world"},
    "image": {"size": [336, 448], "windows": 6, "tokens": 4704, "queries": 3},
    "settings": {"dtype": "bfloat16"},
    "ceiling": {"flops_per_second": {"float32": 1.2e11, "bfloat16": 9e10}},
    "agreement": {name: {"mean": 0.99912, "least": 0.9} for name in ("values", "features", "joint")}
    | {"labels": 0.987},
    "memory_limit": 2**33,
}


def row(windows, name="dense", **changes):
    fields = {"part": "attention", "total_flops": 1e12, "median": 0.5 * windows, "stopped": False}
    fields |= {"share_of_ceiling": 0.5, "compile_seconds": 1.2, "program": SimpleNamespace(total=2**28 * windows)}
    fields |= {"host_before": 2**29, "host_peak": 2**30, "device_peak": None, "tokens": 784 * windows}
    return SimpleNamespace(name=name, windows=windows, **fields | changes)


def report(head=HEAD):
    stopped = row(4, median=None, stopped=True, program=SimpleNamespace(total=2**35), share_of_ceiling=None)
    sweep = (row(1), row(2), stopped, *(row(windows, "blockwise") for windows in (1, 2, 4)))
    return SimpleNamespace(head=head, parts=(row(6, compile_seconds=None),), sweep=sweep)


def test_the_page_shows_every_figure_and_stays_aligned():
    text = markdown(report())
    assert text.startswith("# gla-jax bench\n\n    gla-jax bench --model 'a_[b]'\n\n2026-11-27, gla-jax 0.1, jax 0.10")
    assert "A \\[x\\] \\*B\\*, 2 cores, 8.0 GiB." in text
    assert "Model tiny\\|world, an image of 336 x 448 pixels in 6 windows, 4704 tokens, 3 queries, bfloat16" in text
    assert "matrix product, 120 GFLOP/s in float32, 90 GFLOP/s in bfloat16. Program" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 7
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == [
        "attention",
        "dense",
        "6",
        "3",
        "0.3333",
        "1",
        "333.3",
        "50%",
        "-",
        "1.50 GiB",
        "512.0 MiB",
        "-",
    ]
    assert cells[5][3:8] == ["stopped: memory", "-", "1", "-", "-"]


def test_towers_of_another_dtype_are_compared_in_words():
    assert (
        "\n\nCosine to float32 towers: CLIP's values 0.99912 (at least 0.90000), features 0.99912 (at least 0.90000), "
        "after the method 0.99912 (at least 0.90000); labels equal on 98.70% of pixels.\n\n|"
    ) in markdown(report())
    assert not re.search("Cosine|\n\n\n", markdown(report(HEAD | {"agreement": None})))


def test_the_picture_of_a_sweep_ends_a_form_where_it_was_stopped(monkeypatch):
    drawn, as_image = [], charts.as_image
    monkeypatch.setattr(charts, "as_image", lambda figure: drawn.append(figure) or as_image(figure))
    picture = sweep_picture(report())
    assert picture.width > 1000
    seconds, memory = drawn[0].axes
    assert seconds.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 1.0]]
    crosses = [line.get_xydata().tolist() for line in memory.lines if line.get_marker() == "x"]
    assert crosses == [[[4, 32.0]]]
    assert any(set(line.get_ydata()) == {8.0} for line in memory.lines)  # GiB, the limit
    for colour in FIRST_COLOURS[:2]:
        assert (np.asarray(picture) == colour).all(-1).any()


@pytest.mark.parametrize("windows", [1, 2])
def test_a_sweep_of_few_numbers_is_drawn(windows):
    rows = tuple(row(count) for count in range(1, windows + 1))
    assert sweep_picture(SimpleNamespace(head=HEAD, parts=(), sweep=rows)).width > 1000
