"""Looks at a method instead of running it: attention of tokens, seams, ablations, fitted settings."""
