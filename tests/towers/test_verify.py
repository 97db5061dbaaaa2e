"""verify() on real files: transformers folders, and other published names renamed without the converter's rules.

Each source behaves as the code it comes from: torch.hub's resizes positions in another way than transformers.
"""

import io
import sys

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.numpy import load_file, save_file

from gla_jax.checkpoints.model_folder import read_spec
from gla_jax.convert import convert
from gla_jax.convert.verify import TOLERANCE, Verification, drawn_image, stage_errors, two_sizes, verify
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.towers.random_models import randomise

MODELS = {
    "clip": (published.clip_model, {}, published.openai_names),
    "dino": (published.dino_model, {}, published.hub_names),
    "dinov2": (published.dinov2_model, {}, published.hub_names),
    "dinov2 giant with registers": (published.dinov2_model, {"registers": 4, "swiglu": True}, published.hub_names),
}


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """(folder saved by transformers, the same under the names of the project it came from, their conversions)."""
    make, options, rename = MODELS[request.param]
    root = tmp_path_factory.mktemp("verify")
    state, _ = published.saved(randomise(make(**options), 0), root / "saved")
    published.write_tokenizer(root / "saved")
    torch.save(rename(state), root / "published.pth")
    family = request.param.split()[0]
    convert(family, root / "saved", root / "model")
    if family == "clip":
        return root / "saved", root / "published.pth", root / "model", root / "model"
    convert(family, root / "published.pth", root / "model of published", num_heads=4)
    return root / "saved", root / "published.pth", root / "model", root / "model of published"


def test_a_converted_model_passes_whatever_its_tensors_were_called(models):
    saved, other, of_saved, of_other = models
    image = np.random.default_rng(1).integers(0, 256, (50, 37, 3), np.uint8)
    for source, model in ((saved, of_saved), (other, of_other)):
        result = verify(model, source, [image])
        assert result.passed, result.errors
        assert any(error > 0 for error in result.errors.values())


def test_positions_resized_in_the_way_of_another_source_do_not_pass(models):
    saved, other, of_saved, of_other = models
    offsets = [getattr(read_spec(model)[1], "position_offset", 0.0) for model in (of_saved, of_other)]
    assert offsets[0] == 0.0
    for source, model in ((saved, of_other), (other, of_saved)):
        errors = verify(model, source, [np.full((50, 37, 3), 99, np.uint8)]).errors
        worst = max(errors[stage] for stage in errors if stage.endswith("embedded"))
        assert (worst > 100 * TOLERANCE) == (offsets[1] == 0.1), errors


def test_other_weights_do_not_pass(models, tmp_path):
    saved, _, model, _ = models
    state = load_file(saved / "model.safetensors")
    name = next(name for name in sorted(state) if name.endswith(("fc2.bias", "weights_out.bias", "output.dense.bias")))
    state[name] = state[name] + np.linspace(-0.1, 0.1, len(state[name]), dtype=np.float32)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    result = verify(model, tmp_path)
    assert not result.passed
    assert result.errors[next(iter(result.errors))] < TOLERANCE  # the tokens before that block are still the same


def test_a_source_that_leaves_tensors_to_chance_is_refused(models, tmp_path):
    _, other, _, model = models
    state = torch.load(other)
    del state["visual.ln_post.bias" if "visual.proj" in state else "norm.bias"]
    torch.save(state, tmp_path / "published.pth")
    with pytest.raises(ConversionError, match=r"does not give .*norm\.bias"):
        verify(model, tmp_path / "published.pth")


def test_without_pytorch_one_sentence(models, monkeypatch):
    saved, other, model, _ = models
    monkeypatch.setitem(sys.modules, "torch", None)
    for source in (saved, other):
        with pytest.raises(ConversionError, match="install torch, or convert without --verify"):
            verify(model, source)


def test_the_table_says_which_stage_is_wrong():
    console = Console(width=100, file=io.StringIO())
    console.print(Verification({"embedded": 1e-7, "block 1": 3e-3}).table())
    text = console.file.getvalue()
    assert "NOT the same model" in text
    assert "3.0e-03" in text
    console.print(Verification({"embedded": 1e-7}).table())
    assert "every stage agrees within 2e-05" in console.file.getvalue()


def test_errors_are_relative_to_the_largest_entry():
    theirs = {"a": np.array([1.0, -8.0]), "b": np.array([2.0])}
    assert stage_errors({"a": np.array([1.5, -8.0]), "b": np.array([2.0])}, theirs) == {"a": 0.0625, "b": 0.0}
    assert stage_errors({"a": np.array([np.nan, -8.0]), "b": np.array([2.0])}, theirs)["a"] == np.inf
    with pytest.raises(ValueError, match="not have the same stages"):
        stage_errors({"a": np.array([1.5, -8.0, 0.0]), "b": np.array([2.0])}, theirs)
    with pytest.raises(ValueError, match="not have the same stages"):
        stage_errors({"a": np.array([1.5, -8.0])}, theirs)


def test_images_are_seen_at_two_sizes(models):
    spec = read_spec(models[2])[1]
    square, own = two_sizes(drawn_image(), spec)
    assert square.shape == (1, 3, 24, 24)
    assert own.shape == (1, 3, 240, 320)
    assert two_sizes(drawn_image()[:9, :5], spec)[1].shape == (1, 3, 8, 8)
    assert two_sizes(np.zeros((500, 460, 3), np.uint8), spec)[1].shape == (1, 3, 448, 448)
    white = two_sizes(np.full((24, 24, 3), 255, np.uint8), spec)[0]
    red = (1 - 0.48145466) / 0.26862954 if "text" in vars(spec) else (1 - 0.485) / 0.229
    np.testing.assert_allclose(white[0, 0], red, rtol=1e-6)
