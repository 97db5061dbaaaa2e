"""Explanations: the row that is drawn must be the one that segments, and the figures must say what is there."""

import re
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gla_jax.analysis.explain import attention_stages, explain, methods_with_one_row, query_row, query_token
from gla_jax.analysis.explain_files import parse_point
from gla_jax.analysis.explain_pictures import without_slivers
from gla_jax.analysis.token_attention import cover
from gla_jax.cli import main
from gla_jax.config import BASELINES, METHODS, Baseline, MethodConfig, SegmenterConfig, WindowConfig
from gla_jax.images.windows import WindowGrid, Windows, window_grid
from gla_jax.pictures.drawing import NARROWEST, PANEL_HEIGHT
from gla_jax.pipeline import WindowTokens, aggregate_windows, segment_logits
from gla_jax.predict.model import image_grid
from gla_jax.segmenter import Segmenter
from gla_jax.support.errors import UserError
from gla_jax.text.prompts import parse_classes
from gla_jax.towers.attention import QKV
from tests import oracle
from tests.small_models import random_pair

WINDOWS = WindowConfig(short_side=48, crop=32, stride=16)
SIZES = ["--short-side", "48", "--crop", "32", "--stride", "16"]
CLASSES = ["sand; gravel", "water"]
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
AT = (70, 20)
NAMES = ("Global buffer", "+ proxy anchors", "+ dynamic normalisation")
# Windows 0 to 2 hold something, the last one pads; 3 x 3 tokens of values, 4 x 4 of features.
COUNT, VALID = 4, np.array([True, True, True, False])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_pair(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def segmenter(folder):
    return Segmenter.from_pretrained(folder, SegmenterConfig(windows=WINDOWS))


@pytest.fixture(scope="module")
def explanation(segmenter):
    return explain(segmenter, IMAGE, AT, CLASSES)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(IMAGE).save(path)
    return path


def random_tokens(seed, baseline):
    """Tokens with a few groups that resemble each other, so that masks are neither empty nor full."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(3, 6))
    features = groups[rng.integers(0, 3, (COUNT, 16))] + 0.5 * rng.normal(size=(COUNT, 16, 6))
    heads = rng.normal(size=(COUNT, 17 if baseline == "clearclip" else 10, 6)).astype(np.float32)
    if baseline == "clearclip":
        heads[:, 1:] = features
    sides = [jnp.asarray(side) for side in (heads, heads, heads[::-1].copy())]
    return WindowTokens(QKV(*sides), sides[0], jnp.asarray(features, jnp.float32))


def four_windows():
    origins = np.array([(0, 0), (0, 16), (16, 0), (0, 0)], np.int32)
    return Windows(np.zeros((COUNT, 3, 32, 32), np.float32), VALID, origins)


def rows_of(segmenter, tokens, query, method):
    return query_row(segmenter.params, tokens, four_windows(), np.int32(query), method)


@pytest.mark.parametrize(
    ("name", "stage"), [*(("gla", stage) for stage in NAMES), ("gla-clearclip", NAMES[1]), ("gla-clearclip", NAMES[2])]
)
def test_the_row_that_is_drawn_attends_to_what_the_segmentation_attends_to(segmenter, name, stage):
    method = attention_stages(METHODS[name])[stage]
    tokens, windows = random_tokens(3, method.baseline), four_windows()
    everything = jax.jit(aggregate_windows)(tokens, windows, segmenter.params, method)
    for query in (0, 21, 47):
        row = rows_of(segmenter, tokens, query, method)
        window, token = divmod(query, everything.shape[1])
        np.testing.assert_allclose(row.attended, everything[window, token], atol=2e-6)
        np.testing.assert_allclose(np.asarray(row.weights).sum(), 1, atol=1e-6)
        assert not np.asarray(row.weights)[~VALID].any()


@pytest.mark.parametrize("iterations", [0, 1, 2])
def test_the_positives_are_the_tokens_that_are_counted(segmenter, iterations):
    method = replace(attention_stages(METHODS["gla"])[NAMES[2]], anchor_iterations=iterations)
    tokens = random_tokens(4, "proxyclip")
    keys = np.asarray(tokens.features, np.float64)[VALID].reshape(-1, 6)
    _, counts = oracle.anchors(oracle.l2(keys), 0.55, iterations)
    for query in (5, 30):
        row = rows_of(segmenter, tokens, query, method)
        assert int(row.count) == counts[query] == np.asarray(row.positives).sum()
        assert 1 < counts[query] < 48
        assert float(row.gamma) == pytest.approx(1 + 30 / counts[query], rel=1e-6)
        assert float(row.beta) == pytest.approx(1 + 0.3 * np.log(4), rel=1e-6)


def test_a_token_that_resembles_nothing_is_its_own_positive(segmenter):
    method = replace(attention_stages(METHODS["gla"])[NAMES[2]], anchor_threshold=1.5)
    row = rows_of(segmenter, random_tokens(4, "proxyclip"), 17, method)
    assert np.flatnonzero(np.asarray(row.positives)).tolist() == [17]
    assert int(row.count) == 1


def test_no_stage_holds_a_matrix_of_all_tokens_by_all_tokens(segmenter):
    """Blocks of 8 keys: whatever is larger than one row of similarities of all tokens would be whole."""
    tokens, windows = random_tokens(4, "proxyclip"), four_windows()
    for method in attention_stages(replace(METHODS["gla"], block_size=8)).values():
        traced = jax.make_jaxpr(query_row)(segmenter.params, tokens, windows, np.int32(3), method)
        assert "64,64" not in str(traced)


def test_a_method_without_all_of_gla_is_refused_in_one_sentence():
    for method in (METHODS["proxyclip"], METHODS["clip"], replace(METHODS["gla"], dynamic_scale=None)):
        with pytest.raises(UserError, match="choose gla"):
            attention_stages(method)
    with pytest.raises(UserError, match=r"sclip compares .* choose gla, gla-clearclip, .*gla-on-clip-keys"):
        attention_stages(MethodConfig(baseline="sclip"))
    for name in methods_with_one_row():
        assert len(attention_stages(METHODS[name])) == 3


@pytest.mark.parametrize(
    ("at", "size", "expected"),
    [
        ((0, 0), (336, 448), (0, 0)),
        ((447, 335), (336, 448), (5, 783)),
        ((224, 167), (336, 448), (1, 20 * 28 + 14)),
        ((224, 168), (336, 448), (4, 7 * 28 + 14)),
        ((300, 100), (336, 448), (2, 12 * 28 + 9)),
        # The middle row of an odd number: windows 1 and 4 are equally near, the first one is taken.
        ((224, 167), (335, 448), (1, 21 * 28 + 14)),
    ],
)
def test_the_query_is_the_token_under_the_point_in_the_nearest_window(at, size, expected):
    assert query_token(at, size, window_grid(336, 448, WindowConfig()), 28) == expected


def test_the_token_holds_the_point_whatever_the_image_is_resized_to():
    rng = np.random.default_rng(1)
    for _ in range(50):
        height, width = rng.integers(20, 200, 2).tolist()
        grid = image_grid((height, width), WindowConfig(short_side=40, crop=48, stride=24))
        at = int(rng.integers(width)), int(rng.integers(height))
        window, token = query_token(at, (height, width), grid, 6)
        corner = grid.origins[window] + np.array(divmod(token, 6)) * 8
        point = np.array([(at[1] + 0.5) * grid.height / height, (at[0] + 0.5) * grid.width / width])
        assert (corner <= point).all()
        assert (point < corner + 8).all()


@pytest.mark.parametrize("at", [(90, 0), (0, 60)])
def test_a_point_outside_the_image_is_named_with_the_range(segmenter, at):
    with pytest.raises(UserError, match="90 x 60 pixels; X is at most 89 and Y at most 59"):
        explain(segmenter, IMAGE, at)


@pytest.mark.parametrize("text", ["12", "a,b", "1,2,3", "-1,5", "1.5,2"])
def test_a_point_that_is_none_is_refused(text):
    with pytest.raises(UserError, match="--at X,Y"):
        parse_point(text)


def test_an_explanation_holds_three_stages_with_their_figures(explanation):
    assert tuple(stage.name for stage in explanation.stages) == NAMES
    assert (explanation.grid.height, explanation.grid.width) == (48, 72)
    assert explanation.grid.count == 8
    first, second, last = explanation.stages
    assert (first.count, first.positives) == (None, None)
    assert (first.beta, first.gamma) == (pytest.approx(1.2), 3.0)
    assert second.count == last.count == last.positives.sum()
    assert last.beta == pytest.approx(1 + 0.3 * np.log(9), rel=1e-6)
    for stage in explanation.stages:
        assert stage.weights.shape == (8, 16)
        assert stage.outside == pytest.approx(1 - stage.weights[explanation.window].sum(), abs=1e-6)
        assert stage.answer[0] in ("sand", "water")
        assert 0.3 <= stage.answer[1] <= 1


@pytest.mark.parametrize("whole_block", [False, True])
def test_the_answer_of_the_whole_method_is_the_segmentation_s(segmenter, monkeypatch, whole_block):
    """The token's own logits; where CLIP's whole block runs, its residual is in them."""
    name = f"mine-{whole_block}".lower()  # a compiled program belongs to a name
    monkeypatch.setitem(
        BASELINES, name, Baseline(name, name, whole_block=whole_block, gla=f"gla-{name}", features=("vfm",))
    )
    config = replace(segmenter.config, method=MethodConfig(baseline=name))
    last = (explained := explain(segmenter.with_config(config), IMAGE, AT, CLASSES)).stages[-1]
    parsed = parse_classes(CLASSES)
    windows = segmenter.prepare(IMAGE).windows
    logits = jax.jit(segment_logits)(segmenter.params, windows, segmenter.text_embeddings(parsed), config)
    probabilities = np.asarray(jax.nn.softmax(40.0 * logits[explained.window, explained.token]))
    best = int(probabilities.argmax())
    assert last.answer == (parsed.names[parsed.class_of_prompt[best]], pytest.approx(probabilities[best], abs=1e-5))


def test_attention_on_one_token_is_drawn_where_that_token_lies(explanation):
    weights = np.zeros((8, 16), np.float32)
    weights[3, 5] = 1.0  # the window at row 0, column 40 of 48 x 72; its token in row 1, column 1
    stage = replace(explanation.stages[0], weights=weights)
    heat = explanation.heat(stage, (48, 72))
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 8 <= row < 16
    assert 48 <= column < 56
    assert heat[24:].max() == 0
    assert heat[:, :40].max() == 0


def test_even_attention_is_one_everywhere(explanation):
    stage = replace(explanation.stages[0], weights=np.full((8, 16), 1 / 128, np.float32))
    np.testing.assert_allclose(explanation.heat(stage, (33, 50)), 1, atol=1e-5)


def test_the_share_on_a_mask_counts_tokens_by_what_it_covers(explanation):
    assert explanation.shares_on(np.ones((60, 90), bool)) == pytest.approx((1, 1, 1), abs=1e-5)
    left = np.zeros((60, 90), bool)
    left[:, :45] = True
    right = ~left
    both = np.add(explanation.shares_on(left), explanation.shares_on(right))
    np.testing.assert_allclose(both, 1, atol=1e-5)


def test_cover_is_the_mean_of_the_mask_under_each_token():
    grid = window_grid(48, 64, WindowConfig(None, 32, 16))
    mask = np.random.default_rng(2).random((48, 64)) < 0.4
    covered = cover(mask, grid, 4)
    for window, (top, left) in enumerate(grid.origins):
        piece = mask[top : top + 32, left : left + 32].reshape(4, 8, 4, 8).mean((1, 3))
        np.testing.assert_allclose(covered[window], piece.ravel(), atol=1e-6)


def test_nothing_outside_a_small_image_is_covered():
    grid = window_grid(16, 32, WindowConfig(None, 32, 16))
    covered = cover(np.ones((16, 32), bool), grid, 4).reshape(4, 4)
    np.testing.assert_allclose(covered, [[0] * 4, [1] * 4, [1] * 4, [0] * 4], atol=1e-6)


def test_outlines_leave_slivers_out_and_keep_what_is_as_large_as_a_token():
    region = np.zeros((40, 60), bool)
    region[5:20, 10:30] = True
    whole = region.copy()
    region[2:35, 40:43] = True  # a bar that no token fills
    region[10:12, 15:25] = False  # and a gap that is none
    found = ~without_slivers(~without_slivers(region | whole, 6), 6)
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_array_equal(~without_slivers(~region, 6) & whole, whole)
    at_the_edge = np.zeros((40, 60), bool)
    at_the_edge[:3, :20] = True  # cut off by the picture, not thin
    np.testing.assert_array_equal(without_slivers(at_the_edge, 6), at_the_edge)


@pytest.mark.parametrize("size", [(20, 200), (300, 40), (60, 90)])
def test_pictures_of_every_shape_show_all_stages(explanation, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    grid = WindowGrid(*size, 300, (-((300 - size[0]) // 2),), (-((300 - size[1]) // 2),))
    stages = tuple(
        replace(
            stage,
            weights=stage.weights[:1] / stage.weights[:1].sum(),
            positives=None if stage.positives is None else stage.positives[:1],
        )
        for stage in explanation.stages
    )
    other = replace(explanation, image=image, grid=grid, at=(5, 5), window=0, token=0, stages=stages)
    picture = other.picture()
    assert picture.width >= 4 * NARROWEST
    assert picture.height <= PANEL_HEIGHT + 260


def test_the_figure_of_matplotlib_has_the_same_notes(explanation):
    pytest.importorskip("matplotlib")
    mask = np.zeros((60, 90), bool)
    mask[10:40, 30:80] = True
    figure = explanation.figure(mask)
    notes = [axis.get_xlabel() for axis in figure.axes[:4]]
    assert [axis.get_title(loc="left") for axis in figure.axes[1:4]] == list(NAMES)
    for stage, share, note in zip(explanation.stages, explanation.shares_on(mask), notes[1:], strict=True):
        assert f"{share:.0%} on the object" in note
        assert f"{stage.outside:.0%} outside" in note
    figure.canvas.draw()


def test_without_matplotlib_picture_and_figure_say_what_to_install(explanation, monkeypatch):
    """One renderer draws both since Pillow's charts are gone."""
    for name in ("matplotlib", "matplotlib.colors", "matplotlib.figure", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    for draw in (explanation.picture, explanation.figure):
        with pytest.raises(UserError, match=r'pip install "gla-jax\[figures\]"'):
            draw()


def test_importing_explain_does_not_load_matplotlib():
    code = "import sys, gla_jax.analysis.explain_files; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_command_writes_both_pictures_and_says_their_figures(tmp_path, photo, folder, capsys):
    mask = tmp_path / "mask.png"
    values = np.zeros((60, 90), np.uint8)
    values[10:40, 50:80] = 255
    Image.fromarray(values).save(mask)
    out = tmp_path / "new" / "why.png"
    classes = ["--classes", CLASSES[0], "--classes", CLASSES[1]]
    options = ["--at", "70,20", "--mask", mask, "--boundaries", *classes, "--model", folder, *SIZES, "--out", out]
    assert call("explain", photo, *options) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["why.boundaries.png", "why.png"]
    with Image.open(out) as picture:
        assert picture.width > 1500
    said = capsys.readouterr().out
    for name in NAMES:
        assert f"{name}: " in said
    assert said.count("on the object of the mask") == 3
    assert "ProxyCLIP: boundary error at" in said
    assert "ProxyCLIP + GLA: boundary error at" in said


def test_the_command_draws_the_anchors_of_the_rho_that_it_is_given(tmp_path, photo, folder, capsys):
    counts = []
    for rho in ("-1", "1"):
        given = ("--at", "70,20", "--model", folder, *SIZES, "--out", tmp_path / "why.png", "--anchor-threshold", rho)
        assert call("explain", photo, *given) == 0
        counts.append(int(re.findall(r"(\d+) positives", capsys.readouterr().out)[0]))
    assert counts == [128, 1]


def test_the_command_names_its_file_after_the_image(tmp_path, photo, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("explain", photo, "--at", "3,4", "--model", folder, *SIZES) == 0
    assert (tmp_path / "photo.explain.png").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "nothing to explain"),
        (["--boundaries"], "need classes"),
        (["--at", "nowhere"], "not a pixel"),
        (["--at", "500,2"], "outside the image"),
        (["--at", "5,2", "--out", "why.jpg"], "not the name of a PNG file"),
        (["--at", "5,2", "--mask", "missing.png"], "missing.png does not exist"),
        (["--at", "5,2", "--method", "sclip"], "choose gla"),
        (["--at", "5,2", "--anchor-threshold", "55"], "threshold 55.0 is not a cosine; give a number from -1 to 1"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_weights_are_loaded(photo, capsys, arguments, sentence):
    assert call("explain", photo, "--model", "no-such-model", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1
