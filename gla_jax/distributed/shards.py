"""Shards of a run: parts that know nothing of each other, so that the loss of one machine costs its shard alone."""

import re
from typing import NamedTuple

from gla_jax.support.errors import UserError

FOLDER = "shards"  # in the folder of a run
MAX_SHARDS = 99_999


class Shard(NamedTuple):
    """The part `index`, from 0, of `count` parts of about one size, each a run of neighbours in order."""

    index: int
    count: int

    @property
    def place(self) -> str:
        """The folder of its records below that of the run."""
        return f"{FOLDER}/{self.index:05d}-of-{self.count:05d}"

    def part(self, items: int) -> range:
        """Indices of its items."""
        return range(self.index * items // self.count, (self.index + 1) * items // self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def read_shard(text: str) -> Shard:
    """A shard as a user types it, I/N with I from 0 to N - 1. Raises UserError."""
    match = re.fullmatch(r"(\d{1,5})/([1-9]\d{0,4})", text, re.ASCII)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"shard {text[:40]!r} is not I/N with I from 0 to N - 1; write the first of four as 0/4.")
    return Shard(int(match[1]), int(match[2]))
