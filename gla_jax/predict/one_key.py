"""The warning of tokens that keep one single key: above a fifth of them, most of the method has stopped working.

That happens where cosines of a foundation model are spread otherwise than DINO's, which the published numbers suit.
"""

from gla_jax.config import MethodConfig
from gla_jax.predict.model import Model
from gla_jax.towers.dino import DinoSpec

MANY = 20.0  # percent
ADVICE = "its numbers do not suit the features: try --preset centred, or another anchor_threshold (rho)"


def is_published(model: Model) -> bool:
    """True for features of DINO under the published numbers, which were chosen for them."""
    method = model.config.method
    published = MethodConfig()
    numbers = ("anchor_threshold", "dynamic_shift", "dynamic_scale", "shift", "scale", "temperature", "calibration")
    as_published = all(getattr(method, name) in (None, getattr(published, name)) for name in numbers)
    return as_published and isinstance(model.params.features_spec, DinoSpec)


def one_key_percent(one: int, tokens: int) -> float | None:
    """Percent of the tokens that keep one single key; None where no token attends by features."""
    return 100.0 * one / tokens if tokens else None


def one_key_warning(percent: float | None) -> str | None:
    """A sentence without its full stop, None up to MANY percent."""
    if percent is None or percent <= MANY:
        return None
    return f"{percent:.0f}% of the tokens keep one single key, so most of the method is idle: {ADVICE}"
