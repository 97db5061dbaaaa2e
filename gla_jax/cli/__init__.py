"""The command line: one file a command, shared options and error handling."""

from gla_jax.cli.app import main, script

__all__ = ["main", "script"]
