"""CLIP-DINOiser from its checkpoint to labels: a trained baseline is the published one or refused."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch

from gla_jax import Segmenter, make_mesh
from gla_jax.checkpoints.model_folder import ClipSpec, read_checkpoint, write_checkpoint
from gla_jax.cli import main
from gla_jax.config import METHODS, SegmenterConfig, WindowConfig, without_gla
from gla_jax.convert import convert
from gla_jax.images.windows import cut_windows
from gla_jax.pipeline import segment_features, segment_in_steps
from gla_jax.support.errors import ConversionError, ModelError, UserError
from gla_jax.text.prompts import parse_classes
from gla_jax.tiny_world.vocabulary import TEMPLATES, tokenizer_files
from gla_jax.window_tokens import foreground_logits
from tests import oracle
from tests.small_models import IMAGE, VFM, random_params, small_clip

CLIP = ClipSpec(replace(IMAGE, depth=4), small_clip().text)
SIZES = WindowConfig(None, crop=32, stride=16)
CONFIG = SegmenterConfig(without_gla("clip-dinoiser"), SIZES, logit_scale=100.0, average="probabilities")
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
CLASSES = ["wood", "a blue cloth", "a red cloth"]


def checkpoint(path, width=16, projected=6, **more):
    """A file as the release writes it, with random layers."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    shapes = {
        "obj_proj.weight": (projected, width, 3, 3),
        "obj_proj.bias": (projected,),
        "bkg_decoder.weight": (1, width, 1, 1),
        "bkg_decoder.bias": (1,),
    }
    state = {name: draw(shape) for name, shape in shapes.items()}
    state["bkg_decoder.bias"] -= 1.6  # under the weights of the tests some patches are foreground, others are not
    torch.save({"state_dict": state | more, "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinoiser")
    write_checkpoint(folder / "clip", CLIP, random_params(CLIP, 0), {}, tokenizer_files(), templates=TEMPLATES)
    write_checkpoint(folder / "vfm", VFM, random_params(VFM, 1), {})
    convert("clip-dinoiser", checkpoint(folder / "last.pt"), folder / "clip-dinoiser")
    return folder


@pytest.fixture(scope="module")
def segmenter(folders):
    return Segmenter.from_pretrained(folders, CONFIG)


def test_the_command_converts_the_layers_bit_for_bit(tmp_path, capsys):
    path = checkpoint(tmp_path / "last.pt", **{"clip_backbone.x": torch.ones(2)})
    assert main(["convert", "clip-dinoiser", str(path), str(tmp_path / "layers")]) == 0
    assert "4 tensors converted, 1 dropped" in capsys.readouterr().out
    found, state = read_checkpoint(tmp_path / "layers"), torch.load(path)["state_dict"]
    assert (found.family, found.spec.width, found.spec.projected) == ("clip-dinoiser", 16, 6)
    kernel = state["obj_proj.weight"].numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(found.params["projection"]["kernel"], kernel)
    np.testing.assert_array_equal(
        found.params["background"]["kernel"], state["bkg_decoder.weight"].numpy().reshape(1, 16).T
    )


def test_the_layers_are_no_model_to_verify(tmp_path, capsys):
    path = str(checkpoint(tmp_path / "last.pt"))
    assert main(["convert", "clip-dinoiser", path, str(tmp_path / "layers"), "--verify"]) != 0
    assert "CLIP-DINOiser's layers alone are none; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "layers").exists()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"bkg_decoder.weight": torch.ones(1, 9, 1, 1)}, "bkg_decoder.weight gives"),
        ({"head.weight": torch.ones(1)}, "no rule covers head"),
    ],
)
def test_other_files_are_refused_with_the_tensor(tmp_path, more, reason):
    with pytest.raises(ConversionError, match=reason):
        convert("clip-dinoiser", checkpoint(tmp_path / "last.pt", **more), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_the_layers_is_one_sentence(folders, tmp_path):
    """A method without its weights must not run as something else."""
    with pytest.raises(
        UserError, match=r"clip-dinoiser reads CLIP-DINOiser's two trained layers, which the model lacks; .*OUT"
    ):
        Segmenter.from_pretrained(f"{folders}/clip", CONFIG)
    convert("clip-dinoiser", checkpoint(tmp_path / "last.pt", width=9), tmp_path / "other")
    with pytest.raises(ModelError, match=r"layers on tokens of width 9, but those of .* have 16"):
        Segmenter.from_pretrained(f"{folders}/clip+{tmp_path}/other", CONFIG)
    with pytest.raises(ModelError, match="CLIP-DINOiser's layers 2 times"):
        Segmenter.from_pretrained("+".join(f"{folders}/{part}" for part in ("clip", "clip-dinoiser", "clip-dinoiser")))


def test_the_layers_count_in_the_hash_of_a_model(folders, segmenter):
    pair = Segmenter.from_pretrained(f"{folders}/clip+{folders}/vfm", replace(CONFIG, method=METHODS["gla"]))
    assert pair.model_hash != segmenter.model_hash


def token_probabilities(segmenter, foreground_below=0.0):
    """In float64 from the features of the towers: softmax on tokens, the background layer, then stitching."""
    features, grid = segmenter.window_features(PIXELS)
    _, question = segmenter.question(parse_classes(CLASSES), CLASSES[0])
    logits = oracle.l2(np.asarray(features, np.float64)) @ np.asarray(question.text_embeddings, np.float64).T
    probabilities = oracle.softmax(100 * logits)[: grid.count]
    (layer,) = segmenter.model.foreground([segmenter.prepare(PIXELS)])
    background = (probabilities.max(-1) < foreground_below) & (np.asarray(layer)[: grid.count] <= 0)
    probabilities[background, 0] = 1
    rows = len(grid.row_starts), len(grid.column_starts)
    return oracle.stitch(probabilities, rows, (40, 60), 32, 16, (40, 60)), background


@pytest.mark.parametrize("below", [0.0, 0.68])
def test_probabilities_of_tokens_are_averaged(segmenter, below):
    """Averaging logits, as every other method does, is another baseline."""
    own = segmenter.with_settings(foreground_below=below)
    expected, background = token_probabilities(own, below)
    result = own(PIXELS, CLASSES, scores=True, background=CLASSES[0] if below else None)
    np.testing.assert_allclose(result.scores, expected, atol=1e-4)
    sure = np.diff(np.sort(expected, 0)[-2:], axis=0)[0] > 1e-4
    np.testing.assert_array_equal(result.labels[sure], expected.argmax(0)[sure])
    assert background.any() == bool(below)
    plain = own(PIXELS, CLASSES, background=CLASSES[0] if below else None)
    np.testing.assert_array_equal(plain.labels[sure], result.labels[sure])


def test_a_threshold_is_on_the_averaged_probability(segmenter):
    expected, _ = token_probabilities(segmenter)
    labels = segmenter(PIXELS, CLASSES, background=CLASSES[2], threshold=0.7).labels
    best = expected.max(0)
    sure = (np.abs(best - 0.7) > 1e-4) & (np.diff(np.sort(expected, 0)[-2:], axis=0)[0] > 1e-4)
    np.testing.assert_array_equal(labels[sure], np.where(best < 0.7, 2, expected.argmax(0))[sure])
    assert (best < 0.7).any()


def test_without_a_background_class_the_layer_is_refused(segmenter):
    with pytest.raises(UserError, match=r"foreground_below 0\.9 needs a class"):
        segmenter.with_settings(foreground_below=0.9)(PIXELS, CLASSES)
    with pytest.raises(UserError, match="tokens; give average probabilities"):
        segmenter.with_settings(foreground_below=0.9, average="logits")


@pytest.mark.parametrize("method", ["clip-dinoiser", "gla-clip-dinoiser"])
def test_stacked_towers_steps_and_meshes_give_the_same(segmenter, method):
    """Accelerators scan stacked blocks, large images go in steps, and meshes pass keys round a ring."""
    own = segmenter.with_settings(method=method, threshold=0.0)
    config, windows = own.config, jax.device_put(own.prepare(PIXELS).windows)
    expected = jax.jit(segment_features)(own.params, windows, config)
    stacked = jax.jit(segment_features)(own.params.stacked(), windows, config)
    np.testing.assert_allclose(stacked, expected, atol=1e-5 * np.abs(expected).max())
    layer, of_stacked = (
        jax.jit(foreground_logits)(params, windows, config) for params in (own.params, own.params.stacked())
    )
    np.testing.assert_allclose(layer, of_stacked, atol=1e-5)
    stepped = segment_in_steps(own.params, windows, replace(config, tower_batch=2))
    np.testing.assert_allclose(stepped, expected, atol=1e-5 * np.abs(expected).max())
    split = Segmenter(own.clip, own.vfm, own.model.settings, mesh=make_mesh(), dinoiser=own.dinoiser)
    labels = [each(PIXELS, CLASSES).labels for each in (own, split)]
    assert (labels[0] == labels[1]).mean() > 0.999


def test_cut_windows_are_what_the_layer_reads(segmenter):
    prepared = segmenter.prepare(PIXELS)
    windows = cut_windows(PIXELS, prepared.grid, prepared.count, prepared.mean)
    (layer,) = segmenter.model.foreground([prepared])
    np.testing.assert_array_equal(layer, jax.jit(foreground_logits)(segmenter.params, windows, segmenter.config))
