"""Check converted weights against PyTorch: the same pixels and texts through both, every named stage compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from gla_jax.checkpoints.model_folder import Checkpoint, ClipSpec, Params, Spec, read_checkpoint
from gla_jax.convert.configs import is_timm, is_transformers
from gla_jax.convert.model_folder import Conversion
from gla_jax.convert.reference import Stages, build_reference, load_reference, named_stages, reference_stages
from gla_jax.convert.sources import Source, open_source
from gla_jax.images.resize import resize_uint8
from gla_jax.support.arrays import Float, Int, UInt8
from gla_jax.support.errors import ModelError
from gla_jax.support.files import read_json
from gla_jax.towers.attention import multi_head_attention
from gla_jax.towers.kinds import build_tower
from gla_jax.towers.layers import TextSpec, VisionSpec

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import PreTrainedModel

# Two float32 runs add the same products in another order, which is a few units in the last place (6e-8) a sum; random
# weights of every published size stay under 3e-6 of the largest entry. A wrong activation, head count or kernel gives
# 1e-3 and more.
TOLERANCE = 2e-5
LARGEST_SIDE = 448  # of a verified image: spares memory on the largest towers


@dataclass(frozen=True)
class Verification:
    """The largest error of every stage, relative to the largest entry of PyTorch's.

    checked: what PyTorch's side took from elsewhere than the conversion. unchecked: {name: "value: reason"}, what both
    sides have from the conversion, so that a wrong one would not show.
    """

    errors: Mapping[str, float]
    checked: str = ""
    unchecked: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when every stage is within the tolerance."""
        return all(error <= TOLERANCE for error in self.errors.values())

    def table(self) -> "Table":
        """One row a stage, for printing, and below them what was checked and what was not."""
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        verdict = f"every stage agrees within {TOLERANCE:g}" if self.passed else "NOT the same model"
        lines = [f"checked: {self.checked}"] if self.checked else []
        lines += [f"NOT checked: {name}, {value}" for name, value in self.unchecked.items()]
        table = Table(
            title=f"Against PyTorch: {verdict}",
            caption=escape("\n".join(lines)) or None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            min_width=60,
        )
        table.add_column("stage")
        table.add_column("largest error / largest entry", justify="right")
        for stage, error in self.errors.items():
            table.add_row(stage, f"[{'red' if error > TOLERANCE else 'green'}]{error:.1e}")
        return table


Images = Sequence[UInt8[np.ndarray, "h w 3"]]


def verify(
    model: Checkpoint | Path | str, source: Path | str, images: Images = (), *, offline: bool = False
) -> Verification:
    """Run a model folder and the weights it was converted from, the latter in PyTorch, and compare every stage.

    images: RGB, each seen at the size of pretraining and near its own; none means one that is drawn. Raises
    ConversionError when PyTorch is missing or cannot run the source, ModelError when the folder cannot be read.
    """
    checkpoint = model if isinstance(model, Checkpoint) else read_checkpoint(model)
    manifest = read_json(checkpoint.folder / "manifest.json", "the manifest", "convert the weights again", ModelError)
    assumed = manifest.get("assumed", {}) if isinstance(manifest, dict) else {}
    return _verify(checkpoint.spec, checkpoint.params, assumed, open_source(source, offline=offline), images)


def verify_conversion(conversion: Conversion, images: Images = ()) -> Verification:
    """The same for a conversion that is not written yet."""
    return _verify(conversion.spec, conversion.params, conversion.manifest["assumed"], conversion.source, images)


def _verify(spec: Spec, params: Params, assumed: Mapping[str, str], source: Source, images: Images) -> Verification:
    unchecked = dict(assumed)
    if source.files[0].startswith(("model.", "pytorch_model.")) and is_transformers(source.config):
        reference = load_reference(source.folder, spec)
        checked = "tensors, activation, heads and epsilon, as transformers reads the source itself"
    else:
        reference = build_reference(source.state, spec, timm=is_timm(source.config))
        checked = "tensors, by a second table of their names"
        if source.config is not None or source.activation is not None:
            unchecked["configuration"] = "activation, heads and epsilon are as the conversion read them in the source"
    batches = [pixels for image in images or [drawn_image()] for pixels in two_sizes(image, spec)]
    return Verification(compare(spec, params, reference, batches), checked, unchecked)


def two_sizes(image: UInt8[np.ndarray, "h w 3"], spec: Spec) -> list[Float[np.ndarray, "1 3 h w"]]:
    """Normalised pixels of an image at the square size of pretraining and at whole patches near its own size."""
    vision = spec.image if isinstance(spec, ClipSpec) else spec
    mean, std = (np.array(x, np.float32) for x in (vision.pixel_mean, vision.pixel_std))
    near = tuple(max(min(side, LARGEST_SIDE) // vision.patch_size, 1) * vision.patch_size for side in image.shape[:2])
    resized = (resize_uint8(image, size) for size in ((vision.image_size, vision.image_size), near))
    return [((x / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].copy() for x in resized]


def drawn_image() -> UInt8[np.ndarray, "240 320 3"]:
    """Smooth blobs of random colour."""
    return resize_uint8(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8), (240, 320))


def tower_stages(
    spec: Spec,
    params: Params,
    pixels: Float[np.ndarray, "B 3 h w"],
    token_ids: Int[np.ndarray, "Q t"] | None = None,
) -> Stages:
    """Every named stage of our towers in float32 at highest matmul precision; names as in reference_stages."""
    if not isinstance(spec, ClipSpec):
        stages = _feature_stages(spec, params, pixels)
    else:
        stages = _image_stages(spec.image, params["image"], pixels)
        if token_ids is not None:
            stages |= _text_stages(spec.text, params["text"], token_ids)
    return jax.tree.map(np.asarray, stages)


@partial(jax.jit, static_argnums=0)
def _feature_stages(spec: VisionSpec, params: Params, pixels: jax.Array) -> dict[str, jax.Array]:
    tokens = build_tower(spec).apply({"params": params}, pixels)
    return {
        **named_stages("embedded", "block", [tokens.embedded, *tokens.blocks]),
        "class token": tokens.cls_token,
        "patch tokens": tokens.patch_tokens,
    }


@partial(jax.jit, static_argnums=0)
def _image_stages(spec: VisionSpec, params: Params, pixels: jax.Array) -> dict[str, jax.Array]:
    tower = build_tower(spec).bind({"params": params})
    tokens = tower.encode(pixels)
    attended = multi_head_attention(tokens.qkv, spec.num_heads)
    features = {"patch tokens": tower.features(tokens)} if spec.gives_features else {}
    return {
        **named_stages("image embedded", "image block", [tokens.embedded, *tokens.blocks]),
        "image queries": tokens.qkv.queries,
        "image keys": tokens.qkv.keys,
        "image values": tokens.qkv.values,
        "image values, joint": tower.project(tokens.qkv.values),
        "image tokens, joint": tower.project(attended, tokens.residual),
        "image feature": tower.image_feature(tokens),
        **features,
    }


@partial(jax.jit, static_argnums=0)
def _text_stages(spec: TextSpec, params: Params, token_ids: jax.Array) -> dict[str, jax.Array]:
    tower = build_tower(spec).bind({"params": params})
    blocks = tower.encode(token_ids)
    tokens = tower.norm_final(blocks[-1])
    return {
        **named_stages("text embedded", "text block", blocks[:-1]),
        "text tokens": tokens,
        "text feature": tower.text_feature(tokens, token_ids),
    }


def stage_errors(ours: Stages, theirs: Stages) -> dict[str, float]:
    """The largest error of every stage, relative to the largest entry of theirs; NaN counts as infinite.

    Raises ValueError when the two do not have the same stages and shapes.
    """
    if {name: x.shape for name, x in ours.items()} != {name: x.shape for name, x in theirs.items()}:
        raise ValueError(f"the two runs do not have the same stages: {sorted(ours)} against {sorted(theirs)}")
    errors = {name: float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max()) for name in theirs}
    return {name: error if np.isfinite(error) else float("inf") for name, error in errors.items()}


def compare(
    spec: Spec, params: Params, reference: "PreTrainedModel", images: Sequence[Float[np.ndarray, "B 3 h w"]]
) -> dict[str, float]:
    """The largest error of every stage over batches of normalised pixels, with random texts for CLIP."""
    token_ids = random_texts(spec) if isinstance(spec, ClipSpec) else None
    worst: dict[str, float] = {}
    for pixels in images:
        ours, theirs = (tower_stages(spec, params, pixels, token_ids), reference_stages(reference, pixels, token_ids))
        for name, error in stage_errors(ours, theirs).items():
            worst[name] = max(error, worst.get(name, 0.0))
        token_ids = None  # the texts are the same for every image
    return worst


def random_texts(spec: ClipSpec, count: int = 3) -> Int[np.ndarray, "Q t"]:
    """Random token ids, each row ended at a place of its own, by the end token if there is one, and padded with 0."""
    random = np.random.default_rng(0)
    end = spec.text.end_token
    ids = random.integers(1, spec.text.vocabulary - 1, (count, spec.text.context), dtype=np.int32)
    ids += ids >= (spec.text.vocabulary if end is None else end)
    for row, place in enumerate(random.integers(1, spec.text.context, count)):
        ids[row, place], ids[row, place + 1 :] = end or 0, 0
    return ids
