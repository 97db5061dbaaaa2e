"""The page as a Hugging Face Space."""

import os
import tempfile
from pathlib import Path

from gla_jax.app.answers import MAX_UPLOAD_BYTES, Answers
from gla_jax.app.page import STYLE, build_page

folder = Path(tempfile.mkdtemp(prefix="gla-jax-app-"))
models = os.environ.get("GLA_JAX_MODELS", "tiny-world").split(",")
page = build_page(Answers(models), folder)
page.launch(max_file_size=MAX_UPLOAD_BYTES, allowed_paths=[str(folder)], css=STYLE)
