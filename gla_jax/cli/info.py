"""gla-jax info."""

import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from gla_jax.models.registry import MODELS
from gla_jax.support.errors import UserError
from gla_jax.support.version import VERSION

PACKAGES = ("jax", "jaxlib", "flax", "numpy", "orbax-checkpoint", "optax", "pillow", "transformers", "tokenizers")
# What this program writes in each folder of its cache: a name that does not match is somebody else's.
CACHED = {
    "models": re.compile(rf"({'|'.join(MODELS)})|\..*\.unfinished"),
    "text": re.compile(r"[0-9a-f]{64}\.npy|\..*\.(unfinished|npy)"),
    "programs": re.compile(r".+-[0-9a-f]{64}-(cache|atime)|\.?lock"),  # JAX's names
}


def info(
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove what this program keeps in its cache; it asks nothing.")
    ] = False,
) -> None:
    """Print versions, devices, and the cache folder with its size; or clear the cache."""
    from gla_jax.support.files import cache_folder

    if not clear_cache:
        _print_machine()
    folders = {kind: cache_folder(kind) for kind in CACHED}
    typer.echo(f"cache      {folders['models'].parent}")
    for kind, folder in folders.items():
        entries = _entries(folder, kind)
        size = sum(map(_size, entries))
        if clear_cache:
            for entry in entries:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink(missing_ok=True)
        removed = " removed" if clear_cache else ""
        typer.echo(f"  {kind:8s} {size / 1e6:10.1f} MB in {len(entries)} entries{removed}")


def _print_machine() -> None:
    typer.echo(f"gla-jax    {VERSION}\npython     {platform.python_version()}, {platform.platform()}")
    for package in PACKAGES:
        try:
            typer.echo(f"{package:10s} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"{package:10s} missing")
    from gla_jax.cli.options import check_devices

    try:
        check_devices()
        import jax

        names = sorted({device.device_kind for device in jax.devices()})
        typer.echo(f"devices    {jax.device_count()} on {jax.default_backend()}: {', '.join(names)}")
    except UserError as error:
        typer.echo(f"devices    none: {error}")


def _entries(folder: Path, kind: str) -> list[Path]:
    """The entries of a folder of the cache that this program wrote."""
    try:
        return [path for path in folder.iterdir() if CACHED[kind].fullmatch(path.name)]
    except FileNotFoundError:
        return []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links are not followed."""
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if not file.is_dir() or file.is_symlink())
