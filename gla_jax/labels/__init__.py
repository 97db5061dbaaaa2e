"""From token logits to a label map of the image."""
