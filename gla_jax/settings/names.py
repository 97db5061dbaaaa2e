"""Names that a user types, looked up: each fault one sentence with the nearest choice."""

import difflib
from collections.abc import Iterable

from gla_jax.support.errors import UserError


def check_choice(name: str, choices: Iterable[str], what: str) -> str:
    """The name itself. Raises UserError, with the nearest choices, when it is not one of them."""
    choices = list(choices)
    if name in choices:
        return name
    close = difflib.get_close_matches(str(name), choices, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices)}."
    raise UserError(f"{name!r} is not a {what}; {hint}")


def join_or(names: Iterable[str]) -> str:
    """Names as a sentence lists them: "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def whole_number(text: str, what: str) -> int:
    """A number of pixels. Raises UserError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise UserError(f"{what} {text!r} is not a number of pixels; give a whole number above 0.")
    return int(text)
