"""What people watch while a run goes on: one line an image, and scalars of the images of this run alone."""

import json

import pytest

from gla_jax.eval.logs import image_lines, logs, scalars
from gla_jax.eval.runner import measure
from gla_jax.support.errors import UserError
from gla_jax.support.places import place
from tests.eval import trees
from tests.eval.test_runner import IMAGES, make_run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.voc(tmp_path_factory.mktemp("data") / "VOC2012", [0, 1, 5, 15, 255], IMAGES)


def test_a_line_an_image_and_none_for_those_of_an_earlier_run(data, tmp_path):
    run, path = make_run(data, tmp_path / "out", limit=3), tmp_path / "logs/images.jsonl"
    with image_lines(path, 21) as log:
        measure(run, log=log)
    with image_lines(path, 21) as log:
        outcome = measure(make_run(data, run.out, limit=5), log=log)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["image"] for line in lines] == list(IMAGES[:5])
    assert [line["miou"] for line in lines] == outcome.tally.miou.tolist()
    assert lines[0]["size"] == list(trees.SIZE)
    assert {"read", "features", "labels"} <= set(lines[0]["seconds"])


def test_a_file_that_is_no_log_gets_no_lines(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"photo\.png is no log of this command"), image_lines(path, 21):
        pass
    assert path.read_bytes() == b"\x89PNG"
    path.write_bytes(b"")  # of mktemp
    with image_lines(path, 21):
        pass


def test_logs_on_a_store_are_those_of_the_disk(data, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    store = place("memory://logs")
    with logs(store / "images.jsonl", store / "board", "voc21", 21) as log, image_lines(tmp_path / "x", 21) as local:
        outcome = measure(make_run(data, tmp_path / "out", limit=3))
        for record in outcome.records:
            log(record)
            local(record)
    (lines,) = store.glob("images.*.jsonl")
    assert lines.read_text() == (tmp_path / "x").read_text()
    (board,) = store.glob("board/*")
    assert board.name.startswith("events.out.tfevents")
    assert b"voc21/miou" in board.read_bytes()
    store.fs.store.clear()


def test_scalars_are_those_of_the_run(data, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event

    with scalars(tmp_path / "board", "voc21", 21) as log:
        outcome = measure(make_run(data, tmp_path / "out", limit=4), log=log)
    (path,) = (tmp_path / "board").iterdir()
    content, events = path.read_bytes(), []
    while content:  # length, its checksum, the event, its checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    values = {(v.tag, event.step): v.simple_value for event in events for v in event.summary.value}
    assert values["voc21/miou", 4] == pytest.approx(outcome.areas().scores().miou, rel=1e-6)
    assert values["voc21/seconds/features", 2] == pytest.approx(outcome.records[1].seconds["features"], abs=1e-5)
    assert {step for tag, step in values if tag == "voc21/images_per_second"} == {1, 2, 3, 4}
