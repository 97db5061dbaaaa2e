"""Weight conversion as a table of rules that fails rather than guesses.

A table has one row for every tensor a published model may hold: a Rule says where it goes, a Drop why it does not.
Applying a table fails on a source without a row, a source with two, a target set twice, a target never set, a target of
another shape and a number that is not finite. Rules only reshape, transpose and split, so they run on shapes alone
under jax.eval_shape.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from gla_jax.checkpoints.model_folder import Params, flatten_params
from gla_jax.support.errors import ConversionError

State = Mapping[str, Any]  # arrays by published name: NumPy's, or tracers under jax.eval_shape
Record = dict[str, Any]  # the fate of a source tensor: {"targets": [paths]} or {"dropped": reason}


def _thirds(x: Any) -> tuple[Any, ...]:
    return tuple(x.reshape(3, -1, *x.shape[1:]))


def _rows(x: Any) -> Any:
    return x.reshape(-1, x.shape[-1])


def _positions(x: Any) -> tuple[Any, ...]:
    rows = _rows(x)
    # A square number of rows has none for the class token: timm adds that one to the token itself.
    return (rows[0] * 0, rows) if math.isqrt(len(rows)) ** 2 == len(rows) else (rows[0], rows[1:])


def _square(x: Any) -> tuple[Any, ...]:
    _, side, _, width = x.shape
    return _positions(x.reshape(1, side, side, width))


def _to_heads(x: Any) -> tuple[Any, ...]:
    width, heads, size = x.shape
    return (x.reshape(width, heads * size),)


def _from_heads(x: Any) -> tuple[Any, ...]:
    heads, size, width = x.shape
    return (x.reshape(heads * size, width),)


TRANSFORMS: Mapping[str, Callable[[Any], tuple[Any, ...]]] = {
    "keep": lambda x: (x,),
    "linear": lambda x: (x.T,),  # [out in] to [in out]
    "thirds": _thirds,  # [3C] to three [C]: queries, keys, values
    "linear thirds": lambda x: tuple(part.T for part in _thirds(x)),  # [3C C] to three [C C]
    "patches": lambda x: (x.reshape(x.shape[0], -1).T,),  # a convolution [C 3 p p] to [3*p*p C]
    "convolution": lambda x: (x.transpose(2, 3, 1, 0),),  # [out in h w] to [h w in out]
    "vector": lambda x: (x.reshape(-1),),  # [1 1 C] to [C]
    "rows": lambda x: (_rows(x),),  # [1 r C] to [r C]
    "first and rest": lambda x: (_rows(x)[0], _rows(x)[1:]),  # [1 1+n C] or [1+n C] to [C] and [n C]
    "positions": _positions,  # the same, or [1 n C] to zeros [C] and [n C]
    # Flax's layouts
    "square": _square,  # [1 g g C] to zeros [C] and [g*g C]
    "flax patches": lambda x: (x.transpose(2, 0, 1, 3).reshape(-1, x.shape[3]),),  # [p p 3 C] to [3*p*p C]
    "from heads": _from_heads,  # [heads size C] to [C C]
    "to heads": _to_heads,  # [C heads size] to [C C]
    "and ones": lambda x: (x, x * 0 + 1),  # [C] twice: as it is, and for a factor that the model lacks
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


class Routed(NamedTuple):
    """A tensor at its target path, with the name it came under."""

    source: str
    leaf: Any


def layer(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of a linear layer, or of a LayerNorm, whose target is named norm... ."""
    name, *transform = ("scale",) if target.rpartition("/")[2].startswith("norm") else ("kernel", "linear")
    return Rule(rf"{source}\.weight", f"{target}/{name}", *transform), Rule(rf"{source}\.bias", f"{target}/bias")


def layers(source: str, target: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """Weight and bias of several layers: {regex below source: path below target}."""
    return tuple(rule for name, path in names.items() for rule in layer(source + name, f"{target}/{path}"))


def fused_attention(source: str, target: str) -> tuple[Rule, Rule]:
    """Weight and bias of queries, keys and values in one matrix; source ends before "weight"."""
    kernels, biases = (tuple(f"{target}/{part}/{leaf}" for part in _PARTS) for leaf in ("kernel", "bias"))
    return Rule(rf"{source}weight", kernels, "linear thirds"), Rule(rf"{source}bias", biases, "thirds")


_PARTS = ("query", "key", "value")
NORMS = {"norm1": "norm_1", "norm2": "norm_2"}  # of a block under the names of DINO's projects, for layers()


def patch_projection(source: str, target: str = "patch_tokens") -> tuple[Rule, Rule]:
    """Weight and bias of the convolution that maps patches to tokens."""
    kernel = Rule(rf"{source}\.weight", f"{target}/projection/kernel", "patches")
    return kernel, Rule(rf"{source}\.bias", f"{target}/projection/bias")


def position_table(source: str, target: str, transform: str = "first and rest") -> Rule:
    """Positions of the class token and the patches in one tensor; transform: how it comes apart."""
    return Rule(source, (f"{target}/class_position", f"{target}/positions"), transform)


# What training wraps around a model: torch.compile, DistributedDataParallel, Lightning, DINO's pair and its heads.
_WRAPPERS = re.compile(r"(?:(?:_orig_mod|module|model|teacher|student|backbone)\.)*")


def route(state: State, table: Table) -> tuple[dict[str, Routed], dict[str, Record]]:
    """Every tensor at its target path, and a record of every source; nothing is copied.

    Names are matched without the prefixes that training adds; beside a teacher the student is dropped. Raises
    ConversionError for a source without a row, a source with two rows and a target set twice.
    """
    wrappers = {name: _WRAPPERS.match(name)[0] for name in state}
    taught = any("teacher." in wrapper for wrapper in wrappers.values())
    students = {name for name, wrapper in wrappers.items() if taught and "student." in wrapper}
    plain = {name: name[len(wrapper) :].replace("_orig_mod.", "") for name, wrapper in wrappers.items()}
    routed: dict[str, Routed] = {}
    reason = "the student of a training; its teacher is converted"
    records: dict[str, Record] = {name: {"dropped": reason} for name in students}
    for source, (row, match) in _one_row_each({name: plain[name] for name in state if name not in students}, table):
        if isinstance(row, Drop):
            records[source] = {"dropped": row.reason}
            continue
        paths = row.paths(match)
        for path, leaf in zip(paths, _transformed(source, state[source], row), strict=True):
            if path in routed:
                raise ConversionError(f"two tensors give {path}: {routed[path].source} and {source}.")
            routed[path] = Routed(source, leaf)
        records[source] = {"targets": [*paths]}
    return routed, records


def _one_row_each(names: Mapping[str, str], table: Table) -> Iterator[tuple[str, tuple[Rule | Drop, re.Match[str]]]]:
    """The row and its match of every published name; names maps those to what the table knows them as."""
    patterns = [(row, re.compile(row.source)) for row in table]
    rows = {
        name: [(row, m) for row, pattern in patterns if (m := pattern.fullmatch(as_published))]
        for name, as_published in names.items()
    }
    if not rows:
        raise ConversionError("the source holds no tensors.")
    uncovered = [name for name in rows if not rows[name]]
    if uncovered:
        raise ConversionError(
            f"no rule covers {first_names(uncovered)}: these are weights of another family, or of an architecture the "
            "converter does not know."
        )
    ambiguous = [name for name in rows if len(rows[name]) > 1]
    if ambiguous:
        raise ConversionError(f"more than one rule covers {first_names(ambiguous)}: the table itself is wrong.")
    return ((name, matches[0]) for name, matches in rows.items())


def _transformed(source: str, tensor: Any, rule: Rule) -> tuple[Any, ...]:
    if 0 in tensor.shape:
        raise ConversionError(f"{source} has shape {_shape(tensor)}: it is empty.")
    try:
        return TRANSFORMS[rule.transform](tensor)
    except (ValueError, TypeError, IndexError):  # NumPy and tracers differ in which
        raise ConversionError(
            f"{source} has shape {_shape(tensor)}, which cannot be taken apart as {rule.transform!r}."
        ) from None


def fit(routed: dict[str, Routed], expected: Params) -> Params:
    """The parameter tree of a model, in the shapes and dtypes of expected (arrays or jax.ShapeDtypeStruct).

    Empties routed: each source is let go as its copy is made, for large models do not fit in memory twice. Raises
    ConversionError for a target the model does not have, one that is never set, one of another shape, and numbers that
    are not finite or not floating point.
    """
    places = flatten_params(expected)
    surplus = [f"{routed[path].source} ({path})" for path in routed if path not in places]
    if surplus:
        raise ConversionError(f"the model these sizes describe has no place for {first_names(surplus)}.")
    missing = [path for path in places if path not in routed]
    if missing:
        raise ConversionError(f"nothing in the source gives {first_names(missing)}.")
    for path, place in places.items():
        source, leaf = routed[path]
        if leaf.shape != place.shape:
            raise ConversionError(f"{source} gives {path} the shape {_shape(leaf)}, but it has {_shape(place)}.")
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ConversionError(f"{source} holds {leaf.dtype} numbers: quantised weights are not converted.")
    return unflatten_dict({path: _finite(*routed.pop(path), place.dtype) for path, place in places.items()}, sep="/")


def _finite(source: str, leaf: Any, dtype: Any) -> Any:
    """A copy of a leaf in another dtype. Raises ConversionError for NaN and infinity; tracers have no numbers."""
    with np.errstate(all="ignore"):
        copy = leaf.astype(dtype)
        if isinstance(copy, np.ndarray) and not np.isfinite([copy.min(), copy.max()]).all():
            raise ConversionError(f"{source} holds NaN or infinity, which spoils every result; take weights without.")
    return copy


def first_names(names: Sequence[str]) -> str:
    """The first few names and how many more there are; names of a file may be long and hold anything."""
    shown = ", ".join(name[:200] if name.isprintable() else ascii(name)[:200] for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def short(value: Any) -> str:
    """A value of a file for a message, which such a value could fill."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shape(leaf: Any) -> str:
    return f"[{' '.join(map(str, np.shape(leaf)))}]"
