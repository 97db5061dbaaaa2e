"""The structure that DESIGN and docs/structure.md show is the one that the imports have."""

from tests.layers import check


def test_folders_import_only_from_folders_below():
    result = check()
    assert result.returncode == 0, result.stdout


def test_a_lazy_import_upwards_is_found():
    """Otherwise the check would pass whatever the code does."""
    upwards = 'def run():\n    """Upwards."""\n    import gla_jax.cli.app\n'
    result = check(extra={"support/upwards.py": upwards})
    assert result.returncode == 1
    assert "gla_jax.support.upwards -> gla_jax.cli.app" in result.stdout
