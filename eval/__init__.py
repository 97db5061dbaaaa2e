"""Evaluation: benchmarks, their protocols, metrics and reports."""
