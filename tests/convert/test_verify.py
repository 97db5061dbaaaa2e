"""Every kind of source that converts can be verified; one that PyTorch cannot run is one sentence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gla_jax.convert import convert_state
from gla_jax.convert.reference import build_reference
from gla_jax.convert.sources import open_source
from gla_jax.convert.verify import compare, two_sizes
from gla_jax.support.errors import ConversionError
from tests.convert import published
from tests.convert.published import as_numpy, hub_names, saved

DATA = Path(__file__).parents[1] / "peers" / "data"
PEERS = [path.name for path in sorted(DATA.iterdir()) if not path.name.startswith("transformers")]
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)


def errors(state, converted, timm: bool = False) -> dict[str, float]:
    """What --verify measures for a source that transformers does not read itself."""
    reference = build_reference(state, converted.spec, timm=timm)
    return compare(converted.spec, converted.params, reference, two_sizes(IMAGE, converted.spec))


@pytest.mark.parametrize("name", PEERS)
def test_the_recorded_peers(name):
    case = json.loads((DATA / name / "case.json").read_text())
    source = open_source(DATA / name / case["file"])
    if source.activation is not None:
        case["options"].setdefault("activation", source.activation)
    converted = convert_state(case["family"], source.state, source.config, pixels=source.pixels, **case["options"])
    assert max(errors(source.state, converted, name.startswith("timm")).values()) < 2e-5


def test_an_mlp_that_is_no_multiple_of_the_width(tmp_path):
    """DINOv2's configuration in transformers has whole ratios alone."""
    state = as_numpy(hub_names(saved(published.dinov2_model(), tmp_path)[0]))
    state = {name: x for name, x in state.items() if name != "mask_token"}  # training's, which no stage reads
    for name in [name for name in state if ".mlp.fc1." in name]:
        state[name] = state[name][:40]
    for name in [name for name in state if name.endswith(".mlp.fc2.weight")]:
        state[name] = state[name][:, :40]
    converted = convert_state("dinov2", state, num_heads=4)
    assert converted.spec.mlp_width == 40
    assert max(errors(state, converted).values()) < 2e-5


def test_gated_layers_as_timm_packs_them(tmp_path):
    state = as_numpy(hub_names(saved(published.dinov2_model(swiglu=True), tmp_path)[0]))
    state = {name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): x for name, x in state.items()}
    assert max(errors(state, convert_state("dinov2", state, num_heads=4)).values()) < 2e-5


@pytest.mark.parametrize("shape", [(), (1,), None])
def test_the_scale_and_the_bias_of_the_logits_stop_nothing(shape):
    """open_clip can train both as vectors of one number."""
    source = open_source(DATA / "open_clip_gelu" / "open_clip_model.safetensors")
    state = {name: x for name, x in source.state.items() if name != "logit_scale"}
    if shape is not None:
        state |= {name: np.ones(shape, np.float32) for name in ("logit_scale", "logit_bias")}
    assert max(errors(state, convert_state("clip", state, source.config)).values()) < 2e-5


def test_what_pytorch_cannot_run_is_one_sentence(tmp_path, capfd):
    state = as_numpy(hub_names(saved(published.dino_model(), tmp_path)[0]))
    spec = convert_state("dino", state, num_heads=4).spec
    capfd.readouterr()
    with pytest.raises(ConversionError, match="cannot be run in PyTorch for verifying") as caught:
        build_reference(state, replace(spec, mlp_width=64))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the library would print a table and a bar
