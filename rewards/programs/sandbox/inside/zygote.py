"""The process that waits inside a sandbox and forks for each submission. Standard library only.

It has already imported what submissions commonly import, so a run costs a fork instead of a Python start. It reads
nothing a submission writes: input, output and results go through the parent's pipes, handed over for one run. When the
parent's end of the control socket closes, for whatever reason, it kills the running job and exits; the sandbox ends.
"""

import gc
import json
import os
import random
import select
import signal
import site
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from rewards.programs.sandbox.inside import confine, modes, script

WARM = (
    "array bisect cmath collections copy dataclasses datetime decimal enum fractions functools heapq io itertools json "
    "math numbers operator queue random re statistics string struct subprocess textwrap threading time traceback typing"
)
MAX_FILES = 10_000
Job = dict[str, Any]


def main(control: socket.socket, spec: dict[str, Any]) -> NoReturn:
    """Serve jobs until the parent has gone. spec: see isolation.py."""
    for name in WARM.split():
        __import__(name)
    for add in (site.setquit, site.setcopyright, site.sethelper):  # exit(), help(): Python was started without site
        add()
    random.seed(0)  # submissions draw the same random numbers in every run
    sys.path[:] = [*sys.path, *spec["packages"]]
    confine.prctl(confine.PR_SET_CHILD_SUBREAPER, 1)
    confine.prctl(confine.PR_SET_DUMPABLE, 0)  # same user, but must not be traced or read
    rules: dict[bool, int] = {}
    if spec["landlock"]:
        for may_write in (False, True):
            devices = ["/dev/null"]
            readable = [*spec["readable"], spec["folder"], "/dev/zero", "/dev/urandom", "/dev/random"]
            rules[may_write] = confine.landlock_rules(readable, devices + [spec["folder"]] * may_write)
    if spec["seccomp"]:
        confine.prepare_filters()
    os.chdir(spec["folder"])
    os.environ.update(PATH="/usr/local/bin:/usr/bin:/bin", HOME=spec["folder"], TMPDIR=spec["folder"])
    os.environ.update(LANG="C.UTF-8", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    program = script.prepare(spec["folder"])
    clean = _state(spec["folder"])
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    gc.collect()
    gc.freeze()
    _send(control, {"ready": True})
    while True:
        job, pipes = _receive(control)
        if job["mode"] == "script":
            _write(program, script.encode(job["source"]))
        pid = os.fork()
        if pid == 0:
            control.close()
            _become(job, pipes, rules, spec)
        for fd in pipes:
            os.close(fd)
        with suppress(OSError):  # the child does so as well, and may have exited
            os.setpgid(pid, pid)
        usage, status = _wait(control, pid, spec["folder"] if spec["private"] else None)
        with suppress(OSError):  # what is left of it makes the box unclean
            os.unlink(program)
        _send(
            control,
            {
                "status": os.waitstatus_to_exitcode(status),
                "cpu": usage.ru_utime + usage.ru_stime,
                "memory": usage.ru_maxrss * 1024,
                "clean": _state(spec["folder"]) == clean,
            },
        )


def _write(path: str, content: bytes) -> None:
    """Create the program's file. It runs even without: an earlier run may have closed or filled the folder."""
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, content)
        os.close(fd)


def _state(folder: str) -> tuple[int, set[str]] | None:
    """What a submission may have changed; None if it made its folder unreadable."""
    try:
        return os.stat(folder).st_mode, set(os.listdir(folder))
    except PermissionError:
        return None


def _receive(control: socket.socket) -> tuple[Job, list[int]]:
    head, pipes, _, _ = socket.recv_fds(control, 4, 3)
    if len(head) < 4:
        os._exit(0)  # the parent has gone
    size = int.from_bytes(head, "big")
    with control.makefile("rb", buffering=0) as stream:
        body = bytearray()
        while len(body) < size:
            more = stream.read(size - len(body))
            if not more:
                os._exit(0)
            body += more
    return json.loads(body), pipes


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.sendall(json.dumps(message).encode() + b"\n")
    except OSError:
        os._exit(0)


def _wait(control: socket.socket, pid: int, folder: str | None) -> tuple[Any, int]:
    """Wait for the child, then kill and reap its remaining processes. Exit if the parent goes.

    A submission that creates more than MAX_FILES files in `folder` is killed: even empty ones cost kernel memory.
    """
    child = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(child, select.POLLIN)
    poll.register(control, select.POLLIN)  # the parent sends nothing during a run: readable means closed
    while not (events := poll.poll(100)):
        if folder is not None and (files := os.statvfs(folder)).f_files - files.f_ffree > MAX_FILES:
            _kill_group(pid)
    gone = control.fileno() in [fd for fd, _ in events]
    os.close(child)
    if gone:
        _kill_group(pid)
    _, status, usage = os.wait4(pid, 0)
    _kill_group(pid)
    with suppress(ChildProcessError):
        while True:
            os.wait()
    if gone:
        os._exit(0)
    return usage, status


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _become(job: Job, pipes: list[int], rules: dict[bool, int], spec: dict[str, Any]) -> NoReturn:
    """Give up every right the job does not need, then run it."""
    os.setpgid(0, 0)
    confine.prctl(confine.PR_SET_PDEATHSIG, signal.SIGKILL)
    may_write = spec["private"] or job["mode"] == "compile"
    limits = job["limits"]
    confine.limit_resources(
        cpu_seconds=limits["cpu_seconds"],
        address_space=limits["address_space"],
        file_size=limits["file_size"],
        open_files=64,
        processes=spec["processes"],
        stack=limits["stack"],
    )
    if rules:
        confine.restrict_files(rules[may_write])
        for fd in rules.values():
            os.close(fd)
    if spec["seccomp"]:
        confine.filter_system_calls(metadata=may_write)
    modes.run(job, *pipes)
