"""The work that `gla-jax bench` measures, read from the command line."""

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gla_jax.bench.memory import GIB
from gla_jax.config import SegmenterConfig, settings_as_dict
from gla_jax.images.windows import WindowGrid
from gla_jax.predict.model import image_grid
from gla_jax.settings.options import check_choice, settings_from_options, with_fields
from gla_jax.support.errors import UserError
from gla_jax.support.version import VERSION
from gla_jax.window_tokens import SegmenterParams

RANDOM = "random"
PARTS = ("towers", "attention", "labels", "image", "steps")
ALL_PARTS = "all"


@dataclass(frozen=True)
class Options:
    """Options of `gla-jax bench`, checked by read_options.

    size: (height, width) in pixels; memory_limit: bytes, None for half of the machine's; max_windows: the sweep goes
    there in doublings, None for no sweep.
    """

    model: str
    size: tuple[int, int]
    config: SegmenterConfig
    parts: tuple[str, ...] = PARTS
    prompts: int = 21
    repeats: int = 5
    max_windows: int | None = None
    memory_limit: float | None = None
    devices: int = 1
    profile: Path | None = None

    @property
    def grid(self) -> WindowGrid:
        """The windows of the image."""
        return image_grid(self.size, self.config.windows)

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms of attention that are compared."""
        return ("dense", "blockwise", "ring") if self.devices > 1 else ("dense", "blockwise")

    def described(self, params: SegmenterParams, config: SegmenterConfig) -> dict[str, Any]:
        """Model, settings and image as a report holds them; config: with what the platform fills in."""
        vfm, windows = params.vfm_spec, self.grid.count
        tokens = windows * params.tokens(config)
        return {
            "model": {"name": self.model, "clip": asdict(params.clip_spec), "vfm": vfm and asdict(vfm)},
            "settings": settings_as_dict(config),
            "image": {"size": list(self.size), "windows": windows, "tokens": tokens, "queries": self.prompts},
        }


def report_head(report_format: str, command: str) -> dict[str, Any]:
    """The first entries of a report; command: as it was typed."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"format": report_format, "command": command, "date": date, "version": VERSION}


def read_options(**typed: Any) -> Options:
    """Options from those of the command line by name, as a user types them; memory_limit in GiB. Raises UserError."""
    match = re.fullmatch(r"(\d{1,7})x(\d{1,7})", typed["size"], re.ASCII)
    if not match or 0 in (size := (int(match[1]), int(match[2]))):
        raise UserError(f"size {typed['size']!r} is not HEIGHTxWIDTH in pixels; write it as in 336x504.")
    parts = [check_choice(name.strip(), (*PARTS, ALL_PARTS), "part") for name in typed["parts"].split(",")]
    limit = typed.get("memory_limit")
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"memory limit {limit:g} is not an amount of memory; give GiB above 0.")
    windows = {name: typed.get(name) for name in ("crop", "stride")}
    config = settings_from_options(short_side="native", dtype=typed["dtype"], **windows)
    fields = ("precision", "merge_overlaps")
    config = with_fields(config, {name: typed[name] for name in fields if typed.get(name)})
    return Options(
        typed["model"],
        size,
        config,
        PARTS if ALL_PARTS in parts else tuple(part for part in PARTS if part in parts),
        max_windows=typed.get("max_windows", 64) if typed.get("sweep") else None,
        memory_limit=None if limit is None else limit * GIB,
        **{name: typed[name] for name in ("prompts", "repeats", "devices", "profile") if name in typed},
    )


def command_line(options: Mapping[str, Any]) -> str:
    """The command that sets some options, by their names in it; None and False are left out."""
    words = ["gla-jax", "bench"]
    for name, value in options.items():
        if value is not None and value is not False:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)
