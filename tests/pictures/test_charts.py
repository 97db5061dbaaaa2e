"""Charts: lengths, heights, colours and places must be those of the figures, and any name or value must be drawn."""

import math
import subprocess
import sys
import warnings
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gla_jax.pictures import charts
from gla_jax.pictures.charts import (
    GREY,
    Column,
    LogPanel,
    Series,
    bars,
    heat_maps,
    lines,
    log_lines,
    require_matplotlib,
    shade,
    shorten,
)
from gla_jax.pictures.drawing import BLUE, INK, RED, Entry
from gla_jax.support.errors import UserError


def column(values, higher=True, marks=()):
    return Column("mIoU, %", tuple(values), higher, BLUE, tuple(marks))


def coloured(picture, colour):
    return (np.asarray(picture).astype(int) == colour).all(-1)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, with their axes."""
    drawn, as_image = [], charts.as_image
    monkeypatch.setattr(charts, "as_image", lambda figure: drawn.append(figure) or as_image(figure))
    return drawn


def test_the_best_is_the_highest_or_the_lowest_and_never_nothing():
    assert column([1.0, math.nan, 3.0]).best == 2
    assert column([1.0, math.nan, 0.5], higher=False).best == 2
    assert column([math.nan]).best is None


def test_ties_are_all_of_the_best_and_are_said():
    tied = column([1.0, 3.0, math.nan, 3.0])
    assert (tied.best, tied.ties) == (1, (1, 3))
    assert tied.heading == "mIoU, %  (2 tie for best)"
    assert (column([math.nan] * 2).ties, column([1.0, 2.0]).heading) == ((), "mIoU, %")


def test_a_bar_is_as_long_as_its_value():
    drawn = bars("Title", "note", ["a", "b", "c"], [True, True, False], [column([40.0, 10.0, 20.0])], [])
    lengths = coloured(drawn, BLUE).sum(1)
    tall = sorted(length for length in set(lengths[lengths > 0].tolist()) if (lengths == length).sum() >= 10)
    assert len(tall) == 2
    assert tall[1] / tall[0] == pytest.approx(4, rel=0.02)
    assert coloured(drawn, GREY).any()


def test_marks_stand_at_their_values_and_names_in_their_order(figures):
    columns = [column([40.0, 10.0], marks=[20.0, math.nan])]
    bars("Title", "note", ["first", "second"], [True, True], columns, [Entry("with GLA", BLUE)])
    (axis,) = figures[0].axes
    (marks,) = axis.collections
    assert [segment[0, 0] for segment in marks.get_segments() if len(segment)] == [20.0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["first", "second"]
    assert axis.transData.transform((0, 0))[1] > axis.transData.transform((0, 1))[1]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["with GLA"]


def test_lines_rise_where_values_rise_and_break_where_there_is_none():
    drawn = coloured(lines("Title", "note", "field", list("abcd"), [column([10, 20, math.nan, 5])]), BLUE)
    rows, columns = np.nonzero(drawn)
    second = columns.min() + (columns.max() - columns.min()) / 3  # of four places
    assert rows[columns == columns.min() + 2].mean() > rows[np.abs(columns - second) < 3].mean()
    assert (~drawn.any(0))[columns.min() : columns.max()].any()


@pytest.mark.parametrize(
    ("names", "places"),
    [(["0.9", "0.3", "0.4"], [0.3, 0.4, 0.9]), (["none", "0.3", "0.4"], [0, 1, 2]), (["nan", "1", "9"], [0, 1, 2])],
)
def test_numbers_stand_at_their_true_distances(figures, names, places):
    lines("Title", "note", "field", names, [column([1.0, 2.0, 3.0])])
    values = dict(zip(figures[0].axes[0].lines[0].get_xdata(), figures[0].axes[0].lines[0].get_ydata(), strict=True))
    assert list(values) == pytest.approx(places)
    assert list(values.values()) == ([2.0, 3.0, 1.0] if names[0] == "0.9" else [1.0, 2.0, 3.0])
    heat_maps("Title", "note", ("a", "b"), (["x"], names), [column([1.0, 2.0, 3.0])])
    edges = np.unique(figures[1].axes[0].collections[0].get_coordinates()[0, :, 0])
    middle = (np.array(places[1:]) + places[:-1]) / 2
    assert edges[1:3].tolist() == pytest.approx(middle.tolist())


def test_labels_of_near_numbers_leave_room_for_each_other(figures):
    names = [f"{0.5 + index / 1000:.3f}" for index in range(100)]
    lines("Title", "note", "field", names, [column(range(100))])
    axis, renderer = figures[0].axes[0], figures[0].canvas.get_renderer()
    boxes = [label.get_window_extent(renderer) for label in axis.get_xticklabels()]
    assert 3 < len(boxes) < 30
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


NAMES = [f"a name that is much too long for a picture {index}" * 3 for index in range(6)]


@pytest.mark.parametrize("values", [[math.nan] * 6, [50.0] * 6, [1.0, 2, 3, 4, 5, math.nan], [0.0] * 6])
def test_pictures_of_nothing_and_of_equals_are_drawn(values):
    assert bars("Title", "note", NAMES, [True] * 6, [column(values, marks=values)] * 2, []).width > 1000
    assert lines("Title", "note", "field", NAMES, [column(values)] * 2).width > 1000
    assert heat_maps("Title", "note", ("a", "b"), (["1", "2"], ["1", "2", "3"]), [column(values)] * 2).width > 1000


@pytest.mark.parametrize("name", ["$\\frac{$", "[/x]", "中文", "x" * 10_000, "two\nlines", "%s {}"])
def test_any_name_is_drawn_as_it_is(name, figures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = bars(name, name, [name, "b"], [True] * 2, [column([1.0, 2.0])], [Entry(name, RED)])
        lines(name, name, name[:40], [name, "b"], [column([1.0, 2.0])])
    assert picture.width == 1800
    assert figures[0].axes[0].get_yticklabels()[0].get_text() == shorten(name, charts.LONGEST_NAME)


def test_a_text_is_cut_to_a_length():
    assert [shorten(text, 6) for text in ("abcdef", "abcdefg", "a  b\nc", "")] == ["abcdef", "abc...", "a b c", ""]


@pytest.mark.parametrize("higher", [True, False])
def test_the_darkest_cell_of_a_map_is_the_best(higher):
    page = heat_maps("", "", ("a", "b"), (["1", "2"], ["1", "2"]), [column([90.0, 50, 50, 10], higher=higher)])
    places = [np.argwhere(coloured(page, shade(BLUE, share))).mean(0) for share in (0.0, 1.0)]
    pale, dark = reversed(places) if higher else places
    # 10 lies below 90 and to its right.
    assert (dark - pale > 40).all()


def test_a_map_frames_every_best_cell_and_has_its_scale_beside_it(figures):
    heat_maps("Title", "note", ("a", "b"), (["1", "2"], ["x", "y"]), [column([7.0, 1.0, math.nan, 7.0])])
    panel, scale = figures[0].axes
    assert [patch.get_xy() for patch in panel.patches] == [(-0.5, 0.5), (0.5, 1.5)]
    assert [patch.get_edgecolor()[:3] for patch in panel.patches] == [tuple(part / 255 for part in INK)] * 2
    assert scale.get_ylim() == (1.0, 7.0)
    assert {text.get_text() for text in panel.texts} == {"7.0", "1.0", "-"}


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (12.3, 12.4), (0.0, 100.0), (48.2, 57.9)])
def test_ticks_are_few_and_the_axis_holds_the_range(figures, low, high):
    lines("Title", "note", "field", ["1", "2"], [column([low, high])])
    axis = figures[0].axes[0]
    bottom, top = axis.get_ylim()
    assert 3 <= sum(bottom <= tick <= top for tick in axis.get_yticks()) <= 9
    assert bottom <= low
    assert high <= top
    assert top - bottom >= 1  # noise looks small


WINDOWS = [1, 2, 4, 8]


def sweep():
    dense = Series("dense", RED, ((1, 0.01), (2, 0.04), (4, 0.16)), stopped=(8, 0.64))
    blockwise = Series("blockwise", BLUE, tuple((x, 0.02 * x) for x in WINDOWS))
    return LogPanel("memory", "GiB", (dense, blockwise), limit=(0.5, "memory limit"))


def test_a_line_over_a_doubling_number_is_straight_on_its_axes(figures):
    log_lines("Title", "note", "windows", WINDOWS, [sweep()])
    axis = figures[0].axes[0]
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]
    dense = axis.transData.transform(axis.lines[0].get_xydata())
    assert np.diff(dense[:, 1]).tolist() == pytest.approx([np.diff(dense[:, 1])[0]] * 2)
    shown = [label.get_text() for label in axis.get_yticklabels()]
    assert "0.1 GiB" in shown
    assert {"dense stopped", "memory limit"} <= {text.get_text() for text in axis.texts}
    crosses = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "x"]
    assert crosses == [[[8.0, 0.64]]]
    levels = [set(line.get_ydata()) for line in axis.lines if line.get_marker() == "None"]
    assert levels == [{0.5}]


def test_a_sweep_of_one_number_or_without_any_figure_is_drawn():
    for points in ((), ((1, 0.5),)):
        panel = LogPanel("seconds", "s", (Series("dense", RED, points, stopped=None if points else (1, 2.0)),))
        assert log_lines("Title", "note", "windows", [1], [panel, LogPanel("x", "y", ())]).width > 1000


def test_the_user_s_own_settings_of_matplotlib_neither_count_nor_change():
    before = bars("Title", "note", ["a"], [True], [column([1.0])], [])
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "text.usetex": True}):
        mine = dict(matplotlib.rcParams)
        after = bars("Title", "note", ["a"], [True], [column([1.0])], [])
        assert dict(matplotlib.rcParams) == mine
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))
    assert isinstance(after, Image.Image)


def test_without_matplotlib_one_sentence_says_what_to_install(monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (require_matplotlib, lambda: lines("", "", "a", ["1"], [column([1.0])])):
        with pytest.raises(UserError, match=r'^charts are drawn by matplotlib; .* pip install "gla-jax\[figures\]"\.$'):
            draw()


def test_importing_charts_does_not_load_matplotlib():
    code = "import sys, gla_jax.pictures.charts; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
