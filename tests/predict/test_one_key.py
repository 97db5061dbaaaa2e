"""The share of tokens that keep one single key: against the oracle's attention, and what the commands say of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gla_jax import pipeline
from gla_jax.analysis.ablation import Ablation, Setting
from gla_jax.analysis.ablation_report import Tally, as_table
from gla_jax.analysis.crossing import crossings, lines, summary
from gla_jax.analysis.encoded import encode_image
from gla_jax.analysis.explain import attention_stages, explain
from gla_jax.analysis.explain_pictures import stage_note
from gla_jax.cli import main
from gla_jax.config import SegmenterConfig, WindowConfig
from gla_jax.distributed.processes import Processes
from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.outputs import run
from gla_jax.predict import one_key
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import preset_content
from gla_jax.text.prompts import parse_classes
from tests import oracle
from tests.small_models import random_pair

CONFIG = SegmenterConfig(windows=WindowConfig(short_side=None, crop=32, stride=16))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter.from_pretrained(random_pair(tmp_path_factory.mktemp("model")), CONFIG)


@pytest.mark.parametrize("alpha_beta", [0.0, 0.3, 2.0])
def test_tokens_that_keep_one_key_are_those_of_the_oracle(segmenter, alpha_beta):
    changed = segmenter.with_settings(alpha_beta=alpha_beta)
    tokens, prepared = encode_image(changed.model, IMAGE, [changed.config])
    count = prepared.grid.count
    keys = oracle.l2(np.asarray(tokens.compared(changed.config.method)[0], np.float64)[:count].reshape(count * 16, -1))
    found = crossings(changed, IMAGE)
    for name, method in attention_stages(changed.config.method).items():
        weights = oracle.attend(keys, np.eye(len(keys)), count, method)
        expected = (weights > 0).sum(1) == 1
        np.testing.assert_array_equal(found.stages[name].one_key.ravel(), expected)
        assert summary([found])["stages"][name]["one_key"] == pytest.approx(100 * expected.mean())


@pytest.mark.parametrize("name", ["gla", "gla-sclip", "gla-clearclip", "proxyclip"])
@pytest.mark.parametrize("sample", [10_000, 24])
def test_the_sample_of_an_image_has_the_share_of_its_tokens(segmenter, monkeypatch, name, sample):
    monkeypatch.setattr(one_key, "SAMPLE", sample)
    one_key.one_key_share.clear_cache()
    changed = segmenter.with_settings(method=name, **({} if name == "proxyclip" else {"alpha_beta": 0.8}))
    method = changed.config.method
    tokens, prepared = encode_image(changed.model, IMAGE, [changed.config])
    count, shares = prepared.grid.count, []
    for features in tokens.compared(method):
        first = pipeline.first_queries(features, prepared.windows, changed.params, method)
        rows = [
            x if x is None else np.asarray(x, np.float64).reshape(*features.shape[:2], -1) for x in (features, first)
        ]
        parts = [range(count)] if method.global_buffer else [[window] for window in range(count)]
        kept = []
        for part in parts:
            keys, own = (x if x is None else x[list(part)].reshape(-1, x.shape[-1]) for x in rows)
            weights = oracle.attend(oracle.l2(keys), np.eye(len(keys)), count, method, own)
            kept.extend((weights > 0).sum(1) == 1)
        shares.append(np.mean(np.array(kept)[:: max(len(kept) // sample, 1)]))
    found = one_key.one_key_share(changed.params, tokens, prepared.windows, method)
    assert float(found) == pytest.approx(np.mean(shares), abs=1e-6)


def test_the_table_of_an_ablation_names_settings_under_which_many_tokens_keep_one_key():
    settings = tuple(Setting(name, CONFIG) for name in ("good", "bad", "no attention by features"))
    tallies = [Tally(Areas.zeros(2), BoundaryCounts.zeros(), 1.0, own) for own in ((0.1, 0.2), (0.1, 0.5), (np.nan,))]
    assert tallies[1].figures()["one_key"] == pytest.approx(30)
    caption = as_table(Ablation("a", settings, {}), tallies, "note").caption
    assert "more than 20% of the tokens keep one single key under bad: its numbers" in caption
    assert as_table(Ablation("a", settings[:1], {}), tallies[:1], "note").caption == "note"


def test_a_setting_under_which_tokens_keep_one_key_is_pointed_out(segmenter):
    """A shift above every similarity: each row keeps its largest entry alone, and a panel is empty but for a point."""
    for alpha_beta, idle in ((0.0, False), (1000.0, True)):
        changed = segmenter.with_settings(alpha_beta=alpha_beta, rho=-1.0)
        said = "\n".join(lines(summary([crossings(changed, IMAGE)])))
        assert ("more than 20% of the tokens keep one single key" in said) == idle
        assert ("another anchor_threshold (rho)" in said) == idle
        drawn = explain(changed, IMAGE, (20, 20)).stages[-1]
        assert ("one single key is kept: try another rho" in stage_note(drawn, None)) == idle


def folder_of(root, images=2):
    """A benchmark `folder` of random images and labels of two classes."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for number in range(images):
        Image.fromarray(IMAGE).save(root / "images" / f"{number}.png")
        Image.fromarray((IMAGE[..., 0] > 127).astype(np.uint8)).save(root / "labels" / f"{number}.png")
    (root / "classes.txt").write_text("sand\nwater")
    return root


def test_segment_says_once_that_most_of_the_method_is_idle(segmenter, tmp_path, monkeypatch):
    """The published numbers with DINO's features are not looked at: they cost no pass of the towers."""
    images = sorted((folder_of(tmp_path / "data") / "images").iterdir())
    for fields, times in (({"alpha_beta": 1000.0}, 1), ({}, 0)):
        if not times:
            monkeypatch.setattr(run, "image_one_key", None)
        task = run.Task(segmenter.with_settings(**fields), parse_classes(["sand", "water"]))
        said, folder = [], tmp_path / f"out{times}"
        folder.mkdir()
        run.segment_files(task, images, folder, Processes(), said.append)
        assert sum("keep one single key, so most of the method is idle" in text for text in said) == times


def test_a_calibrated_dino_is_looked_at_too(segmenter):
    assert one_key.is_published(segmenter.model)
    assert not one_key.is_published(segmenter.with_settings(calibration="centred").model)


def test_eval_counts_it_and_its_report_says_it(segmenter, tmp_path, capsys):
    config = replace(segmenter.with_settings(alpha_beta=1000.0).model.settings, windows=CONFIG.windows)
    (tmp_path / "p.json").write_text(json.dumps(preset_content(config, "gla", "sclip-prompts", {})))
    options = [
        "--data",
        str(folder_of(tmp_path / "data")),
        "--model",
        segmenter.name,
        "--preset",
        str(tmp_path / "p.json"),
    ]
    assert main(["eval", "folder", *options, "--out", str(tmp_path / "out")]) == 0
    assert "keep one single key" in capsys.readouterr().err
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["one_key"]["images"] == 2
    assert content["one_key"]["percent"] > 20
    assert "keeps one single key" in (tmp_path / "out/report.md").read_text()
