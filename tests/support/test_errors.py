"""The exit code and the line of each way that a command ends."""

import pytest

from gla_jax.support.errors import ImageError, UserError, about_files, ending

STOPPED = "stopped; nothing half-written is left"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("the preset is empty."), 2, "error: the preset is empty."),
        (ImageError("a.png cannot be read."), 2, "error: a.png cannot be read."),
        (OSError(28, "No space left on device"), 2, f"error: {about_files(OSError(28, 'No space left on device'))}"),
        (KeyboardInterrupt(), 130, STOPPED),
        (SystemExit(143), 143, STOPPED),
        (SystemExit(3), 3, ""),
        (SystemExit(None), 0, ""),
        (SystemExit("a reason"), 1, ""),
        (ValueError("a bug"), 1, ""),
    ],
)
def test_an_ending(error, code, line):
    assert ending(error) == (code, line)
