"""Calibration of a foundation model's similarities to what rho, beta and gamma expect (not in the paper; ours).

The published numbers suit DINO's cosines. "centred" takes the mean feature of the image off the features, so that the
mean cosine is near 0 and a token's with itself 1, whatever the model; then s' = eta + (1 - eta) s, of mean eta
(DESIGN 3.6).
"""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp

from gla_jax.config import CENTRED_MEAN, MethodConfig
from gla_jax.support.arrays import Array, Bool, Float, typed

Similarity = TypeVar("Similarity")


def calibrated(similarity: Similarity, method: MethodConfig) -> Similarity:
    """s' of cosines s, an array or a number; s itself without a calibration."""
    return CENTRED_MEAN + (1.0 - CENTRED_MEAN) * similarity if method.calibrates else similarity


def uncalibrated(similarity: Similarity, method: MethodConfig) -> Similarity:
    """The inverse of calibrated: the cosine s of an s'."""
    return (similarity - CENTRED_MEAN) / (1.0 - CENTRED_MEAN) if method.calibrates else similarity


def slope(method: MethodConfig) -> float:
    """ds' / ds, the factor of differences of cosines."""
    return 1.0 - CENTRED_MEAN if method.calibrates else 1.0


@typed
def centred(
    features: Float[Array, "W S D"], valid: Bool[Array, " W"], sum_over_shards: Callable[[Array], Array]
) -> Float[Array, "W S D"]:
    """Features in float32 less their mean over the tokens of all valid windows.

    sum_over_shards: sums over the parts of a buffer that is split over devices.
    """
    features, weights = features.astype(jnp.float32), valid.astype(jnp.float32)
    # The mean [D]: a sum over windows and tokens in which padded windows weigh 0.
    total = sum_over_shards(jnp.einsum("w,wsd->d", weights, features, precision="highest"))
    count = sum_over_shards(weights.sum()) * features.shape[1]
    return features - (total / count)[None, None]
