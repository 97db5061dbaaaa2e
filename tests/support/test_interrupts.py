"""SIGTERM ends work as Ctrl-C does, and neither interrupts the cleaning up."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gla_jax.support.interrupts import STOPPING, signals_held, signals_raise, to_its_end


@pytest.mark.parametrize(
    ("number", "error", "code"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, SystemExit, 143),
        (signal.SIGHUP, SystemExit, 129),
    ],
)
def test_a_signal_raises_in_the_block_and_is_as_before_after_it(number, error, code):
    before = [signal.getsignal(each) for each in STOPPING]
    with pytest.raises(error) as caught, signals_raise():
        os.kill(os.getpid(), number)
    if code:
        assert caught.value.code == code
    assert [signal.getsignal(each) for each in STOPPING] == before


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_that_a_callback_drops_comes_again(number, error):
    """JAX has a callback of the garbage collector: a Ctrl-C that arrives there was lost, and the run went on."""
    hook = sys.unraisablehook

    def callback(*_):
        gc.callbacks.remove(callback)
        signal.raise_signal(number)

    def work():
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(10)

    with pytest.raises(error), signals_raise():
        work()
    assert sys.unraisablehook is hook


def test_a_signal_waits_for_the_end_of_the_cleaning_up():
    done = []

    def work():
        with signals_raise():
            try:
                raise ValueError("of the work")
            finally:
                with signals_held(), signals_raise(), signals_held():
                    os.kill(os.getpid(), signal.SIGTERM)
                    done.append("cleaned")
                done.append("never")

    with pytest.raises(SystemExit) as caught:
        work()
    assert (caught.value.code, done) == (143, ["cleaned"])


def test_what_somebody_else_handles_is_left_to_them():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("theirs"))
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["theirs"]


def test_other_threads_change_nothing():
    def work():
        with signals_raise(), signals_held():
            handlers.append(signal.getsignal(signal.SIGTERM))

    handlers = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]


def test_work_in_a_thread_ends_before_the_signal_goes_on():
    go_on, done = threading.Event(), []

    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(0.2)
        done.append("work")

    with pytest.raises((SystemExit, KeyboardInterrupt)), signals_raise():
        to_its_end(work)
    assert done == ["work"]


def test_a_terminated_process_ends_with_143():
    code = "import os, signal\nfrom gla_jax.support.interrupts import signals_raise\nwith signals_raise():\n"
    code += "    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 143
