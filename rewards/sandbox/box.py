"""One sandbox, and what runs in it, seen from outside.

    box = Box("bubblewrap")                     # some 0.1 s
    with box.run({"mode": "script", …}, Limits()) as running:   # some milliseconds
        running.feed(b"1 2\n", last=True)
        ended = running.wait()
    box.close()

A box runs one submission at a time. What it cost is known when it ends; while it runs, the CPU time and memory of its
whole tree of processes are read from /proc every 50 ms, and a limit passed ends the box.
"""

import base64
import functools
import itertools
import json
import marshal
import math
import os
import select
import shutil
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from rewards.sandbox import isolation
from rewards.sandbox.isolation import Level

Reason = Literal["timeout", "memory", "output"]

_MODULES = ("plain", "confine", "modes", "zygote", "enter")
# The code of a sandbox comes through its control socket, so that it needs no path of this machine.
_START = """
import base64, json, marshal, socket, sys, types
control = socket.socket(fileno=int(sys.argv[1]))
def read(size):
    data = bytearray()
    while len(data) < size:
        data += control.recv(size - len(data)) or sys.exit("the parent has gone")
    return data
message = json.loads(read(int.from_bytes(read(4), "big")))
for name in ("rewards", "rewards.sandbox"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, code in message["modules"]:
    module = sys.modules["rewards.sandbox." + name] = types.ModuleType("rewards.sandbox." + name)
    setattr(sys.modules["rewards.sandbox"], name, module)
    exec(marshal.loads(base64.b64decode(code)), module.__dict__)
sys.modules["rewards.sandbox.enter"].main(control, message["spec"])
"""
_WATCH_SECONDS = 0.05
_SLACK_BYTES = 256 << 20  # address space beyond memory: the interpreter, libraries, stacks of threads
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_slots = itertools.count()
started: "weakref.WeakSet[Box]" = weakref.WeakSet()


class SandboxError(RuntimeError):
    """A sandbox could not be started, or broke."""


class Stopped(Exception):  # noqa: N818
    """A submission passed a limit, and its box is gone. `reason`: "timeout", "memory" or "output"."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one run. Wall time is limited too, at three times the CPU time and two seconds: for those that sleep."""

    time_limit: float = 5.0  # seconds of CPU, of all its processes together
    memory_mb: int = 512  # of all its processes together, files that it writes included
    output_bytes: int = 1 << 20
    compiling: bool = False

    @property
    def wall_seconds(self) -> float:
        return 3 * self.time_limit + 2

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


class Box:
    """A sandbox of a level. SandboxError when it cannot be started."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.closed = False
        self.clean = True  # nothing is left of the last run
        self._host_folder = None if level in ("bubblewrap", "namespaces") else tempfile.mkdtemp(prefix="sandbox-")
        self._spec = isolation.describe(level, next(_slots), self._host_folder or "")
        if self._host_folder and self._spec["user"] is not None:
            os.chown(self._host_folder, self._spec["user"], self._spec["user"])
        self.folder: str = self._spec["folder"]
        self._control, theirs = socket.socketpair()
        command = [isolation.python(), "-s", "-S", "-P", "-X", "utf8", "-c", _START]
        environment = {"PYTHONHASHSEED": "0"}  # a submission that iterates over a set of words does it the same way always
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        try:
            self._introduce(command, environment)
        except BaseException:
            self.close()
            raise

    def _introduce(self, command: Sequence[str], environment: dict[str, str]) -> None:
        specs = [self._spec]
        if self.level == "bubblewrap":
            variables = [word for name, value in environment.items() for word in ("--setenv", name, value)]
            inside = [isolation.bwrap_command(self._spec, command)[0], *variables]
            inside += isolation.bwrap_command(self._spec, command)[1:]
            specs = [self._spec | {"bwrap": inside}, self._spec | {"outside": False, "user": None}]
        assert self._process.stderr is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            for spec in specs:
                message = json.dumps({"modules": _code(), "spec": spec}).encode()
                self._control.sendall(len(message).to_bytes(4, "big") + message)
        self._control.settimeout(60)
        self._replies = self._control.makefile("rb")
        try:
            answer = self._replies.readline()
        except (OSError, TimeoutError):
            answer = b""
        if not answer:
            self._process.kill()
            problem = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            raise SandboxError(f"level {self.level!r}: {problem[-1] if problem else 'it does not answer'}")
        self._process.stderr.close()
        self._control.settimeout(None)
        started.add(self)
        self._zygote = self._process.pid
        while children := _children(self._zygote):
            self._zygote = children[0]

    def run(self, job: dict[str, Any], limits: Limits, *, periods: int = 1) -> "Running":
        """Start a job (modes.py). periods: how often `Running.renew` may be called."""
        self.clean = False  # until it has ended
        return Running(self, job | {"limits": limits.for_process(periods)}, limits)

    def close(self) -> None:
        """Kill everything in it. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        self._control.shutdown(socket.SHUT_RDWR)
        if hasattr(self, "_replies"):
            self._replies.close()
        self._control.close()
        try:
            self._process.wait(5)  # it ends at once, and with it all that ran in it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        if self._host_folder:
            shutil.rmtree(self._host_folder, ignore_errors=True)

    def alive(self) -> bool:
        return self._process.poll() is None

    def abandon(self) -> None:
        """Let go of it without ending it: a forked child's copy must not keep it alive after the parent."""
        self.closed = True
        self._replies.close()
        self._control.close()

    def send(self, job: dict[str, Any], pipes: Sequence[int]) -> None:
        body = json.dumps(job).encode()
        try:
            socket.send_fds(self._control, [len(body).to_bytes(4, "big")], pipes)
            self._control.sendall(body)
        except OSError as error:
            raise SandboxError(f"a sandbox of level {self.level!r} has ended: {error}") from error

    @property
    def control_fd(self) -> int:
        return self._control.fileno()

    def report(self) -> dict[str, Any]:
        """What the zygote says of a run that has ended."""
        line = self._replies.readline()
        if not line:
            raise SandboxError(f"a sandbox of level {self.level!r} has ended during a run")
        return json.loads(line)

    def usage(self) -> tuple[float, int]:
        """CPU seconds and resident bytes of what runs in it now."""
        cpu, memory = 0.0, 0
        waiting = _children(self._zygote)
        while waiting:
            pid = waiting.pop()
            with suppress(OSError):  # it may end while we look
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu += sum(map(int, fields[11:15])) / _TICKS
                memory += int(fields[21]) * _PAGE
                waiting += _children(pid)
        return cpu, memory


class Running:
    """A job that runs in a box. Close it (or leave its `with`) to end it."""

    def __init__(self, box: Box, job: dict[str, Any], limits: Limits) -> None:
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
        try:
            box.send(job, [theirs_in, theirs_out, theirs_err])
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        self._open = {self._stdin, self._stdout, self._stderr}
        self._poll = select.poll()
        for fd in (self._stdout, self._stderr, box.control_fd):
            self._poll.register(fd, select.POLLIN)
        self._watched = time.monotonic()
        self.renew()

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
        self._started = time.monotonic()
        self._cpu_before: float | None = 0.0 if not hasattr(self, "_cpu_before") else None

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Give it input; with `last`, the end of input after it."""
        self._unsent += data
        self._no_more_input |= last
        self._write()

    def line(self) -> bytes | None:
        """The next line of its output; None when it has ended."""
        while True:
            end = self._unread.find(b"\n")
            if end >= 0:
                line = bytes(self._unread[:end])
                del self._unread[: end + 1]
                return line
            if self._report is not None:
                return None
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
        """Tell it that there is no more input, and give it half a second to end; it is killed otherwise."""
        self.feed(b"", last=True)
        deadline = time.monotonic() + 0.5
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

    def _watch(self) -> None:
        self._watched = time.monotonic()
        cpu, memory = self._box.usage()
        if self._cpu_before is None:
            self._cpu_before = cpu
        limits = self._limits
        if memory > limits.memory_mb << 20:
            self._stop("memory", f"more than {limits.memory_mb} MiB of memory")
        if cpu - self._cpu_before > limits.time_limit:
            self._stop("timeout", f"more than {limits.time_limit:g} s of computing")
        if self._watched - self._started > limits.wall_seconds:
            self._stop("timeout", f"not ready after {limits.wall_seconds:g} s")

    def _stop(self, reason: Reason, detail: str) -> None:
        self.close()
        raise Stopped(reason, detail)

    def _forget(self, fd: int) -> None:
        self._open.discard(fd)
        with suppress(KeyError):
            self._poll.unregister(fd)
        os.close(fd)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


@functools.cache
def _code() -> list[tuple[str, str]]:
    """The modules of a sandbox, compiled, in the order of their imports."""
    folder = Path(__file__).parent
    sources = [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in _MODULES]
    return [
        (name, base64.b64encode(marshal.dumps(compile(source, f"<sandbox>/{name}.py", "exec"))).decode())
        for name, source in sources
    ]
