"""Pixels that become background by the probabilities of their classes: too low, or too close to each other."""

import numpy as np

from gla_jax.support.arrays import Float, Int, typed


@typed
def leads(scores: Float[np.ndarray, "L ..."]) -> Float[np.ndarray, " ..."]:
    """By how much the best class of every pixel is more probable than the second; its probability where L is 1."""
    if len(scores) == 1:
        return scores[0]
    # Two largest of L without sorting all: [2 h w].
    second, best = np.partition(scores, -2, axis=0)[-2:]
    return np.asarray(best - second)  # of one row a scalar


@typed
def labels_with_background(
    scores: Float[np.ndarray, "L h w"], threshold: float = 0.0, margin: float = 0.0, background: int = 0
) -> Int[np.ndarray, "h w"]:
    """The most probable class of every pixel, or the background.

    Args:
        scores: probability of every class.
        threshold: a pixel whose best probability is below it is background (the published rule).
        margin: a pixel whose best class leads the second by less is background (ours).
        background: index of a class.
    """
    unsure = scores.max(0) < threshold
    if margin:
        unsure |= leads(scores) < margin
    return np.where(unsure, background, scores.argmax(0)).astype(np.int32)
