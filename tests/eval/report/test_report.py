"""Reports must show what was measured, whose figures they are, and need nothing but a browser."""

import base64
import io
import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
from PIL import Image

from gla_jax.eval.benchmarks import ClassNames
from gla_jax.eval.datasets.examples import Example
from gla_jax.eval.report.compare import compare, comparison_html, comparison_tables, paired_interval
from gla_jax.eval.report.page import difference, markdown, report_html, report_markdown, write_report
from gla_jax.eval.report.pictures import chosen, panels, report_pictures
from gla_jax.eval.report.summary import summary, summary_table, write_summary
from gla_jax.eval.results import results, write_results
from gla_jax.eval.runner import measure, prediction_path
from gla_jax.support.errors import UserError
from tests.eval import trees
from tests.eval.fakes import ColourSegmenter
from tests.eval.test_runner import IMAGES, in_small_windows, make_run

ADDRESS = re.compile(r"https?://|src=\"(?!data:)|href=\"(?!file:)|@import|url\(")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return trees.voc(tmp_path_factory.mktemp("data") / "VOC2012", [0, 1, 5, 15, 255], IMAGES)


@pytest.fixture(scope="module")
def outcome(data, tmp_path_factory):
    return measure(make_run(data, tmp_path_factory.mktemp("run") / "first", save_predictions=True))


@pytest.fixture(scope="module")
def other(data, tmp_path_factory):
    """The same images under another logit scale, which changes what falls below the threshold."""
    run = make_run(data, tmp_path_factory.mktemp("run") / "second", save_predictions=True)
    row = in_small_windows(run.row, logit_scale=1.0)
    return measure(replace(run, row=row, segmenter=ColourSegmenter(row.config("proxyclip"))))


def test_the_best_median_and_worst_images_are_shown(outcome):
    miou = outcome.tally.miou
    picks = chosen(miou, each=2)
    assert [kind for kind, _ in picks] == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert len({index for _, index in picks}) == 6
    best, worst = (np.mean([miou[i] for kind, i in picks if kind == wanted]) for wanted in ("best", "worst"))
    assert best == np.sort(miou)[-2:].mean()
    assert worst == np.sort(miou)[:2].mean()


def test_the_page_needs_no_network_and_shows_everything(outcome, tmp_path):
    content = results(outcome)
    pictures = report_pictures(outcome.run, outcome.tally.miou, each=1)
    write_report(tmp_path, content, pictures)
    html = (tmp_path / "report.html").read_text()
    assert not ADDRESS.search(html)
    assert [name for name in outcome.run.row.classes if name not in html] == []
    assert f"<b>{content['figures']['miou']:.2f}</b>" in html
    assert all(picture.image_id in html for picture in pictures)
    for encoded in re.findall(r"data:image/jpeg;base64,([^\"]+)", html):
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            assert max(picture.size) <= 800
    assert html.count("data:image/jpeg") == 3 * len(pictures)


def test_classes_that_are_predicted_alone_are_named(outcome):
    """Their IoU of 0 lowers the mIoU of few images, where a reader would look for a class that failed."""
    content = results(outcome)
    for row in content["per_class"]:
        row["label"] = max(row["label"], 1)
    assert "Predicted but not labelled" not in report_html(content, ())
    content["per_class"][1] |= {"iou": 0.0, "accuracy": None, "label": 0}
    name = content["per_class"][1]["class"]
    assert f"Predicted but not labelled, which counts as an IoU of 0: {name}.</p>" in report_html(content, ())


def test_pictures_of_few_images_are_named_for_what_they_are(outcome):
    def kinds(count):
        return [kind for kind, _ in chosen(outcome.tally.miou[:count])]

    assert kinds(1) == ["the only one"]
    assert kinds(2) == ["best", "worst"]
    assert kinds(3) == ["best", "median", "worst"]
    assert kinds(5) == ["best", "best", "median", "worst", "worst"]


def test_the_paper_s_figure_is_marked_as_the_paper_s(outcome):
    content = results(replace(outcome, run=replace(outcome.run, method="gla")))
    assert content["paper"] is None
    assert "Not comparable with the paper's figure: the model is not named clip-vit" in unescape(
        report_html(content, ())
    )
    assert "12 of 1449 images" in report_markdown(content)
    content |= {"paper": {"miou": 66.3}, "not_comparable_with_paper": None}
    assert "66.30</b><span>mIoU in the paper<br>(not measured here)" in report_html(content, ())
    assert "| mIoU in the paper, not measured here | 66.30 |" in report_markdown(content)
    assert "paper" not in report_markdown({**content, "paper": None}).replace("setting of the paper", "")


# Names of classes, folders and models as a page, a table or a terminal could misread them.
EVIL = "</p><script>alert('1')</script> [/x] [bold]b[/bold] :smile: *i* `c` [a](http://b) {{ 7 * 7 }} {% if %} \\ _u_"


def test_names_cannot_break_the_page(outcome):
    content = results(outcome)
    content["per_class"][1]["class"] = EVIL
    content["model"]["name"] = EVIL
    html = report_html(content, ())
    assert "<script" not in html
    assert unescape(html).count(EVIL) == 2
    assert "\\<script\\>alert('1')\\</script\\> \\[/x\\]" in report_markdown(content)
    content["per_class"][1]["class"] = "cat | dog"
    cells = [line for line in report_markdown(content).splitlines() if line.startswith("| cat")]
    assert cells[0].replace("\\|", "").count("|") == 5


@pytest.mark.parametrize("name", [EVIL, "a_b", "_a_", "x\ny", "# x", "1 < 2 & 3 > 2", "$x$", "~~x~~", "a*b*c", "\\|"])
def test_markdown_shows_the_text_as_it_is(name):
    """Markdown's own rule: a backslash before punctuation stands for that character."""
    shown = markdown(name)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == " ".join(name.split())
    bare = re.sub(r"\\.", "", shown)
    assert not re.search(r"[\\`*\[\]<>|&~$\n]|\b_|_\b", bare)


def test_a_tuned_protocol_is_not_called_a_setting_of_the_paper(outcome):
    row = replace(outcome.run.row, setting="tuned", tuned_for="gla")
    content = results(replace(outcome, run=replace(outcome.run, row=row)))
    assert "| setting | tuned for gla |" in report_markdown(content)
    assert (content["paper"], content["not_comparable_with_paper"]) == (None, None)


def test_long_names_have_room_beside_their_bars(outcome):
    """Names that only differ at the end, as tiny-world's do, must be told apart."""
    content = results(outcome)
    content["per_class"][0]["class"] = "a quite long name of a class that ends in blue"
    html = report_html(content, ())
    assert '<div class=bars style="--names:41ch">' in html
    assert "text-overflow" not in html


def write_both(outcome, other):
    for one in (outcome, other):
        write_results(one.run.out, results(one))
    return compare(outcome.run.out, other.run.out)


def test_two_runs_are_compared(outcome, other, capsys):
    from rich.console import Console

    comparison = write_both(outcome, other)
    figures = {name: (a, b) for name, a, b in comparison.figures()}
    assert figures["miou"] == (results(outcome)["figures"]["miou"], results(other)["figures"]["miou"])
    changes = [abs(b - a) for _, a, b in comparison.changed(3)]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] == max(abs(b - a) for _, a, b in comparison.images)
    Console(width=120).print(comparison_tables(comparison))
    text = capsys.readouterr().out
    assert "first (proxyclip, 336-224-112)" in text
    assert comparison.changed(1)[0][0] in text
    html = comparison_html(comparison, count=2)
    assert not ADDRESS.search(html)
    assert html.count("data:image/jpeg") == 2 * 4


def test_names_in_a_comparison_are_never_markup(outcome, other, capsys):
    from rich.console import Console

    write_both(outcome, other)
    for one in (outcome, other):
        content = results(one)
        for row in content["per_class"]:
            row["class"] += " " + EVIL
        content["model"]["name"] = EVIL + one.run.out.name
        write_results(one.run.out, content)
    comparison = compare(outcome.run.out, other.run.out)
    Console(width=2000).print(comparison_tables(comparison))
    assert capsys.readouterr().out.count(EVIL) >= 4
    with pytest.warns(UserWarning, match="the page has no pictures, as .* holds other data than the runs had"):
        html = comparison_html(comparison, count=1)
    assert "<script" not in html
    assert unescape(html).count(EVIL) >= len(comparison.classes)


def test_a_damaged_prediction_is_named(outcome, other):
    comparison = write_both(outcome, other)
    name = comparison.changed(1)[0][0]
    path = prediction_path(outcome.run.out, name)
    before = path.read_bytes()
    try:
        Image.new("L", (3, 3)).save(path)
        with pytest.raises(UserError, match="is no label map of this benchmark"):
            comparison_html(comparison, count=1)
        path.write_bytes(before[:50])
        with pytest.raises(UserError, match=f"{name}.png"):
            comparison_html(comparison, count=1)
    finally:
        path.write_bytes(before)


def test_a_summary_is_a_table_in_markdown_and_on_a_terminal(outcome, other, capsys, tmp_path):
    from rich.console import Console

    contents = [results(outcome), results(other)]
    contents[1]["benchmark"] = EVIL
    content = summary(contents)
    write_summary(tmp_path, content)
    text = (tmp_path / "summary.md").read_text()
    title, rule, first, second, average = [line for line in text.splitlines() if line.startswith("|")]
    assert rule == "| --- |" + " ---: |" * (title.count("|") - 2)
    assert first.startswith(f"| voc21 | {contents[0]['figures']['miou']:.2f} |")
    assert len({re.sub(r"\\.", "", line).count("|") for line in (title, rule, first, second, average)}) == 1
    mean = np.mean([one["figures"]["miou"] for one in contents])
    assert average.startswith(f"| average | {mean:.2f} |")
    assert "voc21 is not comparable with the paper's figure" in text or not contents[0]["not_comparable_with_paper"]
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(content))
    Console(width=2000).print(summary_table(content))
    assert EVIL in capsys.readouterr().out


def test_boundary_rates_of_other_windows_are_compared_at_common_edges(outcome, other):
    write_both(outcome, other)
    content = results(other)
    content["protocol"]["windows"] = {**content["protocol"]["windows"], "stride": 14}
    content["model"]["name"] = "another"
    write_results(other.run.out, content)
    comparison = compare(outcome.run.out, other.run.out)
    figures = {name: (a, b) for name, a, b in comparison.figures()}
    expected = tuple(results(one)["common_edges"]["ber_1"] for one in (outcome, other))
    assert figures["ber_1"] == expected != tuple(results(one)["figures"]["ber_1"] for one in (outcome, other))
    html = comparison_html(comparison)
    assert "counted at those of GLA's windows (224 pixels every 112, short side 336)" in unescape(html)
    assert f"there BER, width 1, is {results(outcome)['figures']['ber_1']:.2f} and" in html
    assert "The models differ: colours (000000000000) and another (000000000000)." in html
    assert "The protocols differ" in html


def test_runs_of_other_images_are_not_compared(outcome, other):
    write_both(outcome, other)
    content = results(other)
    content["per_image"].pop(IMAGES[0])
    write_results(other.run.out, content)
    with pytest.raises(UserError, match="differ in their images"):
        compare(outcome.run.out, other.run.out)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [(None, "benchmark", "coco_of_tomorrow"), ("data", "origin", "a" * 5000), ("data", "origin", "a\0b")],
)
def test_results_whose_data_cannot_be_opened_are_compared_without_pictures(outcome, other, part, name, value):
    write_both(outcome, other)
    for one in (outcome, other):
        content = results(one)
        (content if part is None else content[part])[name] = value
        write_results(one.run.out, content)
    with pytest.warns(UserWarning, match="the page has no pictures, as "):
        html = comparison_html(compare(outcome.run.out, other.run.out))
    assert "data:image/jpeg" not in html


@pytest.mark.parametrize("mode", ["1", "F", "RGB"])
def test_a_prediction_of_another_kind_is_named(outcome, other, mode):
    write_both(outcome, other)
    path = prediction_path(other.run.out, compare(outcome.run.out, other.run.out).changed(1)[0][0])
    before = path.read_bytes()
    Image.open(path).convert(mode).save(path, format="TIFF")
    try:
        with pytest.raises(UserError, match="is no label map of this benchmark; run the evaluation again"):
            comparison_html(compare(outcome.run.out, other.run.out))
    finally:
        path.write_bytes(before)


def test_the_background_keeps_the_colours_of_the_photo():
    """Black over most of an image would hide what the method left there."""
    image = np.full((8, 8, 3), (200, 40, 120), np.uint8)
    label = np.zeros((8, 8), np.uint8)
    label[:4] = 1
    names = ClassNames(("background", "cat"), ((0, 0, 0), (0, 255, 0)), {}, {})
    jpegs, legend = panels(Example("a", image, label), [np.zeros_like(label)], None, names)
    truth, prediction = (np.asarray(Image.open(io.BytesIO(jpeg))).astype(int) for jpeg in jpegs[1:])
    assert np.abs(prediction - image).max() < 12
    assert truth[0, 0, 1] > 150
    assert legend == (("cat", "#00ff00"),)


def test_a_change_that_chance_explains_is_said_to_be_one():
    """The interval is that of the mean of the paired changes, here by the normal approximation."""
    rng = np.random.default_rng(1)
    clear, unclear = rng.normal(2.0, 1.0, 400), rng.normal(0.0, 1.0, 400)
    low, high = paired_interval(clear)
    assert (low, high) == pytest.approx((clear.mean() - 0.098, clear.mean() + 0.098), abs=0.02)
    low, high = paired_interval(unclear - unclear.mean())
    assert low < 0 < high
    assert np.isnan(paired_interval(clear[:1])).all()


@pytest.mark.parametrize(
    ("change", "shown"),
    [(1.234, "+1.23"), (-0.005001, "-0.01"), (-0.004, "0.00"), (0.004, "0.00"), (-0.0, "0.00"), (None, "-")],
)
def test_a_difference_that_rounds_to_zero_has_no_sign(change, shown):
    """-0.00 reads as a loss."""
    assert difference(change) == shown


def test_a_comparison_says_who_wins(outcome, other):
    comparison = write_both(outcome, other)
    changes = [second - first for _, first, second in comparison.images]
    won, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    notes = " ".join(comparison.notes())
    assert f"Of {len(changes)} images the second run wins {won} and loses {lost}" in notes
    assert "95 % interval" in notes
    assert (other.run.out / "report.html").as_uri() in comparison_html(comparison)
