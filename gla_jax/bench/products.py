"""The matrix products of a traced program: operations by part and precision, loops counted as often as they run.

XLA's own count takes the body of a loop once; here a scan counts its length, a while loop of a fixed number of trips
that number, a branch its costliest side, a Pallas kernel its grid.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

# The scopes that the pipeline names (jax.named_scope), in the order of the data; anything else is part of REST.
# The prefix keeps them apart from the scopes that Linen names after its modules.
PREFIX = "gla-"
PARTS = ("towers", "anchors", "attention", "projection", "labels")
REST = "rest"


class Way(NamedTuple):
    """A way to compute a product: unit "bfloat16", "TF32" or "float32" of the chip, and the passes over it."""

    unit: str
    passes: int = 1

    def __str__(self) -> str:
        """As in a table: TF32 x3."""
        return self.unit if self.passes == 1 else f"{self.unit} x{self.passes}"


# XLA's rule for float32 products: TPUs have bfloat16 units alone; GPUs take one TF32 product unless told otherwise.
FLOAT32 = {
    "tpu": {"HIGHEST": Way("bfloat16", 6), "HIGH": Way("bfloat16", 3), "DEFAULT": Way("bfloat16")},
    "gpu": {"HIGHEST": Way("float32"), "HIGH": Way("TF32"), "DEFAULT": Way("TF32")},
}
UNITS = {"BF16": "bfloat16", "F16": "bfloat16", "TF32": "TF32", "F32": "float32"}  # of lax.DotAlgorithmPreset
CUDNN_ATTENTION = "dot_product_attention_fwd"  # of jax.nn.dot_product_attention


class Products(NamedTuple):
    """flops: operations by (part, way), two a multiply-add; unknown: loops of unknown length, counted once."""

    flops: Counter
    unknown: int = 0

    def __add__(self, other: "Products") -> "Products":
        """Both together."""
        total = Counter(self.flops)
        total.update(other.flops)  # + would make a Counter of positive entries, which is slower
        return Products(total, self.unknown + other.unknown)

    def times(self, factor: float) -> "Products":
        """So many of them."""
        return Products(Counter({key: factor * flops for key, flops in self.flops.items()}), self.unknown)

    @property
    def passes(self) -> float:
        """Operations with every pass of a split product counted."""
        return sum(flops * way.passes for (_, way), flops in self.flops.items())


def part_of(scopes: str) -> str | None:
    """The innermost part among scopes that are separated by slashes; None where there is none."""
    names = [name.removeprefix(PREFIX) for name in re.split(r"[/()]", scopes) if name.startswith(PREFIX)]
    return names[-1] if names else None


def count_products(jaxpr: Jaxpr, platform: str, part: str = REST) -> Products:
    """The products of a jaxpr on a platform, "tpu" or "gpu"; part: of equations that name none."""
    total = Products(Counter())
    for eqn in jaxpr.eqns:
        total += _equation(eqn, platform, part_of(str(eqn.source_info.name_stack)) or part)
    return total


def _equation(eqn: Any, platform: str, part: str) -> Products:
    name = eqn.primitive.name
    if name in ("dot_general", "conv_general_dilated"):
        flops = _dot_flops(eqn) if name == "dot_general" else _convolution_flops(eqn)
        return Products(Counter({(part, way_of(eqn, platform)): flops}))
    if name.startswith(CUDNN_ATTENTION):
        (*batch, queries, heads, width), keys = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape[-3]
        return Products(Counter({(part, Way("bfloat16")): 4.0 * math.prod(batch) * queries * keys * heads * width}))
    inner = [count_products(jaxpr, platform, part) for jaxpr in _inner(list(eqn.params.values()))]
    if name == "cond":
        return max(inner, key=lambda branch: branch.passes)
    total = sum(inner, Products(Counter()))
    if name == "scan":
        return total.times(eqn.params["length"])
    if name == "pallas_call":
        return total.times(math.prod(eqn.params["grid_mapping"].grid))
    if name == "while" and total.flops:
        trips = _trips(eqn)
        return total.times(trips) if trips is not None else Products(total.flops, total.unknown + 1)
    return total


def way_of(eqn: Any, platform: str) -> Way:
    """The way a platform computes a product: by its algorithm, else by the wider dtype and its sides' precision."""
    precision, dtypes = eqn.params["precision"], [side.aval.dtype for side in eqn.invars[:2]]
    if isinstance(precision, lax.DotAlgorithmPreset) and precision is not lax.DotAlgorithmPreset.DEFAULT:
        kind, passes = re.fullmatch(r"([A-Z]+\d*)_.*?(?:_X(\d))?", precision.name).groups()
        way = Way(UNITS.get(kind, "float32"), int(passes or 1))
        return FLOAT32["tpu"]["HIGHEST"] if platform == "tpu" and way.unit != "bfloat16" else way
    if max(dtype.itemsize for dtype in dtypes) <= 2:  # float16 runs at the rate of bfloat16
        return Way("bfloat16")
    sides = precision if isinstance(precision, tuple) else (precision,)
    names = [side.name for side in sides if isinstance(side, lax.Precision)]
    return FLOAT32[platform][next((name for name in ("HIGHEST", "HIGH") if name in names), "DEFAULT")]


def _dot_flops(eqn: Any) -> float:
    ((contracted, _), _), left = eqn.params["dimension_numbers"], eqn.invars[0].aval
    return 2.0 * eqn.outvars[0].aval.size * math.prod(left.shape[axis] for axis in contracted)


def _convolution_flops(eqn: Any) -> float:
    kernel, features = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[features]


def _inner(value: Any) -> Iterator[Jaxpr]:
    """All jaxprs among the parameters of an equation."""
    if isinstance(value, ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, Jaxpr):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _inner(each)


def _trips(eqn: Any) -> int | None:
    """Trips of a while loop that counts by ones from one literal to another, else None."""
    condition, body = eqn.params["cond_jaxpr"].jaxpr, eqn.params["body_jaxpr"].jaxpr
    if len(condition.eqns) != 1 or condition.eqns[0].primitive.name != "lt":
        return None
    counter, end = condition.eqns[0].invars
    carried = condition.invars[eqn.params["cond_nconsts"] :]
    if not isinstance(end, Literal) or counter not in carried:
        return None
    place = carried.index(counter)
    start = eqn.invars[eqn.params["cond_nconsts"] + eqn.params["body_nconsts"] + place]
    before, after = body.invars[eqn.params["body_nconsts"] + place], body.outvars[place]
    steps = [e for e in body.eqns if after in e.outvars and e.primitive.name == "add"]
    by_one = steps and steps[0].invars[0] is before and isinstance(one := steps[0].invars[1], Literal) and one.val == 1
    return max(0, int(end.val) - int(start.val)) if by_one and isinstance(start, Literal) else None
