"""CLIP-DINOiser's way from logits to labels: probabilities of tokens, a trained background, then stitching."""

import jax
import jax.numpy as jnp

from gla_jax.config import Number
from gla_jax.support.arrays import Array, Float, Int, typed


@jax.jit
@typed
def token_probabilities(logits: Float[Array, "W S Q"], logit_scale: Number) -> Float[Array, "W S Q"]:
    """softmax(scale * logits) over the prompts, of every token."""
    return jax.nn.softmax(logit_scale * logits, axis=-1)


@jax.jit
@typed
def with_background_tokens(
    probabilities: Float[Array, "W S Q"],
    foreground: Float[Array, "W S"],
    of_background: Int[Array, " Q"],
    foreground_below: Number,
) -> Float[Array, "W S Q"]:
    """Probability 1 of the background where a token is unsure and no foreground; the others stay as they are.

    Args:
        probabilities: of every prompt.
        foreground: logit of the trained layer, above 0 where a token is foreground.
        of_background: 1 for the prompts of the background, 0 for others.
        foreground_below: a token is unsure when its best probability is below it.
    """
    background = (probabilities.max(-1) < foreground_below) & (foreground <= 0)
    return jnp.where(background[..., None] & (of_background == 1)[None, None], 1.0, probabilities)
