"""A run must end with the figures of one that was never interrupted, whatever happens to it on the way."""

import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.metrics.boundary import boundary_counts
from gla_jax.eval.protocols import protocol
from gla_jax.eval.records import read_records, record_file
from gla_jax.eval.report.page import report_markdown
from gla_jax.eval.results import read_results, results, write_results
from gla_jax.eval.runner import Run, labels_of, measure, open_benchmark, prediction_path
from gla_jax.outputs.files import claim_folder
from gla_jax.support.errors import DataError, UserError
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter

IMAGES = tuple(f"image-{index:02d}" for index in range(12))


def in_small_windows(row, **numbers):
    windows = replace(row.windows, short_side=28, crop=14, stride=7)
    return replace(row, settings=replace(row.settings, windows=windows, **numbers))


def make_run(data, out, seconds=0.0, row=None, **changes):
    row = row or in_small_windows(protocol("voc21"))
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


def test_text_features_are_not_made_for_every_image(data, tmp_path):
    run = make_run(data, tmp_path / "out")
    measure(run)
    assert run.segmenter.texts == 2  # before the folder is claimed and for the loop: a Segmenter keeps them


def test_a_finished_run_is_not_done_again(data, tmp_path, whole):
    run = make_run(data, tmp_path / "out")
    measure(run)
    again = make_run(data, tmp_path / "out")
    same(measure(again), whole)
    assert again.segmenter.texts == 0


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("areas", [[21, 0, 1, 1]]),  # of 21 classes
        ("areas", [[0, 1, 1]]),
        ("errors", [0, 0]),
        ("size", [9, -12]),
        ("pairs", [10**400, 0, 0, 0]),
        ("seconds", {"read": "long"}),
        ("image_id", None),
    ],
)
def test_a_record_that_is_no_record_is_done_again(data, tmp_path, field, value):
    """Whoever wrote it computed its checksum."""
    run = make_run(data, tmp_path / "out", limit=1)
    (record,) = measure(run).records
    content = json.dumps(asdict(record) | {field: value})
    path = run.out / "records/process-0000.jsonl"
    path.write_text(f"{content}\t{zlib.crc32(content.encode()):08x}\n")
    (again,) = measure(run).records
    assert replace(again, seconds={}) == replace(record, seconds={})


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
    measure(make_run(Path(data), Path(out), seconds=0.05))


def test_other_settings_are_refused(data, tmp_path):
    out = tmp_path / "out"
    run = make_run(data, out, limit=2)
    measure(run)
    with pytest.raises(UserError, match=r"other settings \(method was \"proxyclip\" and is \"gla\"\)"):
        measure(replace(run, method="gla"))
    assert replace(run, method="gla-clip").settings() == replace(run, method="gla").settings()  # another name of it
    with pytest.raises(UserError, match="protocol_sha256"):
        measure(replace(run, row=in_small_windows(run.row, threshold=0.3)))
    other = open_dataset("voc21", trees.voc(tmp_path / "other", [0], ("x",)))
    with pytest.raises(UserError, match="data_sha256"):
        measure(replace(run, dataset=other))
    assert len(measure(replace(run, limit=4)).records) == 4


def test_a_place_that_takes_no_results_gets_a_sentence(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written to .*file/out \(Not a directory\)"):
        measure(make_run(data, tmp_path / "file/out", limit=1))
    run = make_run(data, tmp_path / "out", limit=3)

    class NearlyFull(io.FileIO):
        taken = 0

        def write(self, line):
            if NearlyFull.taken == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            NearlyFull.taken += 1
            return super().write(line[:100])

    unbuffered_files_are(NearlyFull, monkeypatch)
    with pytest.raises(UserError, match=r"No space left on device.*make room there"):
        measure(run)
    monkeypatch.undo()
    assert read_records(run.out) == {}
    assert len(measure(run).records) == 3


def unbuffered_files_are(kind, monkeypatch):
    """Records are written without a buffer."""
    path_open = Path.open

    def opened(path, mode="r", buffering=-1, **options):
        return path_open(path, mode, buffering, **options) if buffering else kind(path, mode)

    monkeypatch.setattr(Path, "open", opened)


def test_a_record_that_is_taken_in_parts_is_whole(data, tmp_path, whole, monkeypatch):
    class InParts(io.FileIO):
        def write(self, line):
            return super().write(line[:50])

    unbuffered_files_are(InParts, monkeypatch)
    same(measure(make_run(data, tmp_path / "out", limit=2)), replace(whole, records=whole.records[:2]))


def test_boundaries_are_also_counted_at_the_edges_that_all_runs_share(data, whole):
    """Runs with other windows can then be compared: the edges of GLA's windows on its own working size."""
    record = whole.records[0]
    example, labels, grid = labels_of(whole.run, 0)
    assert (grid.height, grid.width) == record.resized
    expected = boundary_counts(labels, example.label, (336, 448), protocol("voc21").windows)
    assert record.common_errors == tuple(expected.errors.tolist())
    assert record.common_pairs == tuple(expected.pairs.tolist())
    assert record.pairs != record.common_pairs


def test_images_without_labels_are_predicted_and_not_measured(tmp_path):
    root = trees.folder(tmp_path / "own", 3, [0, 2])
    shutil.rmtree(root / "labels")
    with pytest.raises(DataError, match="labels"):
        open_benchmark("folder", root)
    dataset, row = open_benchmark("folder", root, unlabelled=True)
    run = Run(dataset, row, "proxyclip", ColourSegmenter(row.config("proxyclip")), tmp_path / "out")
    content = results(measure(replace(run, save_predictions=True)))
    assert {path.name for path in (run.out / "predictions").iterdir()} == {"one.png", "two.png"}
    assert set(content["figures"].values()) == {None}
    assert content["images"] == {"measured": 2, "in_data": 2, "labelled": False}
    assert "nothing is measured" in report_markdown(content)


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    run = make_run(data, tmp_path / "out", limit=1)
    measure(run)
    with record_file(run.out), pytest.raises(UserError, match="another run is writing"):
        measure(run)


def claim_in_turn(data, folder, index, count, rounds):
    """One of some processes that all start a run in one new folder after the other; prints how each ended."""
    run = make_run(Path(data), Path(folder) / f"ready-{index}", limit=1)
    measure(run)
    while len(ready := list(Path(folder).glob("ready-*/records/*.jsonl"))) < int(count):
        time.sleep(0.01)
    start = max(path.stat().st_ctime for path in ready) + 1
    endings = []
    for number in range(int(rounds)):
        run = replace(run, out=Path(folder) / f"out-{number}", method=f"method {index}")
        while time.time() < start + 0.25 * number:
            pass
        try:
            measure(run)
            endings.append("finished")
        except UserError as error:
            endings.append(str(error))
    print(json.dumps(endings))


def test_of_runs_that_claim_a_new_folder_in_one_instant_one_goes_on(data, tmp_path):
    """Never are records of one run beside the settings of another."""
    count, rounds = 3, 16
    code = "import sys; from tests.eval.test_runner import claim_in_turn; claim_in_turn(*sys.argv[1:])"
    command = [sys.executable, "-c", code, str(data), str(tmp_path)]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, *map(str, (index, count, rounds))], **pipes) for index in range(count)]
    outputs = [process.communicate(timeout=120)[0] for process in started]
    endings = zip(*(json.loads(output.splitlines()[-1]) for output in outputs), strict=True)
    for number, ending in enumerate(endings):
        (winner,) = (index for index in range(count) if ending[index] == "finished")
        out = tmp_path / f"out-{number}"
        assert json.loads((out / "run.json").read_text())["method"] == f"method {winner}"
        assert len((out / "records/process-0000.jsonl").read_bytes().splitlines()) == 1
        refused = [text for text in ending if text != "finished"]
        assert all("another run is writing" in text or "other settings" in text for text in refused)


def test_threads_that_claim_a_new_folder_in_one_instant(data, tmp_path):
    def claim(out, index, together):
        together.wait()
        try:
            with record_file(out):
                claim_folder(out, {"method": index}, has_records=False)
                return index
        except UserError:
            return None

    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            out, together = tmp_path / f"{number}", threading.Barrier(8)
            claims = list(pool.map(claim, [out] * 8, range(8), [together] * 8))
            (winner,) = {claim for claim in claims if claim is not None}
            assert json.loads((out / "run.json").read_text()) == {"method": winner}


def test_results_of_more_images_are_kept(data, tmp_path):
    """A smaller --limit would put a report of fewer images in their place."""
    run = make_run(data, tmp_path / "out", limit=3)
    write_results(run.out, results(measure(run)))
    before = (run.out / "results.json").read_bytes()
    with pytest.raises(UserError, match="holds results of 3 images, of which this run measures 2; leave out --limit"):
        measure(replace(run, limit=2))
    assert (run.out / "results.json").read_bytes() == before
    assert len(measure(run).records) == 3
    assert len(measure(replace(run, limit=4)).records) == 4
    # Without results nothing is lost: the first images of a run that was stopped can be looked at.
    (run.out / "results.json").unlink()
    assert len(measure(replace(run, limit=2)).records) == 2


def test_a_run_goes_on_on_another_device(data, tmp_path):
    """Numbers of the platform change results by rounding alone; the ones used stand in the results."""
    run = make_run(data, tmp_path / "out", limit=1)
    measure(run)
    config = run.segmenter.config
    other = replace(config, tower_batch=16, method=replace(config.method, block_size=4096, skip_blocks=True))
    run = replace(run, segmenter=ColourSegmenter(other))
    settings = results(measure(run))["settings"]
    assert (settings["tower_batch"], settings["method"]["block_size"]) == (16, 4096)


def test_classes_without_a_labelled_pixel_are_named(tmp_path):
    """Masks of 0 and 255 where 0 and 1 are meant: 255 is ignored, so the second class is labelled nowhere."""
    dataset, row = open_benchmark("folder", trees.folder(tmp_path / "mine", 2, [0, 255, 255]))
    run = Run(dataset, row, "proxyclip", ColourSegmenter(row.config("proxyclip")), tmp_path / "out")
    assert results(measure(run))["warnings"] == [
        "no pixel is labelled thing 1 (1 of 2 classes); 66.7 % of all pixels are ignored, as those of value 255"
    ]
    dataset, row = open_benchmark("folder", trees.folder(tmp_path / "right", 2, [0, 1, 255]))
    assert results(measure(replace(run, dataset=dataset, out=tmp_path / "other")))["warnings"] == []


def test_the_evaluation_imports_where_unix_modules_are_missing():
    code = (
        "import sys, asyncio, concurrent.futures, jax, flax, orbax.checkpoint, rich, PIL.Image\n"
        "sys.modules |= {'fcntl': None, 'resource': None}\n"
        "import gla_jax.eval.results, gla_jax.eval.runner\n"
        "print(gla_jax.eval.results.resource)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "None\n"


def test_saved_predictions_hold_the_benchmark_s_own_values(data, tmp_path):
    from PIL import Image

    row = in_small_windows(protocol("voc20"))
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


def test_sclip_s_own_row_runs(data, tmp_path):
    row = protocol("voc21", method="sclip")
    row = in_small_windows(row, threshold=0.0)
    with_area, without = (
        measure(make_run(data, tmp_path / name, limit=2, row=replace(row, area_threshold=area)))
        for name, area in (("with", 0.1), ("without", 0.0))
    )
    predicted = [[index for index, _, pixels, _ in one.records[0].areas if pixels] for one in (with_area, without)]
    assert set(predicted[0]) < set(predicted[1])
