"""The frozen rows: what the published lists say, by hand, and a hash that moves with every part of a row."""

from dataclasses import replace

import pytest

from gla_jax.config import PRESETS
from gla_jax.errors import UserError
from gla_jax.eval.benchmarks import BENCHMARKS, FOLDER, PAPER_BENCHMARKS, class_names
from gla_jax.eval.protocols import PAPER_MIOU, paper_miou, protocol, protocols_table

NAMED = [key for key in BENCHMARKS if key != FOLDER]


@pytest.mark.parametrize(
    ("benchmark", "classes", "gla", "proxyclip", "clearclip"),
    [
        ("voc21", 21, 56, 46, 21),
        ("voc20", 20, 30, 20, 20),
        ("context60", 60, 60, 60, 60),
        ("context59", 59, 59, 59, 59),
        ("coco_object", 81, 113, 97, 81),
        ("coco_stuff164k", 171, 171, 171, 171),
        ("cityscapes", 19, 19, 19, 19),
        ("ade20k", 150, 150, 150, 150),
        ("camvid", 11, 11, 11, 11),
    ],
)
def test_numbers_of_classes_and_queries(benchmark, classes, gla, proxyclip, clearclip):
    for setting, queries in (("sclip", gla), ("proxyclip", proxyclip), ("clearclip", clearclip)):
        row = protocol(benchmark, setting)
        assert len(row.classes) == classes
        assert sum(map(len, row.queries)) == queries


def test_renamed_queries():
    voc = dict(zip(protocol("voc21").classes, protocol("voc21").queries, strict=True))
    assert voc["boat"] == ("ship",)
    assert voc["diningtable"] == ("table",)
    assert voc["background"][:2] == ("sky", "wall")
    assert voc["person"][1] == "person in shirt"
    cityscapes = protocol("cityscapes")
    assert cityscapes.queries[6] == ("trafficlight",)
    stuff = protocol("coco_stuff164k")
    assert stuff.queries[stuff.classes.index("dining table")] == ("diningtable",)
    thing = protocol("coco_object")
    assert thing.queries[thing.classes.index("dining table")] == ("dining table",)
    assert protocol("voc21", "clearclip").queries[0] == ("background",)


@pytest.mark.parametrize(
    ("benchmark", "setting", "sizes", "threshold", "scale"),
    [
        ("voc21", "sclip", (336, 224, 112), 0.1, 40),
        ("cityscapes", "sclip", (560, 224, 112), 0, 40),
        ("voc21", "proxyclip", (448, 336, 112), 0.2, 40),
        ("context60", "proxyclip", (448, 336, 112), 0.15, 40),
        ("cityscapes", "proxyclip", (448, 224, 112), 0, 40),
        ("coco_object", "clearclip", (448, 448, 224), 0.4, 50),
        ("cityscapes", "clearclip", (448, 224, 224), 0, 50),
        ("ade20k", "clip-dinoiser", (448, 448, 224), 0, 40),
    ],
)
def test_settings_by_hand(benchmark, setting, sizes, threshold, scale):
    row = protocol(benchmark, setting)
    assert (row.windows.short_side, row.windows.crop, row.windows.stride) == sizes
    assert (row.threshold, row.logit_scale) == (threshold, scale)


@pytest.mark.parametrize("benchmark", NAMED)
def test_only_a_background_takes_pixels_below_a_threshold(benchmark):
    for setting in PRESETS:
        assert (protocol(benchmark, setting).threshold > 0) == BENCHMARKS[benchmark].background
    if BENCHMARKS[benchmark].background:
        assert protocol(benchmark).classes[0] == "background"


@pytest.mark.parametrize("benchmark", NAMED)
def test_class_names_are_complete(benchmark):
    names = class_names(benchmark)
    assert len(set(names.classes)) == len(names.classes)
    assert names.palette is None or len(names.palette) == len(names.classes)
    for queries in names.queries.values():
        assert len(queries) == len(names.classes)
        assert all(query == query.strip() and query for synonyms in queries for query in synonyms)
    for table in names.tables.values():
        assert set(table.values()) - {255} <= set(range(len(names.classes)))


def test_every_part_of_a_row_moves_its_hash():
    row = protocol("voc21")
    others = [
        replace(row, threshold=0.2),
        replace(row, logit_scale=50.0),
        replace(row, windows=replace(row.windows, stride=111)),
        replace(row, queries=(("sky",), *row.queries[1:])),
        replace(row, classes=("void", *row.classes[1:])),
        protocol("voc21", "proxyclip"),
    ]
    assert len({row.sha256, *(other.sha256 for other in others)}) == 7
    assert row.sha256 == protocol("voc21").sha256


def test_the_method_meets_the_protocol():
    config = protocol("voc21").config("proxyclip", "bfloat16")
    assert (config.method.host, config.method.global_buffer) == ("proxyclip", False)
    assert (config.threshold, config.windows.short_side, config.dtype) == (0.1, 336, "bfloat16")


def test_figures_are_the_paper_s():
    assert paper_miou("voc21", "sclip", "gla") == 66.3
    assert paper_miou("ade20k", "sclip", "gla") == 20.0
    assert paper_miou("camvid", "sclip", "gla") is None
    assert paper_miou("voc21", "sclip", "maskclip") is None
    assert all(len(row) == len(PAPER_BENCHMARKS) for row in PAPER_MIOU.values())


def test_the_list_shows_every_benchmark_and_says_whose_figures(capsys):
    from rich.console import Console

    Console(width=100).print(protocols_table())
    text = capsys.readouterr().out
    assert all(key in text for key in BENCHMARKS)
    assert "66.3" in text
    assert "as the PAPER reports it" in text


def test_unknown_names_get_a_sentence():
    with pytest.raises(UserError, match="'voc' is not a benchmark; did you mean voc2"):
        protocol("voc")
    with pytest.raises(UserError, match="'x' is not a preset; there are sclip"):
        protocol("voc21", "x")
    with pytest.raises(UserError, match="'half' is not a dtype"):
        protocol("voc21").config("gla", "half")
    with pytest.raises(UserError, match="'x' is not a method; there are gla"):
        protocol("voc21").config("x")
