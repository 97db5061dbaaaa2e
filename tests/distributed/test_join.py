"""Joining a run of several processes: what does not fit is one sentence, and waiting has no short limit."""

import subprocess
import sys

import jax
import pytest

from gla_jax.distributed import processes
from gla_jax.distributed.processes import OthersEnded, Processes, join, joined
from gla_jax.support.errors import UserError


@pytest.fixture
def environment(monkeypatch):
    def set_variables(address, number, index):
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        monkeypatch.setenv("JAX_NUM_PROCESSES", number)
        monkeypatch.setenv("JAX_PROCESS_ID", index)

    return set_variables


@pytest.mark.parametrize("address", ["nonsense", "", ":1234", "host:", "host:port", "host:70000", "host:0", "a b:1"])
def test_an_address_that_is_none_is_one_sentence(address, environment):
    environment(address, "2", "0")
    with pytest.raises(UserError, match=r"cannot join a run of several \(JAX_COORDINATOR_ADDRESS is '.*' and not HOST"):
        join()


@pytest.mark.parametrize(("number", "index"), [("two", "0"), ("2", "2"), ("2", "-1"), ("0", "0"), ("2", "0.5")])
def test_numbers_that_do_not_fit_are_one_sentence(number, index, environment):
    environment("127.0.0.1:12345", number, index)
    with pytest.raises(UserError, match="cannot join a run of several") as caught:
        join()
    assert "\n" not in str(caught.value)


def test_one_that_cannot_join_says_so_once(environment, capfd):
    environment("nonsense", "2", "0")
    with pytest.raises(UserError), joined(False, "start again"):
        pass
    assert capfd.readouterr().err == ""


def test_the_watcher_says_the_last_sentence_unless_all_went_well():
    for lines, said in (("first\nsecond\n", "second\n"), ("first\nsecond\ndone\n", "")):
        watched = subprocess.run(
            [sys.executable, "-c", processes._WATCHER], input=lines, capture_output=True, text=True, timeout=60
        )
        assert (watched.returncode, watched.stderr) == (0, said)


def test_all_wait_for_days_for_a_slow_process(monkeypatch):
    """The limits of collectives and Orbax's own barriers are minutes."""
    asked = {}
    monkeypatch.setattr(
        "orbax.checkpoint.multihost.get_barrier_sync_fn", lambda: lambda **options: asked.update(options)
    )
    Processes(0, 2).wait("end")
    assert asked == {"key": "gla-jax end", "timeout_ms": 7 * 24 * 3600 * 1000}


def test_a_process_that_is_gone_ends_the_waiting(monkeypatch):
    def fail(**_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    monkeypatch.setattr("orbax.checkpoint.multihost.get_barrier_sync_fn", lambda: fail)
    with pytest.raises(OthersEnded):
        Processes(0, 2).wait("end")
