"""Segment one image by text: labels, shares, an overlay, and Hugging Face's list of segments.

python examples/segment_from_python.py
"""

import gla_jax
from gla_jax.tiny_world.scenes import render

scene = render(9, 336, 448, "test")  # any path, PIL image or uint8 array [h w 3] would do
segmenter = gla_jax.Segmenter.from_pretrained("tiny-world")
result = segmenter(scene.image, ["wood", "a yellow cloth", "a green cloth; a green cloth with zigzags", "a blue cloth"])

for name, share in result.shares().items():
    print(f"{name:20s} {share:6.1%} of the pixels")
largest = result.segments()[0]
print(f"the largest segment is {largest['label']!r}, its mask {largest['mask'].size} pixels")
result.overlay().save("overlay.png")
print("overlay.png")
