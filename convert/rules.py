"""Weight conversion as a table of rules that fails rather than guesses.

A table has one row for every tensor a published model may hold: a Rule says where it goes, a Drop why it does not.
Applying a table fails on a source without a row, a source with two, a target set twice, a target never set and a
target of another shape. Rules only reshape, transpose and split, so they run on shapes alone under jax.eval_shape.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from gla_jax.checkpoints.model_folder import Params, flatten_params
from gla_jax.support.errors import ConversionError

State = Mapping[str, Any]  # arrays by published name: NumPy's, or tracers under jax.eval_shape


def _linear(x: Any) -> tuple[Any, ...]:
    return (x.T,)


def _thirds(x: Any) -> tuple[Any, ...]:
    return tuple(x.reshape(3, -1, *x.shape[1:]))


def _linear_thirds(x: Any) -> tuple[Any, ...]:
    return tuple(part.T for part in _thirds(x))


def _patches(x: Any) -> tuple[Any, ...]:
    return (x.reshape(x.shape[0], -1).T,)


def _vector(x: Any) -> tuple[Any, ...]:
    return (x.reshape(-1),)


def _rows(x: Any) -> tuple[Any, ...]:
    return (x.reshape(-1, x.shape[-1]),)


def _first_and_rest(x: Any) -> tuple[Any, ...]:
    rows = x.reshape(-1, x.shape[-1])
    return rows[0], rows[1:]


TRANSFORMS: Mapping[str, Callable[[Any], tuple[Any, ...]]] = {
    "keep": lambda x: (x,),
    "linear": _linear,  # [out in] to [in out]
    "thirds": _thirds,  # [3C] to three [C]: queries, keys, values
    "linear thirds": _linear_thirds,  # [3C C] to three [C C]
    "patches": _patches,  # a convolution [C 3 p p] to [3*p*p C]
    "vector": _vector,  # [1 1 C] to [C]
    "rows": _rows,  # [1 r C] to [r C]
    "first and rest": _first_and_rest,  # [1 1+n C] or [1+n C] to [C] and [n C]
}


@dataclass(frozen=True)
class Rule:
    """A tensor that goes somewhere: source is a regex over its whole name, targets are paths with {named groups}."""

    source: str
    targets: str | tuple[str, ...]
    transform: str = "keep"

    def paths(self, match: re.Match[str]) -> tuple[str, ...]:
        """The parameter paths of one matched source."""
        templates = (self.targets,) if isinstance(self.targets, str) else self.targets
        return tuple(template.format(**match.groupdict()) for template in templates)


@dataclass(frozen=True)
class Drop:
    """A tensor that goes nowhere, and why."""

    source: str
    reason: str


Table = Sequence[Rule | Drop]


class Record(NamedTuple):
    """What became of one source tensor: its target paths, or the reason for dropping it."""

    targets: tuple[str, ...] = ()
    dropped: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The record as a manifest holds it."""
        return {"targets": list(self.targets)} if self.dropped is None else {"dropped": self.dropped}


class Routed(NamedTuple):
    """A tensor at its target path, with the name it came under."""

    source: str
    leaf: Any


def dense(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer."""
    return Rule(rf"{source}\.weight", f"{target}/kernel", "linear"), Rule(rf"{source}\.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of a LayerNorm."""
    return Rule(rf"{source}\.weight", f"{target}/scale"), Rule(rf"{source}\.bias", f"{target}/bias")


def fused_attention(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of queries, keys and values in one matrix; source ends before "weight"."""
    kernels, biases = (tuple(f"{target}/{part}/{leaf}" for part in _PARTS) for leaf in ("kernel", "bias"))
    return Rule(rf"{source}weight", kernels, "linear thirds"), Rule(rf"{source}bias", biases, "thirds")


_PARTS = ("query", "key", "value")


def route(state: State, table: Table) -> tuple[dict[str, Routed], dict[str, Record]]:
    """Every tensor at its target path, and a record of every source; nothing is copied.

    Raises ConversionError for a source without a row, a source with two rows and a target set twice.
    """
    rows = _one_row_each(state, table)
    routed: dict[str, Routed] = {}
    records: dict[str, Record] = {}
    for source, (row, match) in rows.items():
        if isinstance(row, Drop):
            records[source] = Record(dropped=row.reason)
            continue
        paths = row.paths(match)
        for path, leaf in zip(paths, _transformed(source, state[source], row), strict=True):
            if path in routed:
                raise ConversionError(f"two tensors give {path}: {routed[path].source} and {source}.")
            routed[path] = Routed(source, leaf)
        records[source] = Record(paths)
    return routed, records


def _one_row_each(names: Iterable[str], table: Table) -> dict[str, tuple[Rule | Drop, re.Match[str]]]:
    patterns = [(row, re.compile(row.source)) for row in table]
    found = {name: [(row, m) for row, pattern in patterns if (m := pattern.fullmatch(name))] for name in names}
    if not found:
        raise ConversionError("the source holds no tensors.")
    unknown = [name for name, rows in found.items() if not rows]
    if unknown:
        raise ConversionError(
            f"no rule covers {some(unknown)}: these are weights of another family, or of an architecture the converter "
            "does not know."
        )
    ambiguous = [name for name, rows in found.items() if len(rows) > 1]
    if ambiguous:
        raise ConversionError(f"more than one rule covers {some(ambiguous)}: the table itself is wrong.")
    return {name: rows[0] for name, rows in found.items()}


def _transformed(source: str, tensor: Any, rule: Rule) -> tuple[Any, ...]:
    try:
        return TRANSFORMS[rule.transform](tensor)
    except (ValueError, TypeError, IndexError):  # NumPy and tracers differ in which
        raise ConversionError(
            f"{source} has shape {_shape(tensor)}, which cannot be taken apart as {rule.transform!r}."
        ) from None


def fit(routed: dict[str, Routed], expected: Params) -> Params:
    """The parameter tree of a model, in the shapes and dtypes of expected (arrays or jax.ShapeDtypeStruct).

    Empties routed: each source is let go as its copy is made, for large models do not fit in memory twice. Raises
    ConversionError for a target the model does not have, one that is never set and one of another shape.
    """
    places = flatten_params(expected)
    surplus = [f"{routed[path].source} ({path})" for path in routed if path not in places]
    if surplus:
        raise ConversionError(f"the model these sizes describe has no place for {some(surplus)}.")
    missing = [path for path in places if path not in routed]
    if missing:
        raise ConversionError(f"nothing in the source gives {some(missing)}.")
    for path, place in places.items():
        source, leaf = routed[path]
        if leaf.shape != place.shape:
            raise ConversionError(f"{source} gives {path} the shape {_shape(leaf)}, but it has {_shape(place)}.")
    return unflatten_dict({path: routed.pop(path).leaf.astype(place.dtype) for path, place in places.items()}, sep="/")


def apply_rules(state: State, table: Table, expected: Params) -> tuple[Params, dict[str, Record]]:
    """The parameters of a model from published tensors, and a record of every source.

    Raises ConversionError, naming the tensors, on any of the five failures of a table.
    """
    routed, records = route(state, table)
    return fit(routed, expected), records


def some(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")


def first_line(error: Exception) -> str:
    """The first line of what another library says, without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _shape(leaf: Any) -> str:
    return f"[{' '.join(map(str, np.shape(leaf)))}]"
