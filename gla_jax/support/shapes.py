"""The letters of every shape in the package, and the decorator that checks them.

W windows of an image, S feature tokens of a window, n CLIP patch tokens of a window, N = W * S tokens in the global
buffer, D feature width, H heads, K head width, C = H * K CLIP width, E joint image-text width, Q text queries,
L classes, T anchor iterations; c the side of a window, h and w pixels of an image. B stands for any batch and T for
nothing but iterations.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from beartype import beartype
from jaxtyping import Bool, Float, Int, Integer, UInt8, jaxtyped

Array = jax.Array
Function = TypeVar("Function", bound=Callable)


def typed(function: Function) -> Function:
    """Check the jaxtyping annotations of a function at every call (under jit: once, while tracing).

    Put it on functions and methods, never on a Linen class: Linen wraps classes itself.
    """
    return jaxtyped(typechecker=beartype)(function)


__all__ = ["Array", "Bool", "Float", "Int", "Integer", "UInt8", "typed"]
