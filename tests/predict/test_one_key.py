"""The share of tokens that keep one single key: against the oracle's attention, and what the commands say of it."""

import json
from dataclasses import replace

import jax.numpy as jnp
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
from gla_jax.attention.attend import attend_buffer, image_buffer
from gla_jax.cli import main
from gla_jax.config import BASELINES, METHODS, SegmenterConfig, WindowConfig
from gla_jax.distributed.mesh import make_mesh
from gla_jax.distributed.processes import Processes
from gla_jax.eval.metrics.areas import Areas
from gla_jax.eval.metrics.boundary import BoundaryCounts
from gla_jax.outputs import run
from gla_jax.predict import model as module
from gla_jax.predict import one_key
from gla_jax.predict.predict import Ready, label_images
from gla_jax.segmenter import Segmenter
from gla_jax.settings.options import preset_content
from gla_jax.support.batches import Stopwatch
from gla_jax.text.prompts import parse_classes
from gla_jax.towers.clip import ClipImage
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


def counts_of_the_oracle(segmenter, image):
    """Tokens that keep one single key, and all, in float64; merged tokens are one each."""
    tokens, (windows, grid, _) = encode_image(segmenter.model, image, [segmenter.config])
    method, count, kept = segmenter.config.method, grid.count, []
    parts = [range(count)] if method.global_buffer else [[window] for window in range(count)]
    for features in tokens.compared(method):
        plain = replace(method, merge_overlaps=False)  # the oracle merges by itself
        first = pipeline.first_queries(features, windows, segmenter.params, plain)
        features, first = (x if x is None else np.asarray(x, np.float64) for x in (features, first))
        first = None if first is None else first.reshape(features.shape)
        for part in parts:
            keys, own = (x if x is None else x[list(part)].reshape(-1, x.shape[-1]) for x in (features, first))
            keys, alone = oracle.l2(keys), np.eye(len(keys))
            if method.merge_overlaps:
                pixels = windows.overlaps.merged[:count].ravel()
                rows = oracle.attend_merged(keys, alone, pixels, count, method, own) > 0
                _, places = np.unique(pixels, return_index=True)
                kept.extend(rows[places][:, places].sum(1) == 1)
            else:
                kept.extend((oracle.attend(keys, alone, count, method, own) > 0).sum(1) == 1)
    return sum(kept), len(kept)


# Shifts under which some tokens keep one key, and others more.
SHIFTS = {
    "gla": {"alpha_beta": 0.8},
    "merged": {"alpha_beta": 0.8, "merge_overlaps": True},
    "gla-sclip": {"alpha_beta": 0.04},
    "gla-clearclip": {"alpha_beta": 0.04},
    "proxyclip": {"shift": 1.9},
}


@pytest.mark.parametrize("name", SHIFTS)
def test_every_way_through_the_machine_counts_as_the_oracle(segmenter, name, monkeypatch):
    """One program, a batch, the dense form, meshes and steps: else a user of one of them would see another share."""
    own = segmenter.with_settings(method="gla" if name == "merged" else name, **SHIFTS[name]).model.settings
    blocks = replace(own, method=replace(own.method, block_size=30), tower_batch=2)
    images = [IMAGE, np.random.default_rng(1).integers(0, 256, IMAGE.shape, dtype=np.uint8)]
    expected = [counts_of_the_oracle(segmenter.with_config(own), image) for image in images]
    one, tokens = map(sum, zip(*expected, strict=True))
    assert 0 < one < tokens
    question = segmenter.question(parse_classes(["sand", "water"]))[1]

    def counts(config, devices=None, **options):
        mesh = devices and make_mesh(*devices)
        model = Segmenter(segmenter.clip, segmenter.vfm, config, mesh=mesh).model
        ready = (Ready(index, model.prepare(image)) for index, image in enumerate(images))
        found = label_images(model, ready, question, Stopwatch(), counting=True, **options)
        return [tuple(map(int, prediction.one_key)) for _, prediction in found]

    assert counts(blocks, batch=1) == expected
    assert counts(blocks, batch=2) == expected
    assert counts(replace(own, method=replace(own.method, attention="dense")), batch=1) == expected
    assert counts(blocks, devices=(2,)) == expected  # eight devices, four to an image
    assert counts(blocks, devices=(1,), scores=True) == expected  # eight to an image, scored on one of them
    monkeypatch.setattr(module, "MAX_PROGRAM_WINDOWS", 3)
    monkeypatch.setattr(pipeline, "QUERY_CHUNK", 50)
    assert counts(replace(blocks, method=replace(blocks.method, block_size=12))) == expected


def test_a_method_of_its_own_weights_counts_keys_from_its_cutoff_on():
    """CLIP-DINOiser's pooling: the same of all forms, blocks and all."""
    rng = np.random.default_rng(3)
    features, values = rng.normal(size=(5, 16, 6)).astype(np.float32), rng.normal(size=(5, 16, 4)).astype(np.float32)
    keys = oracle.l2(features.reshape(80, -1).astype(np.float64))
    method = replace(METHODS["clip-dinoiser"], global_buffer=True, block_size=12)
    expected = (keys @ keys.T >= BASELINES["clip-dinoiser"].cutoff).sum(1)
    for form in ("dense", "blockwise"):
        own = replace(method, attention=form)
        buffer = image_buffer(jnp.asarray(features), jnp.asarray(values), jnp.ones(5, bool), own)
        found = attend_buffer(buffer, jnp.float32(5), own, counting=True)
        np.testing.assert_array_equal(found.kept, expected)


def test_nothing_is_counted_unless_it_is_asked_for(segmenter):
    """The published path would pay for it; labels must not depend on it either."""
    model = segmenter.with_settings(alpha_beta=0.8).model
    (plain,), (counted,) = (model.counted([model.prepare(IMAGE)], counting=counting) for counting in (False, True))
    assert plain.one_key is None
    np.testing.assert_array_equal(plain.rows, counted.rows)
    baseline = segmenter.with_settings(method="naclip").model
    assert baseline.counted([baseline.prepare(IMAGE)])[0].one_key is None


def test_the_table_of_an_ablation_names_settings_under_which_many_tokens_keep_one_key():
    settings = tuple(Setting(name, CONFIG) for name in ("good", "bad", "no attention by features"))
    tallies = [Tally(Areas.zeros(2), BoundaryCounts.zeros(), 1.0, own) for own in ((1, 10), (6, 20), (0, 0))]
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
        image = np.random.default_rng(number).integers(0, 256, IMAGE.shape, dtype=np.uint8)
        Image.fromarray(image).save(root / "images" / f"{number}.png")
        Image.fromarray((image[..., 0] > 127).astype(np.uint8)).save(root / "labels" / f"{number}.png")
    (root / "classes.txt").write_text("sand\nwater")
    return root


def test_segment_says_once_that_most_of_the_method_is_idle(segmenter, tmp_path, monkeypatch):
    """The towers stand in one program alone: no image goes through them a second time to be counted.

    The published numbers with DINO's features are not looked at.
    """
    images = sorted((folder_of(tmp_path / "data") / "images").iterdir())
    traced, encode, label_images, counting = [], ClipImage.encode, run.label_images, []
    monkeypatch.setattr(ClipImage, "encode", lambda *inputs: traced.append(1) or encode(*inputs))

    def noted(*inputs, **options):
        counting.append(options["counting"])
        return label_images(*inputs, **options)

    monkeypatch.setattr(run, "label_images", noted)
    for fields, times in (({"alpha_beta": 1000.0}, 1), ({}, 0)):
        traced.clear()
        fields["tower_batch"] = 5  # of no other test, so that nothing is compiled before
        task = run.Task(segmenter.with_settings(**fields), parse_classes(["sand", "water"]))
        said, folder = [], tmp_path / f"out{times}"
        folder.mkdir()
        run.segment_files(task, images, folder, Processes(), said.append)
        assert sum("keep one single key, so most of the method is idle" in text for text in said) == times
        assert len(traced) == 1
    assert counting == [True, False]


def test_a_calibrated_dino_is_looked_at_too(segmenter):
    assert one_key.is_published(segmenter.model)
    assert not one_key.is_published(segmenter.with_settings(calibration="centred").model)


def test_eval_counts_it_alone_on_a_mesh_and_in_shards(segmenter, tmp_path, capsys):
    """Whatever way a run goes, its results and its report hold one share, to the last digit."""
    config = replace(segmenter.with_settings(alpha_beta=0.8).model.settings, windows=CONFIG.windows)
    (tmp_path / "p.json").write_text(json.dumps(preset_content(config, "gla", "sclip-prompts", {})))
    options = ["--data", str(folder_of(tmp_path / "data", 5)), "--preset", str(tmp_path / "p.json")]
    words = ["eval", "folder", *options, "--model", segmenter.name, "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    assert "keep one single key" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "mesh"), "--mesh", "2x4"]) == 0
    for index in range(2):
        assert main([*words, str(tmp_path / "shards"), "--shard", f"{index}/2"]) == 0
    assert main(["eval", "merge", str(tmp_path / "shards")]) == 0
    changed = segmenter.with_settings(alpha_beta=0.8)
    images = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "data/images").iterdir())]
    one, tokens = map(sum, zip(*(counts_of_the_oracle(changed, image) for image in images), strict=True))
    assert one > 0.2 * tokens
    for name in ("one", "mesh", "shards"):
        content = json.loads((tmp_path / name / "results.json").read_text())
        assert content["one_key"] == {"percent": 100 * one / tokens, "images": 5}
        assert any("keep one single key" in warning for warning in content["warnings"])
        assert "keeps one single key" in (tmp_path / name / "report.md").read_text()
