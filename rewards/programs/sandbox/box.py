"""One sandbox, seen from outside: a process tree that waits for jobs and runs one at a time.

box = Box("bubblewrap")     # about 0.1 s
...                         # jobs: running.py
box.close()
"""

import base64
import functools
import itertools
import json
import marshal
import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from rewards.programs.sandbox import isolation
from rewards.programs.sandbox.isolation import Level
from rewards.programs.sandbox.limits import SandboxDiedError, SandboxError

_MODULES = ("plain", "confine", "script", "modes", "zygote", "enter")
# A sandbox receives its code through the control socket, so it needs access to no path of the host.
_START = """
import base64, json, marshal, socket, sys, types
control = socket.socket(fileno=int(sys.argv[1]))
def read(size):
    data = bytearray()
    while len(data) < size:
        data += control.recv(size - len(data)) or sys.exit("the parent has gone")
    return data
message = json.loads(read(int.from_bytes(read(4), "big")))
package = "rewards.programs.sandbox.inside"
parents = package.split(".")
for name in (".".join(parents[: i + 1]) for i in range(len(parents))):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name, code in message["modules"]:
    module = sys.modules[package + "." + name] = types.ModuleType(package + "." + name)
    setattr(sys.modules[package], name, module)
    exec(marshal.loads(base64.b64decode(code)), module.__dict__)
sys.modules[package + ".enter"].main(control, message["spec"])
"""
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_slots = itertools.count()
started: "weakref.WeakSet[Box]" = weakref.WeakSet()


class Usage(NamedTuple):
    """What a box's processes use."""

    cpu: float  # seconds
    waited: float  # seconds spent waiting for a CPU; not yet those of the present wait
    memory: int  # resident bytes
    runnable: bool  # whether one computes, or waits for a CPU or to be started


class Box:
    """A sandbox of the given level. Raises SandboxError if it cannot be started."""

    def __init__(self, level: Level) -> None:
        self.level: Level = level
        self.closed = False
        self.clean = True  # the last run left nothing behind
        self._host_folder = None if level in ("bubblewrap", "namespaces") else tempfile.mkdtemp(prefix="sandbox-")
        self._spec = isolation.describe(level, next(_slots), self._host_folder or "")
        if self._host_folder and self._spec["user"] is not None:
            os.chown(self._host_folder, self._spec["user"], self._spec["user"])
        self.folder: str = self._spec["folder"]
        self._control, theirs = socket.socketpair()
        command = [isolation.python(), "-s", "-S", "-P", "-X", "utf8", "-c", _START]
        environment = {"PYTHONHASHSEED": "0"}  # sets of strings iterate in the same order in every run
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
            raise SandboxError(f"level {self.level!r}: {problem[-1] if problem else 'no reply'}")
        self._process.stderr.close()
        self._control.settimeout(None)
        started.add(self)
        self._zygote = self._process.pid
        while children := _children(self._zygote):
            self._zygote = children[0]

    def close(self) -> None:
        """Kill everything in it; safe to call twice."""
        if self.closed:
            return
        self.closed = True
        self._control.shutdown(socket.SHUT_RDWR)
        if hasattr(self, "_replies"):
            self._replies.close()
        self._control.close()
        try:
            self._process.wait(5)  # it exits at once and takes everything in it along
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
        """Let go without ending it: a forked child's copy must not keep the box alive after the parent has gone."""
        self.closed = True
        self._replies.close()
        self._control.close()

    def send(self, job: dict[str, Any], pipes: Sequence[int]) -> None:
        """Start a job on three pipes: stdin, stdout, stderr."""
        body = json.dumps(job).encode()
        try:
            socket.send_fds(self._control, [len(body).to_bytes(4, "big")], pipes)
            self._control.sendall(body)
        except OSError as error:
            raise SandboxError(f"a sandbox of level {self.level!r} has died: {error}") from error

    def own(self, pipes: Sequence[int]) -> None:
        """Give pipes to the box's user, who may then open them by name (/dev/stdin)."""
        if self._spec["user"] is not None:
            for fd in pipes:
                os.fchown(fd, self._spec["user"], self._spec["user"])

    @property
    def control_fd(self) -> int:
        return self._control.fileno()

    def report(self) -> dict[str, Any]:
        """The zygote's report on the run that has just ended."""
        line = self._replies.readline()
        if not line:
            raise SandboxDiedError(f"a sandbox of level {self.level!r} died during a run")
        return json.loads(line)

    def usage(self) -> Usage:
        """Current use of its processes."""
        cpu, waited, memory = 0.0, 0.0, 0
        waiting = _children(self._zygote)
        runnable = not waiting  # the job has not started yet, or has just ended
        while waiting:
            pid = waiting.pop()
            with suppress(OSError):  # it may exit meanwhile
                fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the name may be any bytes
                cpu += sum(map(int, fields[11:15])) / _TICKS
                memory += int(fields[21]) * _PAGE
                for task in Path(f"/proc/{pid}/task").iterdir():
                    waited += int((task / "schedstat").read_text().split()[1]) / 1e9
                    runnable |= (task / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"R"
                waiting += _children(pid)
        return Usage(cpu, waited, memory, runnable)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


@functools.cache
def _code() -> list[tuple[str, str]]:
    """The modules sent into a sandbox, compiled, in import order."""
    folder = Path(__file__).parent / "inside"
    sources = [(name, (folder / f"{name}.py").read_text(encoding="utf-8")) for name in _MODULES]
    return [
        (name, base64.b64encode(marshal.dumps(compile(source, f"<sandbox>/{name}.py", "exec"))).decode())
        for name, source in sources
    ]
