"""gla-jax models."""


def models() -> None:
    """List the models that are known by name."""
    from rich.console import Console

    from gla_jax.models.registry import models_table

    Console().print(models_table())
