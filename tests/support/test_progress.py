"""What a user sees while long work goes on: plain lines in a file, one live display on a terminal."""

import io

import pytest
from rich.console import Console

from gla_jax.support import progress
from gla_jax.support.progress import steps, track


def test_lines_say_how_far_it_is_away_from_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_STEPS", 0.0)
    for item in track("ab", "letters"):
        with steps(item) as step:
            step(1, 2)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "a: step 1 of 2",
        "letters 1/2",
        "b: step 1 of 2",
        "letters 2/2",
    ]


def test_the_last_item_is_always_told(capsys):
    assert list(track(range(3), "things")) == [0, 1, 2]
    assert capsys.readouterr().err == "things 3/3\n"


@pytest.fixture
def terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=screen, force_terminal=True, width=80))
    return screen


def test_a_terminal_has_one_display_for_items_and_their_steps(terminal):
    """Two live displays at once are an error of the library that draws them."""
    for item in track(["photo.jpg"], "segmented"):
        with steps(item) as step:
            step(1, 4)
            step(4, 4)
    shown = terminal.getvalue()
    assert "segmented" in shown
    assert not progress._shown


def test_an_interrupted_display_is_taken_down(terminal):
    def stop():
        for _ in track(range(3), "things"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not progress._shown
