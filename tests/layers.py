"""Checks the layers of the package, which pyproject.toml lists from roof to ground:

python -m tests.layers

The checkout keeps convert/ and eval/ beside gla_jax/, so that import-linter reads a copy laid out as installed.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def check(source: Path = CHECKOUT, extra: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run import-linter over the package in `source`; extra: files to add, by path, with their content."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "gla_jax"
        only_code = shutil.ignore_patterns("__pycache__", "weights", "*.gz", "*.json")
        shutil.copytree(source / "gla_jax", package, ignore=only_code)
        for name in ("convert", "eval"):
            shutil.copytree(source / name, package / name, ignore=only_code)
        for path, content in (extra or {}).items():
            (package / path).write_text(content)
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
        options = [str(CHECKOUT / "pyproject.toml"), "--no-cache"]
        environment = os.environ | {"PYTHONPATH": folder}
        return subprocess.run([*command, *options], cwd=folder, env=environment, capture_output=True, text=True)


if __name__ == "__main__":
    result = check()
    print(result.stdout, result.stderr)
    sys.exit(result.returncode)
