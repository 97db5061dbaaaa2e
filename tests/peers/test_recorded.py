"""Converted models compute what the code of the projects they come from computed (recorded by tests.peers.record)."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert import convert_state
from gla_jax.convert.sources import open_source
from gla_jax.towers.kinds import build_tower

DATA = Path(__file__).parent / "data"
CASES = sorted(path.name for path in DATA.iterdir())
TOLERANCE = 2e-5  # of the largest entry, as --verify has it


def errors_of(folder: Path) -> dict[str, float]:
    """The largest error of every recorded output, relative to its largest entry."""
    case, outputs = json.loads((folder / "case.json").read_text()), np.load(folder / "outputs.npz")
    source = open_source(folder / case["file"])
    if source.activation is not None:  # read_model does the same
        case["options"].setdefault("activation", source.activation)
    spec, params, *_ = convert_state(
        case["family"], source.state, source.config, pixels=source.pixels, **case["options"]
    )
    ours = {}
    for i in range(sum(name.startswith("pixels_") for name in outputs)):
        pixels = jnp.asarray(outputs[f"pixels_{i}"])
        if isinstance(spec, ClipSpec):
            ours[f"image_{i}"] = build_tower(spec.image).apply({"params": params["image"]}, pixels)
        else:
            tokens = build_tower(spec).apply({"params": params}, pixels)
            ours[f"tokens_{i}"] = np.concatenate([tokens.cls_token[:, None], tokens.patch_tokens], axis=1)
    if isinstance(spec, ClipSpec):
        ids = jnp.asarray(outputs["token_ids"], jnp.int32)
        ours["text"] = build_tower(spec.text).apply({"params": params["text"]}, ids)
    errors = {}
    for name, found in ours.items():
        theirs = outputs[name]
        if found.shape[1] != theirs.shape[1]:  # registers stand between the class token and the patches
            theirs = np.concatenate([theirs[:, :1], theirs[:, 1 + spec.registers :]], axis=1)
        errors[name] = float(np.abs(np.asarray(found) - theirs).max() / np.abs(theirs).max())
    return errors


@pytest.mark.parametrize("name", CASES)
def test_as_its_own_project_computes(name):
    errors = errors_of(DATA / name)
    assert {output: error for output, error in errors.items() if not error < TOLERANCE} == {}


def test_every_kind_of_source_is_recorded():
    assert {name.partition("_")[0] for name in CASES} == {"open", "openai", "timm", "transformers"}
    assert sum(path.stat().st_size for path in DATA.rglob("*")) < 5e6
