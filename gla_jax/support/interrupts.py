"""Ctrl-C, SIGTERM and SIGHUP: all end the work as exceptions do, and none of them interrupts the cleaning up."""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SECONDS_TO_SEND_AGAIN = 0.01
_held: list[int] | None = None  # the signals that came during a block of signals_held, None outside one


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit (exit code 143 and 129) during a block, as Ctrl-C raises its exception.

    Signals reach the main thread alone: in any other nothing changes. A signal that is handled elsewhere or ignored,
    as nohup ignores SIGHUP, is left alone.
    """
    usual = (signal.SIG_DFL, signal.default_int_handler, _stop)
    before = {number: signal.getsignal(number) for number in STOPPING if _in_main_thread()}
    before = {number: handler for number, handler in before.items() if handler in usual}
    unraisable = sys.unraisablehook

    def send_again(lost: Any) -> None:
        # Callbacks of the garbage collector, as JAX has one, and __del__ drop an exception: the run would go on.
        if (number := _number_of(lost.exc_value)) in before:
            _thread.start_new_thread(_send_later, (number,))  # no Thread, whose lock this thread may hold
        else:
            unraisable(lost)

    try:
        for number in before:
            signal.signal(number, _stop)
        sys.unraisablehook = send_again
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_held() -> Iterator[None]:
    """Put off what signals_raise raises to the end of a block, which removes what is half-written."""
    global _held
    if not _in_main_thread() or _held is not None:
        yield
        return
    _held = []
    try:
        yield
    finally:
        arrived, _held = _held, None
    for number in arrived[:1]:
        _stop(number, None)


def to_its_end(work: Callable[..., None], *arguments: Any) -> None:
    """Call work in a thread and return when it has ended, even where a signal interrupts the waiting.

    For libraries that work in threads of their own, which an exception in the midst of it would leave behind.
    """
    with ThreadPoolExecutor(1) as pool:
        done = None
        try:
            with signals_held():  # an exception while a thread starts breaks the pool
                done = pool.submit(work, *arguments)
            done.result()
        except BaseException:
            while done and not done.done():
                with suppress(KeyboardInterrupt, SystemExit):  # an impatient second signal
                    wait([done])
            raise


def _stop(number: int, _: FrameType | None) -> None:
    if _held is not None:
        _held.append(number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise SystemExit(128 + number)


def _number_of(error: BaseException | None) -> int | None:
    """The signal for which _stop raised an error."""
    if isinstance(error, KeyboardInterrupt):
        return signal.SIGINT
    return error.code - 128 if isinstance(error, SystemExit) and isinstance(error.code, int) else None


def _send_later(number: int) -> None:
    time.sleep(SECONDS_TO_SEND_AGAIN)
    signal.raise_signal(number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
