"""tiny-world: generated scenes with ground truth, and two small models trained on them; for demos and tests."""
