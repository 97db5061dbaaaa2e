"""Counts the entries of the anchors' first mask that a precision flips, on the features of photos:

python -m tests.flips --model CLIP+VFM IMAGE... [--anchor-threshold RHO]

A pair of tokens of one image is positive where its cosine exceeds rho; the truth is float64 on the same float32 keys.
One line a precision: flipped pairs of all, and the largest error of a cosine. TF32 is emulated: factors of 11 bits.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax import Segmenter
from gla_jax.analysis.encoded import encode_image
from gla_jax.attention.buffer import Buffer
from gla_jax.attention.products import for_anchors, similarities
from gla_jax.config import MethodConfig
from gla_jax.images.reading import as_rgb
from gla_jax.support.arrays import Array, l2_normalize


def of_package(precision: str, part_dtype: str | None = None) -> Callable[[Array], Array]:
    """Cosines of all keys as the anchors' mask reads them."""
    method = MethodConfig(precision=precision, part_dtype=part_dtype)

    def cosines(keys: Array) -> Array:
        buffer = Buffer(keys, jnp.zeros_like(keys[:, :0]), jnp.ones(len(keys), bool))
        return similarities(keys, for_anchors(buffer, method))

    return cosines


def tf32(products: int) -> Callable[[Array], Array]:
    """Cosines by one TF32 product, or by three of two parts."""

    def cosines(keys: Array) -> Array:
        high = jax.lax.reduce_precision(keys, exponent_bits=8, mantissa_bits=10)
        low = jax.lax.reduce_precision(keys - high, exponent_bits=8, mantissa_bits=10)
        pairs = ((high, high), (high, low), (low, high))[:products]
        return sum(jnp.einsum("qd,kd->qk", *pair, precision="highest") for pair in pairs)

    return cosines


PRODUCTS = {
    "highest": of_package("highest"),
    "three TF32": tf32(3),
    "high, float16": of_package("high", "float16"),
    "high, bfloat16": of_package("high", "bfloat16"),
    "one TF32": tf32(1),
    "fast, float16": of_package("fast", "float16"),
    "fast, bfloat16": of_package("fast", "bfloat16"),
}


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.flips", description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    parser.add_argument("--model", required=True, help="CLIP+VFM, by name or folder")
    parser.add_argument("--anchor-threshold", type=float, default=MethodConfig().anchor_threshold, metavar="RHO")
    options = parser.parse_args(arguments)
    segmenter, rho = Segmenter.from_pretrained(options.model), options.anchor_threshold
    flips, errors, pairs = dict.fromkeys(PRODUCTS, 0), dict.fromkeys(PRODUCTS, 0.0), 0
    for path in options.images:
        tokens, prepared = encode_image(segmenter.model, as_rgb(path), [segmenter.config])
        features = tokens.compared(segmenter.config.method)[0][: prepared.grid.count]
        keys = l2_normalize(features).reshape(-1, features.shape[-1])
        truth = np.asarray(keys, np.float64) @ np.asarray(keys, np.float64).T
        pairs += truth.size
        for name, function in PRODUCTS.items():
            found = np.asarray(jax.jit(function)(keys))
            flips[name] += int(((found > np.float32(rho)) != (truth > rho)).sum())
            errors[name] = max(errors[name], float(np.abs(found - truth).max()))
    print(f"{pairs} pairs of {len(options.images)} images, rho {rho:g}")
    for name in PRODUCTS:
        print(f"{name:14s} {flips[name]:7d} flipped  largest error {errors[name]:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
