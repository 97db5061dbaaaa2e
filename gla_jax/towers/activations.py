"""Activations of the MLPs of towers, by their names in model folders."""

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from gla_jax.support.arrays import Array

Activation = Literal["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "swiglu"]


def quick_gelu(x: Array) -> Array:
    """OpenAI CLIP's activation, x * sigmoid(1.702 x); same shape and dtype."""
    return x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x)


def gelu(x: Array) -> Array:
    """The exact GELU, x * Phi(x), by erf as PyTorch takes it; same shape and dtype."""
    half = jnp.asarray(0.5, x.dtype)
    return x * (half + half * jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


# Without "swiglu", which takes two arrays. jax.nn.gelu is the approximation by tanh.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
}
