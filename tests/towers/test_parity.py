"""Our towers against transformers' with the same random weights: every stage, three input sizes, float32.

The published sizes run whole for the models of the paper's tables; the others run small, with what sets them apart
(patch side, head width, activation, gating, registers). Position tables are those of the published models.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gla_jax.checkpoints.model_folder import ClipSpec
from gla_jax.convert.reference import reference_stages
from gla_jax.convert.verify import TOLERANCE, compare, random_texts, stage_errors, tower_stages
from gla_jax.towers.kinds import build_tower
from tests.towers.random_models import (
    clip_config,
    dino_config,
    dinov2_config,
    dinov3_config,
    metaclip2_config,
    random_pair,
    siglip_config,
    sizes,
    tips_config,
)

TEXT = sizes(64, 2, 2, vocab_size=100)
FULL = {
    "CLIP B/16": clip_config(
        sizes(768, 12, 12, image_size=224, patch_size=16), sizes(512, 12, 8, vocab_size=49408), 512, "quick_gelu"
    ),
    "CLIP L/14": clip_config(
        sizes(1024, 24, 16, image_size=224, patch_size=14), sizes(768, 12, 12, vocab_size=49408), 768, "quick_gelu"
    ),
    "DINO B/8": dino_config(768, 12, 12, patch=8),
    "DINOv2 S/14": dinov2_config(384, 12, 6),
    "DINOv2 B/14": dinov2_config(768, 12, 12),
}
SMALL = {
    "CLIP B/32": clip_config(sizes(128, 2, 2, image_size=224, patch_size=32), TEXT, 48, "quick_gelu"),
    "CLIP L/14-336": clip_config(sizes(128, 2, 2, image_size=336, patch_size=14), TEXT, 48, "quick_gelu"),
    "CLIP H/14": clip_config(sizes(160, 2, 2, image_size=224, patch_size=14), TEXT, 64, "gelu"),
    "MetaCLIP 2 B/16": metaclip2_config(sizes(128, 2, 2, image_size=224, patch_size=16), TEXT, 48, "gelu"),
    "CLIP bigG/14": clip_config(sizes(208, 2, 2, 1024, image_size=224, patch_size=14), TEXT, 80, "gelu"),
    "SigLIP B/16": siglip_config(sizes(128, 2, 2, image_size=224, patch_size=16), TEXT),
    "SigLIP so400m/14": siglip_config(sizes(144, 2, 2, 538, image_size=384, patch_size=14), TEXT),
    "DINO S/16": dino_config(128, 2, 2, patch=16),
    "DINO S/8": dino_config(128, 2, 2, patch=8),
    "DINO B/16": dino_config(192, 2, 3, patch=16),
    "DINOv2 L/14": dinov2_config(128, 5, 2),
    "DINOv2 g/14": dinov2_config(128, 2, 2, swiglu=True),
    "DINOv2 S/14 registers": dinov2_config(64, 2, 1, registers=4),
    "TIPSv2 B/14": tips_config(128, 3, 2),
    "TIPSv2 L/14": tips_config(192, 1, 3, side=224),
    "DINOv3 S/16": dinov3_config(128, 2, 2),
    "DINOv3 L/16": dinov3_config(192, 3, 3, registers=2, rope_theta=50.0, key_bias=True, layer_norm_eps=1e-6),
    "DINOv2 B/14 registers": dinov2_config(128, 2, 2, registers=4),
    "DINOv2 L/14 registers": dinov2_config(192, 3, 3, registers=4),
    "DINOv2 g/14 registers": dinov2_config(128, 2, 2, registers=4, swiglu=True),
}


def noise(*grid_and_patch):
    *grid, patch = grid_and_patch
    shape = (1, 3, grid[0] * patch, grid[1] * patch)
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def three_sizes(spec):
    """A square of 224 pixels or more, another square, and a size that is not square.

    A small model sees the side it was trained at and 224 pixels, or 336 where these are one; a large model sees 224
    and a small square, which are fast.
    """
    vision = getattr(spec, "image", spec)
    patch = vision.patch_size
    side, square = vision.image_size // patch, 224 // patch
    small = (side, 336 // patch if side == square else square)
    squares = small if vision.width <= 384 else (square, 9)
    return [noise(*grid, patch) for grid in (*((n, n) for n in squares), (6, 8))]


@pytest.mark.parametrize("name", [*FULL, *SMALL])
def test_every_stage(name):
    reference, spec, params = random_pair({**FULL, **SMALL}[name])
    errors = compare(spec, params, reference, three_sizes(spec))
    assert {stage: error for stage, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.parametrize("name", ["CLIP H/14", "SigLIP so400m/14", "DINO S/16", "DINOv2 g/14 registers"])
def test_every_block_fed_with_the_oracle_s_own_input(name):
    reference, spec, params = random_pair(SMALL[name])
    pixels = three_sizes(spec)[-1]
    if isinstance(spec, ClipSpec):
        towers = {f"{part} ": (build_tower(getattr(spec, part)), params[part]) for part in ("image", "text")}
        theirs = reference_stages(reference, pixels, random_texts(spec))
    else:
        towers = {"": (build_tower(spec), params)}
        theirs = reference_stages(reference, pixels)
    for prefix, (tower, weights) in towers.items():
        stages = [theirs[name] for name in theirs if name.startswith((f"{prefix}embedded", f"{prefix}block"))]
        causal = (jnp.tril(jnp.ones((77, 77), bool)),) if prefix + name[:4] == "text CLIP" else ()
        run = jax.jit(lambda w, x, tower=tower, causal=causal: tower.bind({"params": w}).blocks[0](x, *causal))
        for index, (given, expected) in enumerate(itertools.pairwise(stages)):
            ours = np.asarray(run({**weights, "blocks_0": weights[f"blocks_{index}"]}, given))
            # One block alone: the sums of its largest products differ in order, nothing accumulates.
            assert np.abs(ours - expected).max() < 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["CLIP H/14", "SigLIP so400m/14", "DINO S/16", "DINOv2 g/14 registers"])
def test_every_parameter_is_seen(name):
    """Noise of a hundredth on any one parameter shows in some stage: what is compared depends on all of them."""
    _, spec, params = random_pair(SMALL[name])
    pixels, texts = three_sizes(spec)[-1], random_texts(spec) if isinstance(spec, ClipSpec) else None
    right = tower_stages(spec, params, pixels, texts)
    leaves, tree = jax.tree.flatten_with_path(params)
    random, unseen = np.random.default_rng(0), []
    for index, (path, leaf) in enumerate(leaves):
        changed = [leaf for _, leaf in leaves]
        changed[index] = leaf + 0.01 * np.abs(leaf).max() * random.standard_normal(leaf.shape, dtype=np.float32)
        errors = stage_errors(tower_stages(spec, jax.tree.unflatten(tree, changed), pixels, texts), right)
        if max(errors.values()) < TOLERANCE:
            unseen.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    # softmax(q (k + b)^T) does not depend on b: only the opened last block of the image tower shows its keys.
    assert [path for path in unseen if not path.endswith("key/bias")] == []


@pytest.mark.parametrize(
    ("name", "part", "change"),
    [
        ("CLIP H/14", "image", {"activation": "quick_gelu"}),
        ("CLIP H/14", "text", {"activation": "quick_gelu"}),
        ("CLIP H/14", "image", {"num_heads": 1}),
        ("CLIP H/14", "text", {"num_heads": 1}),
        ("CLIP H/14", "text", {"end_token": 98}),
        ("SigLIP B/16", "image", {"num_heads": 4}),
        ("SigLIP B/16", "text", {"activation": "quick_gelu"}),
        ("SigLIP B/16", "image", {"position_resize": "bicubic_antialias"}),
        ("DINO S/16", None, {"num_heads": 4}),
        ("DINOv2 B/14 registers", None, {"num_heads": 4}),
        ("DINOv2 B/14 registers", None, {"layer_norm_eps": 1e-3}),
    ],
    ids=str,
)
def test_a_wrong_spec_is_noticed(name, part, change):
    reference, spec, params = random_pair(SMALL[name])
    if part is None:
        wrong = dataclasses.replace(spec, **change)
    else:
        wrong = dataclasses.replace(spec, **{part: dataclasses.replace(getattr(spec, part), **change)})
    errors = compare(wrong, params, reference, three_sizes(spec)[-1:])
    assert max(errors.values()) > 10 * TOLERANCE
