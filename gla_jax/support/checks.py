"""Checks of single numbers and switches of the settings."""

import math
from typing import Any

import numpy as np

MAX_NUMBER = 1e6  # of numbers of a method; far beyond it float32 products overflow to infinity and scores to NaN

# What Python can hold in place of a number; jax.tree puts none of these in place of a leaf by itself.
OTHER_THINGS = (bool, str, bytes, complex, list, tuple, dict, set, frozenset, type)


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float = -MAX_NUMBER,
    at_most: float = MAX_NUMBER,
    above: float = -math.inf,
    whole: bool = False,
) -> None:
    """Raise ValueError for a plain number that a field does not take.

    Arrays of JAX pass, and so does what jax.tree and jax.vmap put in place of leaves: None and objects of their own.
    Raises ValueError for arrays of NumPy that hold anything but finite numbers, too.
    """
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    other = isinstance(value, OTHER_THINGS) or (isinstance(value, np.generic) and not isinstance(value, kinds))
    if other or (whole and not isinstance(value, kinds)):
        raise ValueError(f"{name} is {value!r:.60}; give a {'whole ' if whole else ''}number")
    if isinstance(value, np.ndarray) and not (value.dtype.kind in "iuf" and np.isfinite(value).all()):
        raise ValueError(f"{name} is {value!r:.60}; give finite numbers")
    if not isinstance(value, kinds):
        return
    if value != value or value in (math.inf, -math.inf):  # math.isfinite fails for large whole numbers
        raise ValueError(f"{name} is {value}; give a finite number")
    if not at_least <= value <= at_most or value <= above:
        limit = f"to {at_most:.7g}"
        limit = f"from {at_least:.7g} {limit}" if above == -math.inf else f"above {above:g}, up {limit}"
        raise ValueError(f"{name} is {value!s:.60}; give a {'whole ' if whole else ''}number {limit}")


def check_switch(name: str, value: Any, optional: bool = False) -> None:
    """Raise ValueError for anything but True and False, since any text, "false" too, would count as True."""
    if not isinstance(value, bool | np.bool_) and not (optional and value is None):
        raise ValueError(f"{name} is {value!r:.60}; give True or False")
