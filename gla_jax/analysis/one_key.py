"""Tokens whose attention keeps one single key: above a fifth of them, most of the method has stopped working.

That happens where cosines of a foundation model are spread otherwise than DINO's, which the published numbers suit.
"""

from gla_jax.support.arrays import Array, Bool, Float, typed

MANY = 20.0  # percent
ADVICE = "the numbers of the method do not suit these features: try another rho (--anchor-threshold)"


@typed
def keeps_one_key(weights: Float[Array, "*B N"]) -> Bool[Array, "*B"]:
    """True for rows of attention with one weight above 0."""
    return (weights > 0).sum(-1) == 1
