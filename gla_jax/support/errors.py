"""The errors a user can cause: each message is one sentence with the input, the reason and the way out."""

import signal


class UserError(Exception):
    """Something the user gave cannot be used; the command line prints the message alone and exits with 2."""


class ModelError(UserError):
    """A model name or folder that cannot be loaded or downloaded."""


class ConversionError(UserError):
    """A weight file that cannot be converted: unsafe, truncated, or of an architecture the rules do not cover."""


class ImageError(UserError):
    """An image file that cannot be read."""


class ClassesError(UserError):
    """A list of class names that cannot be used."""


class DataError(UserError):
    """A benchmark's data that is missing, damaged or not laid out as expected."""


def first_line(error: BaseException) -> str:
    """The first line of another library's error without its full stop, or the name of its kind."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def about_files(error: OSError) -> str:
    """A refusal of the operating system as a sentence for a user."""
    reason = error.strerror or first_line(error)
    where = f"{error.filename} cannot be read or written" if error.filename else "reading or writing failed"
    return f"{where} ({reason}); see that it is there, that you may use it and that its disk has room."


def ending(error: BaseException) -> tuple[int, str]:
    """Exit code of a command that ends with an exception, and the line it prints; empty for a bug or a plain exit.

    2 for a user's mistake or files, 130 for Ctrl-C, 143 for SIGTERM, 1 for a bug.
    """
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, OSError):
        return 2, f"error: {about_files(error)}"
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    return code, "stopped; nothing half-written is left" if code > 128 else ""
