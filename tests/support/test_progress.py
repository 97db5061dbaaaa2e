"""What a user sees while long work goes on: plain lines in a file, one live display on a terminal."""

import io
import re

import pytest
from rich.console import Console

from gla_jax.support import progress
from gla_jax.support.progress import counter, steps, track


@pytest.fixture
def clock(monkeypatch):
    """The seconds that progress reads, set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_how_far_it_is_away_from_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    for item in track("ab", "letters"):
        with steps(item) as step:
            step(1, 2)
    said = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in said] == [
        "letters: 0 of 2",
        "a: step 1 of 2",
        "letters: 1 of 2",
        "b: step 1 of 2",
        "letters: 2 of 2",
    ]


def test_the_last_item_is_always_told(capsys):
    assert list(track(range(3), "things")) == [0, 1, 2]
    assert re.fullmatch(r"things: 3 of 3, [\d.]+ (a second|s each)\n", capsys.readouterr().err)


def test_a_line_comes_every_ten_seconds(clock, capsys):
    with counter("images") as advance:
        for second in range(31):
            clock[0] = float(second)
            advance(2 * second, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["images: 22 of 1000, 2.0 a second, 8 min left", "images: 44 of 1000, 2.0 a second, 8 min left"]


def test_a_resumed_run_counts_only_its_work(clock, capsys):
    """900 images of the run before would promise an end in a second."""
    with counter("images") as advance:
        advance(900, 1000)
        clock[0] = 20.0
        advance(905, 1000)
    assert capsys.readouterr().err == "images: 905 of 1000, 4.0 s each, 6 min left\n"


def test_a_run_with_nothing_left_says_nothing(capsys):
    with counter("images") as advance:
        advance(6, 6)
    assert capsys.readouterr().err == ""


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
    assert not progress._running


def test_a_terminal_shows_the_rate_of_this_run(terminal, clock):
    with counter("[/x]") as advance:
        advance(900, 1000)
        clock[0] = 20.0
        advance(905, 1000)
    last = terminal.getvalue()
    assert "[/x]" in last
    assert "905/1000" in last
    assert "4.0 s each, 6 min left" in last


def test_an_interrupted_display_is_taken_down(terminal):
    def stop():
        for _ in track(range(3), "things"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert not progress._running
