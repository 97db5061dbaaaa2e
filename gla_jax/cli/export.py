"""gla-jax export."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.cli import options
from gla_jax.cli.options import prepare_jax, results_file
from gla_jax.models.registry import DEFAULT_MODEL
from gla_jax.support.errors import UserError
from gla_jax.support.places import is_remote


def export(
    model: Annotated[str, typer.Argument(help="As --model of gla-jax segment.")] = DEFAULT_MODEL,
    classes: options.ClassNames = None,
    classes_file: options.ClassesFile = None,
    classes_from: options.ClassesFrom = None,
    background: options.Background = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability below which a pixel is background. [default: a tuned preset's, else 0]"),
    ] = None,
    size: Annotated[str | None, typer.Option(help="HxW, height and width of the images in pixels.")] = None,
    method: options.Method = "gla",
    preset: options.Preset = options.DEFAULT_PRESET,
    dtype: options.Dtype = "float32",
    precision: options.Precision = None,
    out: Annotated[
        Path | None,
        typer.Option(**options.URL, help="The program to write; its weights lie beside it, NAME.safetensors."),
    ] = None,
    safetensors: Annotated[
        Path | None, typer.Option(**options.URL, help="Write all parameters of the model to this file.")
    ] = None,
    offline: options.Offline = False,
) -> None:
    """Write a program of one image size that runs without gla-jax, on CPU, CUDA and TPU; or a model's parameters.

    The program takes weights and an RGB image and gives its labels; jax.export and examples/run_exported.py run it.
    """
    if (out is None) == (safetensors is None):
        raise UserError("name one file to write: --out for a program, --safetensors for the parameters.")
    if out is not None and size is None:
        raise UserError("a program has one size of images; give --size HxW, as in 480x640.")
    if out is not None and out.suffix == ".safetensors":
        raise UserError(f"{out} is the name of the weights beside the program; choose another ending, such as .jax.")
    prepare_jax()
    from gla_jax.checkpoints.model_folder import flatten_params
    from gla_jax.models.pretrained import resolve
    from gla_jax.outputs.files import writing_to

    if safetensors is not None:
        if classes or classes_file or classes_from or size or background or threshold:
            raise UserError("--safetensors writes parameters alone; leave out classes and size, or name --out.")
        safetensors = results_file(safetensors, "--safetensors")
        _check_own(safetensors, safetensors)
        parts = resolve(model, offline=offline)._asdict()
        flat = flatten_params({name: dict(part.params) for name, part in parts.items() if part})
        with writing_to(safetensors):
            _save(safetensors, flat, {"model": model})
        typer.echo(f"{safetensors}: {len(flat)} arrays")
        return
    height_width = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size, re.ASCII)
    if not height_width:
        raise UserError(f"the size {size[:40]!r} is not HxW; write it as in 480x640.")
    if not find_spec("flatbuffers"):
        raise UserError('a program is written with the package flatbuffers; pip install "gla-jax[export]" brings it.')
    from gla_jax.predict.export import export_labels, exported_weights
    from gla_jax.segmenter import Segmenter
    from gla_jax.settings.options import names_numbers, settings_from_options, with_fields
    from gla_jax.support.files import write_beside
    from gla_jax.text.prompts import check_enough

    config = settings_from_options(method=method, preset=preset, dtype=dtype)
    parsed = options.typed_classes(classes, classes_file, classes_from)
    background, threshold = options.typed_background(background, threshold, config)
    check_enough(parsed, background)
    out = results_file(out)
    weights = out.with_suffix(".safetensors")
    _check_own(out, weights)
    config = with_fields(config, {"threshold": threshold, "precision": precision})
    segmenter = Segmenter.from_pretrained(model, config, offline=offline, suit=not names_numbers(preset))
    names, question = segmenter.question(parsed, background)
    program = export_labels(segmenter.model, question, tuple(map(int, height_width.groups())))
    facts = {"model": segmenter.name, "size": size, "classes": json.dumps(names, ensure_ascii=False)}
    with writing_to(out):
        _save(weights, exported_weights(segmenter.model), facts)
        write_beside(out, lambda file: file.write(program.serialize()))
    typer.echo(f"{out}: for {', '.join(program.platforms)}; weights in {weights}")


def _check_own(file: Path, weights: Path) -> None:
    """Raise UserError where a file, or the weights beside it, exists and is none that this command has written."""
    from safetensors import SafetensorError, safe_open

    there = [path for path in (file, weights) if path.exists()]
    if not there or is_remote(file):
        return
    try:
        with safe_open(weights, "np") as content:
            own = "model" in (content.metadata() or ())
    except (OSError, SafetensorError):
        own = False
    if not own:
        raise UserError(f"{there[0]} exists and is no file of gla-jax export; choose another name, or remove it.")


def _save(path: Path, arrays: dict, facts: dict[str, str]) -> None:
    """Write float32 arrays and facts as a safetensors file, all of it or nothing."""
    import numpy as np
    from safetensors.numpy import save

    from gla_jax.support.files import write_beside

    plain = {name: np.ascontiguousarray(leaf, np.float32) for name, leaf in arrays.items()}
    write_beside(path, lambda file: file.write(save(plain, facts)))
