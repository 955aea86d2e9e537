"""How a run ends early: signals to a training process, and the death of its launcher.

    end_with_launcher()                       # at start: the kernel ends this process when its launcher dies
    listen(["grpo", "train", "x.yaml"])       # from here on, a signal ends the process with two lines on stderr
    goes_on_with(…)                           # from here on, it has a folder, which the second line names
    defer()                                   # from here on, there are a step to finish and a checkpoint to save
    while …:
        train_step()
        if (number := received()): save(); raise Stopped(number, step)

A thread reads the signals' numbers from a pipe, so that a second one ends the process even while the main thread is
stuck in a collective or a kernel.
"""

import ctypes
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import psutil

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SIGUSR1: SLURM's notice before a time limit
COMMAND = "GRPO_COMMAND"  # the command line as typed, from a launcher of ours to the processes it starts
LAUNCHER = "GRPO_LAUNCHER"  # that launcher's process id
WITHIN_PIPELINE = "GRPO_WITHIN_PIPELINE"  # set in the processes of a pipeline's stages

_PR_SET_PDEATHSIG = 1
_SAME_SECONDS = 1.0  # Ctrl-C and schedulers signal launcher and trainer, and the launcher forwards: count them as one

_first: tuple[int, float] | None = None  # the signal to stop for, and when it arrived
_deferred = False
_words: Sequence[str] = ()  # the command line
_settings: tuple[Sequence[str], Sequence[str]] = ((), ())  # that continue the run: before and after it has saved
_nothing_done = ""
_parent = 0


class Stopped(Exception):  # noqa: N818 (an end, not an error)
    """A signal ended the run after `step`, with a checkpoint saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped at step {step} ({signal.Signals(number).name})")
        self.number = number


def end_with_launcher() -> None:
    """Have the kernel end this process with its launcher.

    With SIGKILL where the launcher forwards signals and waits, as `grpo train` and torchrun do. `accelerate launch` of
    one process dies of a SIGTERM without forwarding it: its trainer gets a SIGTERM then, and saves.
    """
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    forwards = LAUNCHER in os.environ or "RANK" in os.environ
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL if forwards else signal.SIGTERM)
    if os.getppid() != launcher:  # it died before the call
        os._exit(1)


def listen(words: Sequence[str], nothing_done: str = "stopped") -> None:
    """End this process when a signal arrives: at once, or after `defer` when a second one does.

    Before `defer`, it prints `nothing_done (SIGTERM)`; then `continue with: words`.
    """
    global _words, _nothing_done, _parent
    _words, _nothing_done, _parent = _typed(words), nothing_done, os.getppid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # a Python handler, which the wake-up descriptor requires
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()


def defer() -> None:
    """From now on, the first signal only sets `received`."""
    global _deferred
    _deferred = True


def goes_on_with(before: Sequence[str], after: Sequence[str]) -> None:
    """Settings, as key=value, with which the command continues this run: before and after it has saved a checkpoint."""
    global _settings
    _settings = before, after


def received() -> int:
    """The signal to stop for, or 0."""
    return _first[0] if _first else 0


def command_to_continue(words: Sequence[str]) -> str:
    """What the user types to continue a run that was started with `words`, or by this process's launcher."""
    return shlex.join(_typed(words))


def _typed(words: Sequence[str]) -> Sequence[str]:
    """The command line as the user typed it, if a launcher started this process."""
    if COMMAND in os.environ:
        return shlex.split(os.environ[COMMAND])
    if launcher := psutil.Process().parent():
        line = launcher.cmdline()
        names = [Path(word).name for word in line[:2]]
        if names[-1:] == ["accelerate"] or names[-1:] == ["torchrun"]:
            return [names[-1], *line[2:]]
    return words


def end(message: str, number: int, command: str = "", *, saved: bool = False) -> NoReturn:
    """Print how the run ended and how to continue, in one process only, and exit with 128 + the signal's number."""
    if os.environ.get("RANK", "0") == "0":
        replaced = tuple(setting.partition("=")[0] + "=" for setting in _settings[saved])
        words = [*(word for word in _words if not word.startswith(replaced)), *_settings[saved]]
        os.write(2, f"{message}\ncontinue with: {command or shlex.join(words)}\n".encode())
    sys.stdout.flush()
    os._exit(128 + number)


def _watch(reader: int) -> None:
    global _first, _parent
    while True:
        for number in os.read(reader, 64):
            if number not in SIGNALS:
                continue
            if _first is None:
                _first = (number, time.monotonic())
                if not _deferred:
                    end(f"{_nothing_done} ({signal.Signals(number).name})", number)
            elif os.getppid() != _parent:
                _parent = os.getppid()  # the launcher's death is not the user's second signal
            elif time.monotonic() - _first[1] > _SAME_SECONDS:
                os._exit(128 + number)
