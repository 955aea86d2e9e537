"""A job that runs in a box, seen from outside: its pipes, its limits, how it ended."""

import math
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from rewards.programs.sandbox import isolation

if TYPE_CHECKING:
    from rewards.programs.sandbox.box import Box

Reason = Literal["timeout", "memory", "output"]
_WATCH_SECONDS = 0.05
_SLACK_BYTES = 256 << 20  # address space beyond memory: the interpreter, libraries, stacks of threads


class SandboxError(RuntimeError):
    """A sandbox could not be started, or broke."""


class Stopped(Exception):  # noqa: N818
    """A submission passed a limit, and its box is gone. `reason`: "timeout", "memory" or "output"."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one run. Time that it spends neither computing nor waiting for a CPU is limited, too: some sleep."""

    time_limit: float = 5.0  # seconds of CPU, of all its processes together
    memory_mb: int = 512  # of all its processes together; files are 64 MiB more
    output_bytes: int = 1 << 20
    compiling: bool = False

    @property
    def idle_seconds(self) -> float:
        return self.time_limit + 2

    def for_process(self, periods: int) -> dict[str, int]:
        memory = self.memory_mb << 20
        return {
            "cpu_seconds": math.ceil(self.time_limit * periods) + 1,
            "address_space": memory + _SLACK_BYTES,
            "file_size": isolation.FOLDER_BYTES if self.compiling else isolation.FOLDER_BYTES // 4,
            "stack": min(memory, 128 << 20),
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended by itself: Ended(status=0, cpu=0.02, memory=21_000_000, stdout=b"3\\n", stderr="")."""

    status: int  # exit status; -9: killed by signal 9
    cpu: float  # seconds
    memory: int  # bytes, the largest process
    stdout: bytes  # what was not read before
    stderr: str  # its end


class Running:
    """A job that runs in a box. Close it (or leave its `with`) to end it."""

    def __init__(self, box: "Box", job: dict[str, Any], limits: Limits) -> None:
        self._box, self._limits = box, limits
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
            box.send(job, [theirs_in, theirs_out, theirs_err])
        except BaseException:
            self.close()
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        for fd in (self._stdout, self._stderr, box.control_fd):
            self._poll.register(fd, select.POLLIN)
        self._used = 0.0
        self._watched = time.monotonic()
        self.renew()
        self._cpu_before = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End it if it still runs: the box goes with it."""
        for fd in list(self._open):
            self._forget(fd)
        if self._report is None:
            self._box.close()

    def renew(self) -> None:
        """Time is counted from now on."""
        self._idle = 0.0
        self._cpu_before: float | None = None

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Give it input; with `last`, the end of input after it."""
        self._unsent += data
        self._no_more_input |= last
        self._write()

    def line(self) -> bytes | None:
        """The next line of its output; None when it has ended."""
        if time.monotonic() - self._watched >= _WATCH_SECONDS:  # also where answers come too fast for a step to look
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
        """Wait for its end."""
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
        """Tell it that there is no more input, and give it two seconds to end; it is killed otherwise."""
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
        except BrokenPipeError:  # it reads no more
            self._forget(self._stdin)
            return
        with suppress(KeyError):
            self._poll.unregister(self._stdin)
        if self._no_more_input:
            self._forget(self._stdin)

    def _read(self, fd: int) -> bool:
        """Read once; False when there is nothing now."""
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
        """Look at what it uses. Until it is asked something, it may do nothing."""
        now = time.monotonic()
        cpu, waited, memory = self._box.usage()
        if self._cpu_before is None:
            self._cpu_before = cpu
        # On a busy machine much of the time is waiting for a CPU, which is nobody's fault.
        elapsed, active = now - self._watched, cpu + waited - self._used
        if asked and active < elapsed / 10:
            self._idle += elapsed
        self._watched, self._used = now, cpu + waited
        limits = self._limits
        if memory > limits.memory_mb << 20:
            self._stop("memory", f"more than {limits.memory_mb} MiB of memory")
        if cpu - self._cpu_before > limits.time_limit:
            self._stop("timeout", f"more than {limits.time_limit:g} s of computing")
        if self._idle > limits.idle_seconds:
            self._stop("timeout", f"waited for {limits.idle_seconds:g} s")

    def _stop(self, reason: Reason, detail: str) -> None:
        self.close()
        raise Stopped(reason, detail)

    def _forget(self, fd: int) -> None:
        self._open.discard(fd)
        with suppress(KeyError):
            self._poll.unregister(fd)
        os.close(fd)
