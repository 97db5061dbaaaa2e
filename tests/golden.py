"""Checks the method against recorded outputs of the official implementation:

python -m tests.golden FILE... [--form blockwise|dense|ring] [--precision highest|high|fast] [--part-dtype bfloat16]

One line a case: the largest error relative to the largest entry and the share of rows over 1e-5, of what the method
gives, of the stitched logits and of DINO's tokens; the agreement of labels. Exits with 1 when a case is outside the
limits, 2 when a file is not of the format. The limits: 99.5 % of rows within 1e-5 (float32 rounding flips a mask bit in
the others), 92 % of the pixels of stitched logits, over which such a row spreads, labels equal on 99.99 % of pixels.
The ring runs on all devices, eight of the CPU. tests/golden/ holds one such file, which the suite checks.
"""

import argparse
import json
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from gla_jax.attention.attend import aggregate_values
from gla_jax.attention.ring import WINDOW_AXIS
from gla_jax.config import BASELINES as TABLE
from gla_jax.config import PRECISIONS, Form, MethodConfig, PartDtype, SegmenterConfig, WindowConfig, without_gla
from gla_jax.convert import convert_clip_image, convert_state
from gla_jax.images.windows import IMAGENET_MEAN, IMAGENET_STD, Windows, cut_windows, normalise, window_grid
from gla_jax.labels.stitch import stitch, stitch_plan, token_grid
from gla_jax.pipeline import (
    SegmenterParams,
    WindowTokens,
    aggregate_windows,
    encode_windows,
    patch_features,
    token_logits,
)
from gla_jax.support.arrays import Array, l2_normalize
from gla_jax.support.errors import ConversionError
from gla_jax.towers.dinoiser import FROM_LAST
from gla_jax.towers.kinds import build_tower
from gla_jax.window_tokens import foreground_logits

ROW_LIMIT = 1e-5
ROWS_OVER = 0.005
# A token reaches four times its own area between its neighbours, and up to four windows show a pixel.
PIXELS_OVER = 16 * ROWS_OVER
LABELS_EQUAL = 0.9999
BASELINES = {
    "ProxyCLIP": "proxyclip",
    "ClearCLIP": "clearclip",
    "MaskCLIP": "maskclip",
    "SCLIP": "sclip",
    "CLIP": "clip",
    "vanilla": "vanilla",
}
LAYERS = ("obj_proj.", "bkg_decoder.")  # CLIP-DINOiser's
SETTINGS = {
    "initial_crit_pos",
    "mini_iters",
    "beta_alpha",
    "gamma_alpha",
    "token_norm",
    "dynamic_beta",
    "dynamic_gamma",
    "proxy_sim",
    "KV_token_extension",
    "temperature",
}


class Content(dict[str, Any]):
    """What a file holds, by name. Raises ValueError for a name it lacks."""

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"it has no {name}")


class Errors(NamedTuple):
    """Rows against recorded rows: the largest error relative to the largest entry, the share of rows over the limit."""

    largest: float
    rows_over: float

    def __str__(self) -> str:
        return f"{self.largest:8.1e} {self.rows_over:7.3%}"


@dataclass(frozen=True)
class Result:
    """How one case compares: the method's values and, end to end, stitched logits, DINO's tokens and labels."""

    name: str
    values: Errors
    logits: Errors | None = None
    tokens: Errors | None = None
    labels: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the case is within the limits."""
        rows = [errors.rows_over for errors in (self.values, self.tokens) if errors is not None]
        pixels = [] if self.logits is None else [self.logits.rows_over]
        within = all(share <= ROWS_OVER for share in rows) and all(share <= PIXELS_OVER for share in pixels)
        return within and (self.labels is None or self.labels >= LABELS_EQUAL)

    def __str__(self) -> str:
        columns = [
            f"{self.name:44s} largest {self.values.largest:8.1e}",
            f"rows over {self.values.rows_over:7.3%}",
            "" if self.logits is None else f"logits {self.logits}",
            "" if self.tokens is None else f"tokens {self.tokens}",
            "" if self.labels is None else f"labels equal {self.labels:9.4%}",
            "ok" if self.passed else "OUTSIDE THE LIMITS",
        ]
        return "  ".join(filter(None, columns))


def method_of(config: Mapping[str, Any], baseline: str, global_buffer: bool, **fields: str | None) -> MethodConfig:
    """The official settings, by their official names, as ours, with the fields on top.

    Raises ValueError for a name it does not know.
    """
    unknown = sorted(config.keys() - SETTINGS)
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}")
    return MethodConfig(
        baseline=baseline,
        global_buffer=global_buffer,
        proxy_anchors=config.get("proxy_sim", False),
        anchor_iterations=config.get("mini_iters", 2),
        anchor_threshold=config.get("initial_crit_pos", 0.55),
        row_mean=config.get("token_norm", False),
        dynamic_shift=config.get("beta_alpha", 0.3) if config.get("dynamic_beta") else None,
        dynamic_scale=config.get("gamma_alpha", 30.0) if config.get("dynamic_gamma") else None,
        temperature=config.get("temperature", 1.0),
        **fields,
    )


def compare(rows: np.ndarray, expected: np.ndarray) -> Errors:
    """Rows [... C] against rows [... C]; what is not a number is over the limit. Raises ValueError for other shapes."""
    if np.shape(rows) != expected.shape:
        raise ValueError(f"it holds an array {list(expected.shape)} where the method gives {list(np.shape(rows))}")
    with np.errstate(all="ignore"):  # a recording of zeros or NaN gives NaN, and fails
        error = np.abs(np.asarray(rows, np.float64) - expected).max(-1) / np.abs(expected).max()
    return Errors(float(error.max()), float((~(error <= ROW_LIMIT)).mean()))


@cache
def program(function: Callable, split: int, form: Form) -> Callable:
    """A function compiled; ring: its first `split` arguments and its result are split over all devices by windows."""
    if form != "ring":
        return jax.jit(function)
    by_window = PartitionSpec(WINDOW_AXIS)
    mesh = jax.make_mesh((jax.device_count(),), (WINDOW_AXIS,), (AxisType.Auto,))
    specs = (*(by_window,) * split, *(PartitionSpec(),) * (function.__code__.co_argcount - split))
    ring = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=by_window))

    def padded(*arguments: Any) -> Array:
        windows = len(jax.tree.leaves(arguments[0])[0])
        missing = -windows % jax.device_count()  # zeros, which valid marks as no windows

        def pad(leaf: Any) -> np.ndarray:
            return np.pad(np.asarray(leaf), ((0, missing), *((0, 0),) * (np.ndim(leaf) - 1)))

        return jnp.asarray(np.asarray(ring(*jax.tree.map(pad, arguments[:split]), *arguments[split:]))[:windows])

    return padded


def _attended(features: Array, values: Array, valid: Array, method: MethodConfig) -> Array:
    return aggregate_values(features, values, valid, method)


def check_attention(
    data: Mapping[str, np.ndarray], meta: Mapping[str, Any], form: Form, fields: Mapping[str, str | None]
) -> Iterator[Result]:
    """The attention stage alone: features [W S D] and values [W H n K] to [W S H*K]."""
    features = jnp.asarray(data["features"])
    values = data["values"].transpose(0, 2, 1, 3)
    values = jnp.asarray(values.reshape(*values.shape[:2], -1))
    valid = jnp.ones(len(features), bool)
    for case in meta["cases"]:
        method = method_of(case["config"], "proxyclip", True, attention=form, **fields)
        attended = program(_attended, 3, form)(features, values, valid, method)
        yield Result(case["name"], compare(attended, data[f"out/{case['name']}"]))


def part_of(data: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in data.items() if name.startswith(prefix)}


def load_params(data: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> SegmenterParams:
    """Both image towers, through the converter's own rules."""
    activation = meta["clip"].get("activation", "quick_gelu")
    clip = convert_clip_image(part_of(data, "clip."), activation=activation, num_heads=meta["clip"]["heads"])
    dino = convert_state("dino", part_of(data, "dino."), num_heads=meta["dino"]["num_heads"])
    arrays = (jax.tree.map(jnp.asarray, dict(tree)) for tree in (clip.params, dino.params))
    return SegmenterParams(clip=next(arrays), clip_spec=clip.spec, vfm=next(arrays), vfm_spec=dino.spec)


def check_end_to_end(
    data: Mapping[str, np.ndarray], meta: Mapping[str, Any], form: Form, fields: Mapping[str, str | None]
) -> Iterator[Result]:
    """From image and weights to patch features, stitched logits and labels."""
    params = load_params(data, meta)
    text_embeddings = jnp.asarray(data["text_features"])
    encoded: dict[tuple, WindowTokens] = {}
    dino: dict[tuple[int, int], Errors] = {}
    for case in meta["cases"]:
        height, width = case["size"]
        prefix = f"{case['name']}/{height}x{width}"
        shared = case["config"].get("KV_token_extension", False)
        if case["clip_type"] not in BASELINES:
            raise ValueError(f"unknown clip_type {case['clip_type']}")
        baseline = BASELINES[case["clip_type"]]
        method = method_of(case["config"], baseline, shared, attention=form, **fields)
        config = SegmenterConfig(method=method, windows=WindowConfig(None, meta["crop"], meta["stride"]))
        grid = window_grid(height, width, config.windows)
        windows = cut_windows(data[f"image/{height}x{width}"], grid)
        # The towers see the baseline alone of a method: once for each is enough.
        key = height, width, method.baseline
        if key not in encoded:
            encoded[key] = _encode(params, windows, replace(config, method=without_gla(method.baseline)))
        if (height, width) not in dino:
            computed = _dino_tokens(params, jnp.asarray(windows.pixels[: grid.count]))
            dino[height, width] = compare(computed, data[f"dino_tokens/{height}x{width}"])
        features = program(_finish, 2, form)(encoded[key], windows, params, config)[: grid.count]
        tokens = token_grid(token_logits(features, text_embeddings), *case["grid"])
        plan = stitch_plan(grid, round(features.shape[1] ** 0.5), (height, width))
        logits = np.asarray(stitch(tokens, plan))
        yield Result(
            prefix,
            compare(features, data[f"{prefix}/patch_features"]),
            compare(logits[1::4, 1::4], data[f"{prefix}/logits_every4"].transpose(1, 2, 0)),
            dino[height, width],
            agreement(logits.argmax(-1), data[f"{prefix}/label_map"]),
        )


def agreement(labels: np.ndarray, expected: np.ndarray) -> float:
    """The share of pixels with equal labels. Raises ValueError for maps of different sizes."""
    if labels.shape != expected.shape:
        raise ValueError(f"it holds labels {list(expected.shape)} where the method gives {list(labels.shape)}")
    return float((labels == expected).mean())


_encode = jax.jit(encode_windows)


@jax.jit
def _dino_tokens(params: SegmenterParams, pixels: Array) -> Array:
    normal = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    tokens = build_tower(params.vfm_spec, jnp.float32).apply({"params": params.vfm}, normal)
    return jnp.concatenate([tokens.cls_token[:, None], tokens.patch_tokens], 1)


def _finish(tokens: WindowTokens, windows: Windows, params: SegmenterParams, config: SegmenterConfig) -> Array:
    return patch_features(aggregate_windows(tokens, windows, params, config.method), tokens.residual, params, config)


def check_dinoiser(
    data: Mapping[str, np.ndarray], meta: Mapping[str, Any], form: Form, fields: Mapping[str, str | None]
) -> Iterator[Result]:
    """CLIP-DINOiser from normalised pixels: its features, projection, background logit, and the pooled features."""
    facts = meta["clip"]
    clip = convert_clip_image(part_of(data, "clip."), activation=facts["activation"], num_heads=facts["heads"])
    layers = convert_state("clip-dinoiser", {name: data[name] for name in data if name.startswith(LAYERS)})
    if meta["inter_block"] != -FROM_LAST or meta["gamma"] != TABLE["clip-dinoiser"].cutoff:
        raise ValueError(f"its layers read block {meta['inter_block']} with gamma {meta['gamma']}")
    spec = replace(clip.spec, pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)  # the pixels are normalised already
    params = SegmenterParams(clip.params, spec, dinoiser=layers.params, dinoiser_spec=layers.spec)
    params = jax.tree.map(jnp.asarray, params)
    method = replace(without_gla("clip-dinoiser"), attention=form, **fields)
    config = SegmenterConfig(method, WindowConfig(None, data["pixels"].shape[-1], 1))
    count = len(data["pixels"])
    windows = Windows(data["pixels"], np.ones(count, bool), np.zeros((count, 2), np.int32))
    tokens = _encode(params, windows, config)
    foreground = jax.jit(foreground_logits)(params, windows, config)
    yield Result("features", compare(tokens.values, data["features"]))
    yield Result("projected", compare(l2_normalize(tokens.features), data["projected"]))
    yield Result("background", compare(foreground[..., None], data["background_logit"][..., None]))
    yield Result("pooled", compare(program(_finish, 2, form)(tokens, windows, params, config), data["pooled"]))


def check_file(
    path: Path, form: Form = "blockwise", precision: str = "highest", part_dtype: str | None = None
) -> Iterator[Result]:
    """Every case of a file; form, precision and part_dtype are fields of MethodConfig.

    Raises ValueError when it is not of the format or has no cases.
    """
    try:
        # Opened here: NumPy leaves a file that it opened itself open when the archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            data = Content((name, archive[name]) for name in archive.files)
        meta = json.loads(bytes(data["meta_json"]), object_hook=Content)
        fields = {"precision": precision, "part_dtype": part_dtype}
        if isinstance(meta, Content) and "obj_proj.weight" in data:
            yield from check_dinoiser(data, meta, form, fields)
            return
        if not isinstance(meta, Content) or not meta["cases"]:
            raise ValueError("it has no cases")
        yield from (check_attention if "features" in data else check_end_to_end)(data, meta, form, fields)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, ConversionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is not a golden file: {reason.rstrip('.')}.") from error


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--form", choices=get_args(Form), default="blockwise")
    parser.add_argument("--precision", choices=PRECISIONS, default="highest")
    parser.add_argument("--part-dtype", choices=get_args(PartDtype), help="of precision high and fast")
    options = parser.parse_args(arguments)
    if options.form == "ring":
        jax.config.update("jax_num_cpu_devices", 8)  # accelerators are not affected
    passed = True
    for path in options.files:
        print(path.name)
        try:
            for result in check_file(path, options.form, options.precision, options.part_dtype):
                print(f"  {result}")
                passed &= result.passed
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
