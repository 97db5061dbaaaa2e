"""Model folders: a spec, its parameters and where they came from."""
