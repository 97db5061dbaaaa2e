"""Every block of code in README and docs runs as it stands, or says what it needs, and so does the notebook."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

from gla_jax.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Why a block is not run here. Whatever else stands above a block is text.
NEEDS = {
    "the hub",
    "weights",
    "data",
    "labelled images",
    "supervision",
    "fiftyone",
    "gradio",
    "a running page",
    "an install",
    "minutes",
    "many devices",
    "an accelerator",
}
BLOCK = re.compile(r"(?:<!-- (?:needs|takes) ([^>]*) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)


def blocks(page):
    """(what it needs or "", language, text) of every block of a page."""
    return [match.groups(default="") for match in BLOCK.finditer(page.read_text())]


def commands(text):
    """The commands of a shell block, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_need_in_known_words(page):
    """A block that is left out by a misspelt mark would never run."""
    text = page.read_text()
    assert {needs for needs, _, _ in blocks(page) if needs} <= NEEDS
    assert text.count("<!-- needs") + text.count("<!-- takes") == sum(bool(needs) for needs, _, _ in blocks(page))
    assert {language for _, language, _ in blocks(page)} <= {"sh", "python", "yaml", "json", "text"}


RUNNABLE = [
    page for page in PAGES if any(not needs and language in ("sh", "python") for needs, language, _ in blocks(page))
]


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    """A newcomer copies them one after the other; Python blocks share their names."""
    for name in ("docs", "examples", "gla_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    os.mkdir("out")
    names = {}
    for needs, language, text in blocks(page):
        if needs:
            continue
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
        for program, *words in commands(text) if language == "sh" else []:
            assert program == "gla-jax", f"mark what `{program}` needs"
            assert main(words) in (0, None), words


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """GLA names more pixels right than each window alone, as the text beside the cells says."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not kept: they would go out of date"
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "tour.ipynb", "exec"), names)
    assert names["accuracy"]("gla") > names["accuracy"]("proxyclip")
    assert (tmp_path / "out" / "tour" / "scene.overlay.png").exists()
