"""Compares merged overlaps with the method as published, on photos or on held-out scenes of tiny-world:

python -m tests.merged --model CLIP+VFM [--scenes N] [--anchor-threshold RHO] [--short-side PIXELS] [IMAGE...]

One line: images, tokens that attend, pixels with equal labels (tiny-world's 42 classes), the mean cosine of the values
that attention gives to each token, and processor seconds of attention an image (the least of three runs).
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from gla_jax import Segmenter
from gla_jax.analysis.encoded import encode_image, label_settings, vocabulary_question, windows_of
from gla_jax.images.reading import as_rgb
from gla_jax.pipeline import aggregate_windows
from gla_jax.text.prompts import parse_classes
from gla_jax.tiny_world.scenes import render
from gla_jax.tiny_world.vocabulary import CLASSES

attend = jax.jit(aggregate_windows)
REPEATS = 3


def pictures(options: argparse.Namespace) -> Iterator[np.ndarray]:
    """The images to compare on."""
    yield from map(as_rgb, options.images)
    yield from (render(seed, 336, 448, "test").image for seed in range(options.scenes))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.merged", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument("--model", required=True, help="CLIP+VFM, by name or folder")
    parser.add_argument("--scenes", type=int, default=0, metavar="N")
    parser.add_argument("--anchor-threshold", type=float, metavar="RHO", help="[default: the model's]")
    parser.add_argument("--short-side", type=int, default=336, metavar="PIXELS")
    options = parser.parse_args(arguments)
    fields = {"short_side": options.short_side}
    if options.anchor_threshold is not None:
        fields["anchor_threshold"] = options.anchor_threshold
    segmenter = Segmenter.from_pretrained(options.model).with_settings(**fields)
    model, question = segmenter.model, vocabulary_question(segmenter, parse_classes(CLASSES))
    configs = [segmenter.with_settings(merge_overlaps=merge).model.config for merge in (False, True)]
    tokens, equal, cosines, seconds = np.zeros(2, int), [], [], np.zeros(2)
    for image in pictures(options):
        encoded, values = encode_image(model, image, configs), []
        for index, config in enumerate(configs):
            windows = windows_of(model, encoded.prepared, config)
            count, features = encoded.prepared.grid.count, encoded.tokens.compared(config.method)[0]
            merged = windows.overlaps
            tokens[index] += count * features.shape[1] if merged is None else (merged.members[:, 0] >= 0).sum()
            runs = []
            for _ in range(REPEATS + 1):
                begun = time.process_time()
                rows = jax.block_until_ready(attend(encoded.tokens, windows, model.params, config.method))
                runs.append(time.process_time() - begun)
            seconds[index] += min(runs[1:])  # the first one may compile
            values.append(np.asarray(rows, np.float32)[:count].reshape(-1, rows.shape[-1]))
        cosines.append(
            ((values[0] * values[1]).sum(1) / np.prod([np.linalg.norm(v, axis=1) for v in values], 0)).mean()
        )
        one, other = (found.labels for found in label_settings(model, encoded, configs, question))
        equal.append((one == other).mean())
    images = len(equal)
    print(
        f"{images} images, {tokens[0] // images} and {tokens[1] // images} tokens, labels equal {np.mean(equal):.2%} "
        f"(least {np.min(equal):.2%}), cosine {np.mean(cosines):.4f}, attention {seconds[0] / images:.3f} s and "
        f"{seconds[1] / images:.3f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
