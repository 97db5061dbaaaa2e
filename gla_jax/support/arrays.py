"""The letters of every shape in the package, the decorator that checks them, and rows of length one.

W windows of an image, S feature tokens of a window, n CLIP patch tokens of a window, N = W * S tokens in the global
buffer, D feature width, H heads, K head width, C = H * K CLIP width, E joint image-text width, Q text queries,
L classes, T anchor iterations; c the side of a window, h and w pixels of an image. B stands for any batch and T for
nothing but iterations.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from beartype import beartype
from jaxtyping import Bool, Float, Int, Integer, UInt8, jaxtyped

Array = jax.Array
Function = TypeVar("Function", bound=Callable)

LEAST_SQUARE = 1e-24  # of a row's length; a shorter row counts as zero


def typed(function: Function) -> Function:
    """Check the jaxtyping annotations of a function at every call (under jit: once, while tracing).

    Put it on functions and methods, never on a Linen class: Linen wraps classes itself.
    """
    return jaxtyped(typechecker=beartype)(function)


@typed
def l2_normalize(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Rows of length one in float32; a zero row stays zero, and its gradient is finite."""
    x = x.astype(jnp.float32)
    return x * inverse_norms(x)


@typed
def inverse_norms(x: Float[Array, "*B D"]) -> Float[Array, "*B 1"]:
    """1 / length of every row; finite for a zero row."""
    return jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), LEAST_SQUARE))


@typed
def have_directions(features: Float[Array, "*B W S E"]) -> Bool[Array, "*B"]:
    """True for images whose features have lengths to divide by: all are finite, and not all as good as zero."""
    squares = jnp.square(features.astype(jnp.float32)).sum(-1)
    return jnp.isfinite(squares).all((-2, -1)) & (squares > LEAST_SQUARE).any((-2, -1))


__all__ = [
    "Array",
    "Bool",
    "Float",
    "Int",
    "Integer",
    "UInt8",
    "have_directions",
    "inverse_norms",
    "l2_normalize",
    "typed",
]
