"""A run must end with the figures of one that was never interrupted, whatever happens to it on the way."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.metrics.boundary import boundary_counts
from gla_jax.eval.predict import Ready, Stopwatch, predictor, without_small_classes
from gla_jax.eval.protocols import protocol
from gla_jax.eval.records import RecordFile, read_records
from gla_jax.eval.report.page import report_markdown
from gla_jax.eval.results import read_results, results, write_results
from gla_jax.eval.runner import Run, measure, open_benchmark, prediction_path
from gla_jax.support.errors import DataError, UserError
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter

IMAGES = tuple(f"image-{index:02d}" for index in range(12))


def make_run(data, out, seconds=0.0, **changes):
    row = protocol("voc21")
    row = replace(row, windows=replace(row.windows, short_side=28, crop=14, stride=7))
    segmenter = ColourSegmenter(row.config("proxyclip"), seconds)
    return replace(Run(open_dataset("voc21", data), row, "proxyclip", segmenter, out), **changes)


def same(first, second):
    assert [record.image_id for record in first.records] == [record.image_id for record in second.records]
    for ours, theirs in zip(first.records, second.records, strict=True):
        assert replace(ours, seconds={}) == replace(theirs, seconds={})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.voc(tmp_path_factory.mktemp("data") / "VOC2012", [0, 1, 5, 15, 255], IMAGES)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return measure(make_run(data, tmp_path_factory.mktemp("whole") / "out"))


def test_figures_of_a_run_are_those_of_its_images(whole):
    counted = whole.areas()
    assert counted.label.sum() == sum(row[3] for record in whole.records for row in record.areas)
    assert counted.label[[0, 1, 5, 15]].min() > 0
    assert counted.label.sum() > 0
    assert len(whole.records) == len(IMAGES)
    scores = counted.scores()
    content = results(whole)
    assert content["figures"]["miou"] == pytest.approx(scores.miou)
    assert content["images"] == {"measured": 12, "in_data": 12, "labelled": True}
    assert content["protocol"]["sha256"] == whole.run.row.sha256
    assert set(content["speed"]["seconds_per_image"]) >= {"read", "features", "labels", "metrics", "record"}


def test_text_features_are_made_once(data, tmp_path):
    run = make_run(data, tmp_path / "out")
    measure(run)
    assert run.segmenter.banks == 1


def test_a_finished_run_is_not_done_again(data, tmp_path, whole):
    run = make_run(data, tmp_path / "out")
    measure(run)
    again = make_run(data, tmp_path / "out")
    same(measure(again), whole)
    assert again.segmenter.banks == 0


@pytest.mark.parametrize("cut", [1, 7, 40, 200])
def test_a_cut_last_record_is_done_again(data, tmp_path, whole, cut):
    run = make_run(data, tmp_path / "out")
    measure(run)
    path = run.out / "records/process-0000.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:-cut])
    assert len(read_records(run.out)) == 11
    same(measure(make_run(data, run.out)), whole)
    assert path.read_bytes().count(b"\n") == 12


def test_a_damaged_record_is_done_again(data, tmp_path, whole):
    run = make_run(data, tmp_path / "out")
    measure(run)
    path = run.out / "records/process-0000.jsonl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert len(read_records(run.out)) == 11
    same(measure(make_run(data, run.out)), whole)


def test_kills_at_random_moments_change_nothing(data, tmp_path, whole):
    out, code = tmp_path / "out", "import sys; from tests.eval.test_runner import run_slowly; run_slowly(*sys.argv[1:])"
    generator = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(data), str(out)], cwd=os.getcwd())
        before = len(read_records(out))
        deadline = time.monotonic() + 60
        while process.poll() is None and len(read_records(out)) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 3 <= len(read_records(out)) < 12
    same(measure(make_run(data, out)), whole)


def run_slowly(data, out):
    from pathlib import Path

    measure(make_run(Path(data), Path(out), seconds=0.05))


def test_other_settings_are_refused(data, tmp_path):
    out = tmp_path / "out"
    run = make_run(data, out, limit=2)
    measure(run)
    with pytest.raises(UserError, match=r"other settings \(method was \"proxyclip\" and is \"gla\"\)"):
        measure(replace(run, method="gla"))
    with pytest.raises(UserError, match="protocol_sha256"):
        measure(replace(run, row=replace(run.row, threshold=0.3)))
    other = open_dataset("voc21", trees.voc(tmp_path / "other", [0], ("x",)))
    with pytest.raises(UserError, match="data_sha256"):
        measure(replace(run, dataset=other))
    assert len(measure(replace(run, limit=4)).records) == 4


def test_a_place_that_takes_no_results_gets_a_sentence(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file/out \(Not a directory\)"):
        measure(make_run(data, tmp_path / "file/out", limit=1))
    run, write, taken = make_run(data, tmp_path / "out", limit=3), os.write, []

    def nearly_full(file, line):
        if len(taken) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken.append(write(file, line[:100]))
        return taken[-1]

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(UserError, match=r"No space left on device.*make room there"):
        measure(run)
    monkeypatch.undo()
    assert read_records(run.out) == {}
    assert len(measure(run).records) == 3


def test_a_record_that_is_taken_in_parts_is_whole(data, tmp_path, whole, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:50]))
    same(measure(make_run(data, tmp_path / "out", limit=2)), replace(whole, records=whole.records[:2]))


def test_boundaries_are_also_counted_at_the_edges_that_all_runs_share(data, whole):
    """Runs with other windows can then be compared: the edges of GLA's windows on its own working size."""
    record = whole.records[0]
    example, windows = whole.run.dataset.read(0), protocol("voc21").windows
    (prediction,) = predictor(whole.run.segmenter, whole.run.row)(
        [Ready(example, whole.run.segmenter.prepare(example.image))], Stopwatch()
    )
    expected = boundary_counts(prediction.labels, example.label, (336, 448), windows)
    assert record.common_errors == tuple(expected.errors.tolist())
    assert record.common_pairs == tuple(expected.pairs.tolist())
    assert record.pairs != record.common_pairs


def test_images_without_labels_are_predicted_and_not_measured(tmp_path):
    root = trees.folder(tmp_path / "own", 3, [0, 2])
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match="labels"):
        open_benchmark("folder", root, "sclip")
    dataset, row = open_benchmark("folder", root, "sclip", unlabelled=True)
    run = Run(dataset, row, "proxyclip", ColourSegmenter(row.config("proxyclip")), tmp_path / "out")
    content = results(measure(replace(run, save_predictions=True)))
    assert {path.name for path in (run.out / "predictions").iterdir()} == {"one.png", "two.png"}
    assert set(content["figures"].values()) == {None}
    assert content["images"] == {"measured": 2, "in_data": 2, "labelled": False}
    assert "nothing is measured" in report_markdown(content)


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    run = make_run(data, tmp_path / "out", limit=1)
    measure(run)
    held = RecordFile(run.out)
    try:
        with pytest.raises(UserError, match="another run is writing"):
            measure(run)
    finally:
        held.close()


def test_saved_predictions_hold_the_benchmark_s_own_values(data, tmp_path):
    from PIL import Image

    row = replace(protocol("voc20"), windows=replace(protocol("voc20").windows, short_side=28, crop=14, stride=7))
    run = make_run(data, tmp_path / "out", limit=2, save_predictions=True, row=row)
    run = replace(run, dataset=open_dataset("voc20", data))
    outcome = measure(run)
    with Image.open(prediction_path(run.out, IMAGES[0])) as picture:
        saved = np.asarray(picture)
    assert saved.shape == trees.SIZE
    predicted = {index + 1 for index, _, pixels, _ in outcome.records[0].areas if pixels}
    assert predicted <= set(np.unique(saved)) <= set(range(1, 21))


def test_results_are_read_as_written(whole, tmp_path):
    content = results(whole)
    write_results(tmp_path, content)
    assert read_results(tmp_path) == content
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert lines[0] == "class,iou,accuracy,intersection,prediction,label"
    assert len(lines) == 22
    with pytest.raises(UserError, match=r"holds no results\.json"):
        read_results(tmp_path / "nowhere")


def test_images_that_go_together_have_the_counts_of_images_alone(whole, data, tmp_path):
    same(measure(make_run(data, tmp_path / "together", batch=4)), whole)


def test_small_classes_are_taken_away_as_sclip_does():
    """By hand: 20 pixels, class 0 on 8, class 1 on 10, class 2 on 2 of the 12 others, which is more than a tenth."""
    scores = np.full((4, 1, 20), 0.1, np.float32)
    for index, pixels in enumerate((slice(0, 8), slice(8, 18), slice(18, 20))):
        scores[index, 0, pixels] = 0.6
    scores[1, 0, 18:] = 0.2
    assert without_small_classes(scores, 0.1, 0.0)[0].tolist() == [0] * 8 + [1] * 10 + [2] * 2
    assert without_small_classes(scores, 2 / 12, 0.0)[0].tolist() == [0] * 8 + [1] * 12
    assert without_small_classes(scores, 2 / 12, 0.3)[0].tolist() == [0] * 8 + [1] * 10 + [0] * 2


def test_sclip_s_own_row_runs(data, tmp_path):
    row = protocol("voc21", method="sclip")
    row = replace(row, windows=replace(row.windows, short_side=28, crop=14, stride=7), threshold=0.0)
    with_area, without = (
        measure(make_run(data, tmp_path / name, limit=2, row=replace(row, area_threshold=area)))
        for name, area in (("with", 0.1), ("without", 0.0))
    )
    predicted = [[index for index, _, pixels, _ in one.records[0].areas if pixels] for one in (with_area, without)]
    assert set(predicted[0]) < set(predicted[1])
