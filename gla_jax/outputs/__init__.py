"""Result files of `gla-jax segment`, each whole or not there."""
