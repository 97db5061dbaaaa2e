"""Checks what a JSON file holds against a table of keys and kinds."""

import math
from dataclasses import dataclass
from typing import Any

ANY_KEY = "*"  # stands for every key of an object


@dataclass(frozen=True)
class Number:
    """A finite number from low to high; whole: an integer."""

    low: float = 0.0
    high: float = 2.0**63
    whole: bool = False


def first_fault(value: Any, kind: Any, name: str = "") -> str | None:
    """Say where a value first differs from its kind; None where it does not.

    Args:
        value: as json.load gives it.
        kind: a dict with the kind of each key (further keys are no fault), a list with the kind of its items (of more
            kinds: of exactly these), a tuple (None, kind) for a value that may be null, a Number, str or bool.
        name: of the value, for the sentence.
    """
    if isinstance(kind, tuple):
        return None if value is None else first_fault(value, kind[1], name)
    if not isinstance(kind, dict | list):
        return None if _fits(value, kind) else f"{name} is {repr(value)[:40]}"
    if not isinstance(value, type(kind)):
        return f"{name or 'it'} is no {'object' if isinstance(kind, dict) else 'list'}"
    if isinstance(kind, list):
        if 1 < len(kind) != len(value):
            return f"{name} has {len(value)} items"
        kinds = kind if len(kind) > 1 else kind * len(value)
        value, kind = dict(enumerate(value)), dict(enumerate(kinds))
    elif ANY_KEY in kind:
        kind = dict.fromkeys(value, kind[ANY_KEY])
    for key, inner in kind.items():
        place = f"{name}.{key}" if name else str(key)
        if key not in value:
            return f"{place} is missing"
        if not _fits(key, type(key)):
            return f"{place!a} is no name"
        if fault := first_fault(value[key], inner, place):
            return fault
    return None


def _fits(value: Any, kind: Any) -> bool:
    if kind is str:  # a lone surrogate is no text: neither files nor terminals take it
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if not isinstance(kind, Number):
        return isinstance(value, kind)
    if isinstance(value, bool) or not isinstance(value, int if kind.whole else int | float):
        return False
    return kind.low <= value <= kind.high and math.isfinite(value)
