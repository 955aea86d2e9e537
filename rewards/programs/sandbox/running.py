"""A job running in a box, seen from outside: its pipes, its limits, how it ended.

    with Running(box, {"mode": "script", …}, Limits()) as running:   # a few milliseconds
        running.feed(b"1 2\\n", last=True)
        ended = running.wait()

Every 50 ms the CPU time and memory of the box's process tree are read from /proc; exceeding a limit kills the box.
"""

import os
import select
import time
from contextlib import suppress
from typing import Any, Self

from rewards.programs.sandbox.box import Box
from rewards.programs.sandbox.limits import Ended, Limits, Reason, Stopped

_WATCH_SECONDS = 0.05


class Running:
    """A job running in a box; closing it (or leaving its `with`) ends the job.

    job: see inside/modes.py. periods: how many times `renew` may restart the clock, plus one.
    """

    def __init__(self, box: Box, job: dict[str, Any], limits: Limits, *, periods: int = 1) -> None:
        self._box, self._limits = box, limits
        box.clean = False  # until the job has ended
        self._unread = bytearray()
        self._unsent = bytearray()
        self._no_more_input = False
        self._errors = bytearray()
        self._num_bytes = 0
        self._report: dict[str, Any] | None = None
        theirs_in, self._stdin = os.pipe()
        self._stdout, theirs_out = os.pipe()
        self._stderr, theirs_err = os.pipe()
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._open = {self._stdin, self._stdout, self._stderr}
        self._poll = select.poll()
        try:
            box.own([theirs_in, theirs_out, theirs_err])
            box.send(job | {"limits": limits.for_process(periods)}, [theirs_in, theirs_out, theirs_err])
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        for fd in (self._stdout, self._stderr, box.control_fd):
            self._poll.register(fd, select.POLLIN)
        self._used = self._cpu = 0.0
        self._watched = time.monotonic()
        self.renew()
        self._cpu_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the job; if it is still running, the box is killed with it."""
        for fd in list(self._open):
            self._forget(fd)
        if self._report is None:
            self._box.close()

    def renew(self) -> None:
        """Restart the clock."""
        self._idle = 0.0
        self._cpu_before: float | None = None

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Send input; `last` closes the pipe afterwards."""
        self._unsent += data
        self._no_more_input |= last
        self._write()

    def line(self) -> bytes | None:
        """The next line of output; None once the job has ended."""
        if time.monotonic() - self._watched >= _WATCH_SECONDS:  # answers may come too fast for _step to check
            self._watch(asked=False)
        searched = 0
        while True:
            end = self._unread.find(b"\n", searched)
            if end >= 0:
                line = bytes(self._unread[:end])
                del self._unread[: end + 1]
                return line
            if self._report is not None:
                return None
            searched = len(self._unread)
            self._step()

    def wait(self) -> Ended:
        """Wait until the job ends."""
        while self._report is None:
            self._step()
        report = self._report
        return Ended(
            report["status"],
            report["cpu"],
            report["memory"],
            bytes(self._unread),
            self._errors[-4096:].decode(errors="replace"),
        )

    def finish(self) -> None:
        """Close the input and give the job two seconds to end before killing it."""
        self.feed(b"", last=True)
        deadline = time.monotonic() + 2
        while not self._box.closed and self._report is None and time.monotonic() < deadline:
            self._step()
        self.close()

    def _step(self) -> None:
        for fd, _ in self._poll.poll(_WATCH_SECONDS * 1000):
            if fd == self._stdin:
                self._write()
            elif fd == self._box.control_fd:
                self._report = self._box.report()
                while self._stdout in self._open and self._read(self._stdout):
                    pass
                while self._stderr in self._open and self._read(self._stderr):
                    pass
                self._box.clean = self._report["clean"]
                self._limits.budget.left -= max(0.0, self._report["cpu"] - self._cpu)
                self.close()
                return
            else:
                self._read(fd)
        if time.monotonic() - self._watched >= _WATCH_SECONDS:
            self._watch()

    def _write(self) -> None:
        if self._stdin not in self._open:
            return
        try:
            while self._unsent:
                del self._unsent[: os.write(self._stdin, self._unsent[: 1 << 16])]
        except BlockingIOError:
            self._poll.register(self._stdin, select.POLLOUT)
            return
        except BrokenPipeError:  # it closed its input
            self._forget(self._stdin)
            return
        with suppress(KeyError):
            self._poll.unregister(self._stdin)
        if self._no_more_input:
            self._forget(self._stdin)

    def _read(self, fd: int) -> bool:
        """Read once; False if nothing is available."""
        try:
            data = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        if not data:
            self._forget(fd)
            return False
        self._num_bytes += len(data)
        if self._num_bytes > self._limits.output_bytes:
            self._stop("output", f"more than {self._limits.output_bytes} bytes of output")
        if fd == self._stdout:
            self._unread += data
        else:
            self._errors = (self._errors + data)[-8192:]
        return True

    def _watch(self, *, asked: bool = True) -> None:
        """Check resource use. asked=False: no request is pending, so being idle is fine."""
        now = time.monotonic()
        cpu, waited, memory, runnable = self._box.usage()
        if self._cpu_before is None:
            self._cpu_before = cpu
        # On a busy machine much of the time goes to waiting for a CPU, which is not the submission's fault.
        elapsed, active = now - self._watched, cpu + waited - self._used
        idle = elapsed if asked and not runnable and active < elapsed / 10 else 0.0
        self._idle += idle
        limits = self._limits
        limits.budget.left -= max(0.0, cpu - self._cpu) + idle  # less than before: a process has ended
        self._watched, self._used, self._cpu = now, cpu + waited, cpu
        if memory > limits.memory_mb << 20:
            self._stop("memory", f"more than {limits.memory_mb} MiB of memory")
        if cpu - self._cpu_before > limits.time_limit:
            self._stop("timeout", f"more than {limits.time_limit:g} s of CPU time")
        if self._idle > limits.idle_seconds:
            self._stop("timeout", f"idle for {limits.idle_seconds:g} s")
        if exceeded := limits.budget.exceeded:
            self._stop("timeout", exceeded)

    def _stop(self, reason: Reason, detail: str) -> None:
        self.close()
        raise Stopped(reason, detail)

    def _forget(self, fd: int) -> None:
        self._open.discard(fd)
        with suppress(KeyError):
            self._poll.unregister(fd)
        os.close(fd)
