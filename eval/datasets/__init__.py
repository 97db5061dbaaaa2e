"""Benchmark data: folders, TensorFlow Datasets copies, label encodings."""
