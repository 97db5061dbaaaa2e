"""Shards that merge must give what one run gives, and shards that do not belong together must be refused by name."""

import json
import shutil
from dataclasses import replace

import pytest

from gla_jax.distributed.shards import Shard, read_shard
from gla_jax.eval.datasets import folders
from gla_jax.eval.datasets.dataset import open_dataset
from gla_jax.eval.job import read_job
from gla_jax.eval.merge import find_shards, finish_shard, is_finished, merge
from gla_jax.eval.records import read_records
from gla_jax.eval.report.page import write_report
from gla_jax.eval.results import results, write_results
from gla_jax.eval.runner import measure
from gla_jax.eval.tally import columns_of_lines, columns_of_records, line_id
from gla_jax.support.errors import UserError
from tests.eval import trees
from tests.eval.test_runner import IMAGES, in_small_windows, make_run, same


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.voc(tmp_path_factory.mktemp("data") / "VOC2012", [0, 1, 5, 15, 255], IMAGES)


def measured(data, out, index, count, **changes):
    run = make_run(data, out, shard=Shard(index, count), **changes)
    finish_shard(measure(run), None)
    return run.folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return measure(make_run(data, tmp_path_factory.mktemp("whole") / "out"))


@pytest.fixture(scope="module")
def thirds(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("thirds")
    for index in range(3):
        measured(data, out, index, 3)
    return out


def merged(*outs):
    (shards,) = find_shards(outs).values()
    return merge(shards)[0]


def without_times(content):
    return {key: value for key, value in content.items() if key not in ("finished", "speed")}


def test_shards_give_the_results_and_the_pages_of_one_run(thirds, whole, tmp_path):
    one, many = results(whole), merged(thirds)
    assert json.dumps(without_times(many)) == json.dumps(without_times(one))
    for name, content in (("one", one), ("many", many)):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name, content)
        write_report(tmp_path / name, content | {"finished": "", "speed": one["speed"]}, [])
    for name in ("per_class.csv", "report.md", "report.html"):
        assert (tmp_path / "many" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_records_of_before_merge_without_the_share_of_one_key(thirds, whole, tmp_path):
    """A run of an older version is resumed and merged with the same figures, and a warning names what is missing."""
    out = shutil.copytree(thirds, tmp_path / "out")
    path = next((out / "shards").glob("00001-*/records/*.jsonl"))
    ids = [line_id(line) for line in path.read_text().splitlines(keepends=True)]
    records = read_records(path.parents[1])
    path.write_text("".join(replace(records[image_id], one_key=None).line() for image_id in ids))
    content, expected = merged(out), results(whole)
    assert expected["one_key"]["images"] == 12
    assert content["one_key"] is None
    assert any(warning.startswith("4 of 12 images were measured before tokens") for warning in content["warnings"])
    unlike = {key for key in content if without_times(content).get(key) != without_times(expected).get(key)}
    assert unlike == {"one_key", "warnings"}
    both = shutil.copytree(out / Shard(1, 3).place, tmp_path / "again")  # measured twice, before and now
    assert merged(thirds, both)["figures"] == expected["figures"]


def test_shards_of_any_folders_in_any_order(data, thirds, whole, tmp_path):
    moved = [shutil.copytree(folder, tmp_path / folder.name) for folder in sorted((thirds / "shards").iterdir())]
    assert without_times(merged(*moved[::-1])) == without_times(results(whole))


def test_a_shard_that_was_measured_twice_counts_once(data, thirds, whole, tmp_path):
    """It was lost, run elsewhere, and came back."""
    measured(data, tmp_path, 1, 3)
    assert without_times(merged(thirds, tmp_path)) == without_times(results(whole))


def test_a_shard_that_goes_on_or_runs_again_is_the_same(data, tmp_path, thirds):
    folder = measured(data, tmp_path, 0, 3)
    path = folder / "records/process-0000.jsonl"
    path.write_bytes(path.read_bytes()[:-100])
    (folder / "shard.json").unlink()
    run = make_run(data, tmp_path, shard=Shard(0, 3))
    assert not is_finished(run)
    finish_shard(measure(run), None)
    assert is_finished(run)
    before = json.loads((thirds / run.shard.place / "shard.json").read_text())
    assert without_machine(json.loads((folder / "shard.json").read_text())) == without_machine(before)
    assert len(read_records(folder)) == 4
    assert not is_finished(replace(run, limit=11))


def without_machine(content):
    return {key: value for key, value in content.items() if key != "machine"}


def test_shards_of_other_numbers_fit_together_where_their_images_do(data, whole, tmp_path):
    for index, count in ((0, 2), (2, 4), (3, 4)):
        measured(data, tmp_path, index, count)
    assert without_times(merged(tmp_path)) == without_times(results(whole))


def test_more_shards_than_images(data, tmp_path):
    for index in range(5):
        measured(data, tmp_path, index, 5, limit=3)
    assert merged(tmp_path)["images"]["measured"] == 3


def test_gaps_are_named(data, thirds, tmp_path):
    out = shutil.copytree(thirds, tmp_path / "out")
    (out / Shard(1, 3).place / "shard.json").unlink()
    with pytest.raises(UserError, match=r"images 4 to 7 of 12 .*00001-of-00003 was begun and not finished"):
        merged(out)
    shutil.rmtree(out / Shard(1, 3).place)
    shutil.rmtree(out / Shard(2, 3).place)
    with pytest.raises(UserError, match="images 4 to 11 of 12"):
        merged(out)
    with pytest.raises(UserError, match="holds no finished shard"):
        merged(tmp_path / "nowhere")


def test_an_image_in_two_shards_is_named(data, thirds, tmp_path):
    measured(data, tmp_path, 1, 2)
    with pytest.raises(UserError, match=r"the image image-06 is in .*00001-of-00003 and in .*00001-of-00002"):
        merged(thirds, tmp_path)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"method": "gla"}, 'settings.method was "proxyclip" and is "gla"'),
        ({"limit": 9}, "images.of_run was 12 and is 9"),
        ({"templates": ("{}",)}, "settings.templates was null"),
    ],
)
def test_shards_of_other_settings_are_refused(data, thirds, tmp_path, changes, difference):
    measured(data, tmp_path, 1, 3, **changes)
    with pytest.raises(UserError, match=r"are shards of different runs") as refused:
        merged(thirds, tmp_path)
    assert difference in str(refused.value)


def test_shards_of_another_protocol_and_of_other_data_are_refused(data, thirds, tmp_path):
    measured(data, tmp_path / "row", 1, 3, row=in_small_windows(make_run(data, tmp_path).row, threshold=0.3))
    with pytest.raises(UserError, match=r"settings\.protocol_sha256"):
        merged(thirds, tmp_path / "row")
    other = trees.voc(tmp_path / "other", [0, 1, 5, 255], IMAGES)  # the same images, other labels
    run = replace(make_run(data, tmp_path / "data", shard=Shard(1, 3)), dataset=open_dataset("voc21", other))
    finish_shard(measure(run), None)
    with pytest.raises(UserError, match=r"settings\.data_sha256"):
        merged(thirds, tmp_path / "data")


def rewritten(path, change):
    record = next(iter(read_records(path.parents[1]).values()))
    path.write_text(change(record).line() + path.read_text().split("\n", 1)[1])


def test_records_that_differ_or_cannot_be_are_refused(data, thirds, tmp_path):
    out = shutil.copytree(thirds, tmp_path / "out")
    path = out / Shard(1, 3).place / "records/process-0000.jsonl"
    whole_text = path.read_text()
    rewritten(path, lambda record: replace(record, errors=(7, 7, 7, 7)))
    with pytest.raises(UserError, match=r"image image-04 has two records that differ"):
        merged(thirds, out)
    rewritten(path, lambda record: replace(record, areas=((0, 10**6, 10**6, 10**6),)))
    with pytest.raises(UserError, match=r"record of image-04 that no image can have"):
        merged(out)
    path.write_text(whole_text[:-10])
    with pytest.raises(UserError, match="lacks the records of 1 of its images, the first is image-07"):
        merged(out)
    assert merged(thirds, out)["images"]["measured"] == 12  # the other folder has the record


def test_a_damaged_shard_file_gets_a_sentence(thirds, tmp_path):
    out = shutil.copytree(thirds, tmp_path / "out")
    path = out / Shard(0, 3).place / "shard.json"
    content = json.loads(path.read_text())
    for changed, reason in (
        ({}, "is not of a shard"),
        (content | {"first": -1}, r"is damaged \(first is -1\)"),
        (content | {"image_ids": ["x"] * 4}, "name other images than their run"),
    ):
        path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=reason):
            merged(out)
    with pytest.raises(UserError, match="does not say how its run was started"):
        read_job({"benchmark": "voc21"})


def test_columns_of_lines_are_those_of_records(whole):
    records = whole.records
    odd = replace(records[0], image_id='caf\u00e9 "1"')  # spelled with escapes, which takes the slow way
    of_before = tuple(replace(record, one_key=None) for record in records[:2])  # when nothing was counted
    for chosen in (records, (*records, odd), (*of_before, *records[2:])):
        lines = [record.line() for record in chosen]
        assert [line_id(line) for line in lines] == [record.image_id for record in chosen]
        for ours, expected in zip(columns_of_lines(lines), columns_of_records(chosen), strict=True):
            assert list(map(repr, ours)) == list(map(repr, expected))
    assert line_id(lines[0].replace("9", "8", 1)) is None


def test_each_image_s_miou_is_that_of_its_own_areas(whole):
    alone = [record.counts(21).areas.scores().miou for record in whole.records]
    assert whole.tally.miou.tolist() == alone


@pytest.mark.parametrize("text", ["", "3/3", "1", "-1/3", "0/0", "1/3/5", "a/b", "0/100000", "٠/٣"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="is not I/N with I from 0 to N - 1"):
        read_shard(text)


def test_parts_cover_everything_once():
    for items in (0, 1, 7, 12, 1000):
        parts = [Shard(index, 7).part(items) for index in range(7)]
        assert [index for part in parts for index in part] == list(range(items))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_labels_are_read_once_for_all_shards(data, tmp_path, monkeypatch):
    """And again when one of them changes."""
    kept, read = tmp_path / "shards/data.json", []
    content_of = folders.content_of
    monkeypatch.setattr(folders, "content_of", lambda path: read.append(path) or content_of(path))
    copy = shutil.copytree(data, tmp_path / "VOC2012")
    first = open_dataset("voc21", copy, kept=kept).fingerprint
    assert first == open_dataset("voc21", data).fingerprint
    read.clear()
    assert open_dataset("voc21", copy, kept=kept).fingerprint == first
    assert read == []
    trees.save_label(copy / f"SegmentationClass/{IMAGES[0]}.png", trees.label_of([15, 0]), palette=True)
    assert open_dataset("voc21", copy, kept=kept).fingerprint == open_dataset("voc21", copy).fingerprint != first


def test_processes_share_a_shard(data, tmp_path, thirds):
    run = make_run(data, tmp_path, shard=Shard(2, 3))
    assert [run.dataset.ids[index] for index in run.part] == list(IMAGES[8:])
    same(measure(run), measure(replace(run, out=thirds)))
