"""This process's sandboxes: started on first use, kept warm, ended with the process.

    with pool(level=None).box() as box:     # None: the strongest level this machine supports
        ...

A box is reused if the submission ended by itself and left no file behind; otherwise it is discarded.
"""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rewards.programs.sandbox import isolation
from rewards.programs.sandbox.box import Box, started
from rewards.programs.sandbox.isolation import LEVELS, Level
from rewards.programs.sandbox.limits import SandboxError


class Pool:
    """Up to `size` boxes of one level, for any number of threads."""

    def __init__(self, level: Level, size: int) -> None:
        self.level: Level = level
        self.size = size
        self._idle: list[Box] = []
        self._free = threading.BoundedSemaphore(size)
        self.started = 0

    @contextmanager
    def box(self) -> Iterator[Box]:
        """A box for this thread; blocks while all are busy."""
        with self._free:
            box = self._take()
            try:
                yield box
            finally:
                if box.clean and not box.closed:
                    self._idle.append(box)
                else:
                    box.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take(self) -> Box:
        while self._idle:
            try:
                box = self._idle.pop()
            except IndexError:  # another thread was quicker
                break
            if box.alive():
                return box
            box.close()
        self.started += 1
        return Box(self.level)


_pools: dict[tuple[Level, str], Pool] = {}
_lock = threading.Lock()
_found: Level | None = None


def pool(level: Level | None = None, *, allow_unsandboxed: bool = False, role: str = "submissions") -> Pool:
    """This process's pool for a level. role: trusted checkers get boxes of their own.

    ValueError if no level works here, unless allow_unsandboxed; SandboxError if the requested level does not.
    """
    global _found
    with _lock:
        if level is None:
            _found = _found or _strongest()
            if _found is None and not allow_unsandboxed:
                raise ValueError(_refusal())
            chosen: Level = _found or "none"
        elif problem := isolation.missing(level):
            raise SandboxError(f"level {level!r} needs {problem}")
        else:
            chosen = level
        if chosen == "none" and not allow_unsandboxed:
            raise ValueError(_refusal())
        key = (chosen, role)
        if key not in _pools:
            _pools[key] = Pool(chosen, len(os.sched_getaffinity(0)))
        return _pools[key]


def close_all() -> None:
    """Close all of this process's boxes."""
    for one in _pools.values():
        one.close()
    _pools.clear()


def problems() -> dict[str, str]:
    """Level -> why it does not work here; working levels are omitted."""
    found: dict[str, str] = {}
    for level in LEVELS[:-1]:
        problem = isolation.missing(level)
        if problem is None:
            try:
                Box(level).close()
            except SandboxError as error:
                problem = str(error)
        if problem is not None:
            found[level] = problem
    return found


def _strongest() -> Level | None:
    for level in LEVELS[:-1]:
        if isolation.missing(level) is None:
            try:
                Box(level).close()
            except SandboxError:
                continue
            return level
    return None


def _refusal() -> str:
    reasons = "; ".join(f"{level}: {problem}" for level, problem in problems().items())
    return (
        f"submissions would run without a sandbox, with all the rights of this process. {reasons}. Install "
        "bubblewrap, or allow user namespaces or Landlock in this container, or set backend to a remote sandbox. "
        "Only for code you trust like your own: allow_unsandboxed: true."
    )


def _after_fork() -> None:
    for box in list(started):  # they belong to the parent
        box.abandon()
    _pools.clear()
    globals()["_lock"] = threading.Lock()


atexit.register(close_all)
os.register_at_fork(after_in_child=_after_fork)
