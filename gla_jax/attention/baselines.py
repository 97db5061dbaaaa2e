"""The attention of a baseline inside a window: CLIP's own attentions as each method changes them (DESIGN 3.4).

The table itself is data in config.py; a baseline of your own brings its function along (config.register_baseline).
"""

import jax
import jax.numpy as jnp
import numpy as np

from gla_jax.config import Baseline
from gla_jax.support.arrays import Array, Float, typed
from gla_jax.towers.attention import QKV, attention_weights, merge_heads, split_heads


def neighbourhood_bias(tokens: int, std: float, prefix: int = 1) -> Float[np.ndarray, "t t"]:
    """exp(-d^2 / (2 std^2)) of the distance d between patches of a square window; 0 from and to the prefix, CLS.

    NACLIP (Hajimiri et al. 2025) adds it to the scaled scores.
    """
    side = round((tokens - prefix) ** 0.5)
    place = np.stack(np.mgrid[:side, :side], -1).reshape(-1, 2)
    distance = np.square(place[:, None] - place[None]).sum(-1)
    return np.pad(np.exp(distance / (-2 * std**2)), ((prefix, 0), (prefix, 0))).astype(np.float32)


@jax.named_scope("gla-attention")
@typed
def window_attention(
    qkv: QKV, baseline: Baseline, num_heads: int, precision: str = "highest", prefix: int = 1
) -> Float[Array, "W t C"]:
    """A baseline's own attention inside each window, CLS among the keys.

    Args:
        qkv: of CLIP's last block, three arrays [W t C].
        baseline: its pairs of softmax attentions are summed; none is the identity.
        num_heads: H, which divides C.
        precision: of both matrix products, in JAX's words.
        prefix: tokens before the first patch; 1 is CLS alone.
    """
    if baseline.attention is not None:
        return baseline.attention(qkv, num_heads)
    if not baseline.pairs:
        return qkv.values
    values = split_heads(qkv.values, num_heads)  # [W H t K]
    bias = None
    if baseline.neighbourhood is not None:
        bias = jnp.asarray(neighbourhood_bias(qkv.values.shape[1], baseline.neighbourhood, prefix))
    sides = {name: split_heads(getattr(qkv, name), num_heads) for name in ("queries", "keys")}
    weights = sum(  # [W H t t]
        attention_weights(sides[left], sides[right], bias=bias, precision=precision) for left, right in baseline.pairs
    )
    attended = jnp.einsum("whts,whsk->whtk", weights.astype(values.dtype), values, precision=precision)
    return merge_heads(attended)
