"""Run a program of `gla-jax export` where gla-jax is not installed: python run_exported.py PROGRAM IMAGE."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.numpy import load_file

if len(sys.argv) != 3:
    sys.exit(__doc__)
path, photo = Path(sys.argv[1]), ImageOps.exif_transpose(Image.open(sys.argv[2]))
if photo.mode.startswith(("I", "F")):
    sys.exit(f"{sys.argv[2]} has more than 8 bits a colour; save it with 8 bits.")
program = jax.export.deserialize(bytearray(path.read_bytes()))
weights = load_file(path.with_suffix(".safetensors"))
with safe_open(path.with_suffix(".safetensors"), "np") as file:
    facts = file.metadata()
height, width = map(int, facts["size"].split("x"))
image = photo.convert("RGB").resize((width, height))
labels = np.asarray(program.call(weights, np.asarray(image)))
for index, name in enumerate(json.loads(facts["classes"])):
    print(f"{name}: {100 * (labels == index).mean():.1f}% of the image")
