"""A time limit on a block of code, in any process."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A timer of our own: reward functions may use SIGALRM and its timer themselves, as TRL's do.
_SIGNAL = signal.SIGRTMIN + 7


class OutOfTime(BaseException):  # not an Exception, so that a function's own `except` does not catch it
    """The time is up."""


_running: list[object] = []  # the block with a limit, if any


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds; None: never.

    It interrupts Python code, sleep and waiting for locks, sockets and processes, but not a computation in C. It does
    nothing outside of the main thread, where Python handles no signals.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(_SIGNAL) is not _raise:
        signal.signal(_SIGNAL, _raise)  # and never reset, as a late signal would end the process
    block = object()
    timer = threading.Timer(seconds, _interrupt, [threading.main_thread().ident, block])
    timer.daemon = True
    _running.append(block)
    timer.start()
    try:
        yield
    finally:
        _running.remove(block)
        timer.cancel()


def _interrupt(thread: int, block: object) -> None:
    if block in _running:
        signal.pthread_kill(thread, _SIGNAL)


def _raise(number: int, frame: object) -> None:
    if _running:
        raise OutOfTime
