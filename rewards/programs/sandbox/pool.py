"""The sandboxes of this process: started when first needed, kept warm, ended with the process.

    with pool(level=None).box() as box:     # None: the strongest level that this machine has
        ...

A box goes back when the submission ended by itself and left no file; else it is thrown away and the next one started.
"""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rewards.programs.sandbox import isolation
from rewards.programs.sandbox.box import Box, started
from rewards.programs.sandbox.isolation import LEVELS, Level
from rewards.programs.sandbox.running import SandboxError


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
        """A box for this thread; waits while all are busy."""
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
    """This process's pool of a level. role: trusted checkers have boxes of their own.

    ValueError when no level works here, unless allow_unsandboxed; SandboxError when the level asked for does not.
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
    """End every box of this process."""
    for one in _pools.values():
        one.close()
    _pools.clear()


def problems() -> dict[str, str]:
    """What keeps each level from working here; those that work are left out."""
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
        f"submissions would run without a sandbox, with every right of this process. {reasons}. Install "
        "bubblewrap, or allow user namespaces or Landlock in this container, or set backend to a remote sandbox. "
        "Only for code that you trust as your own: allow_unsandboxed: true."
    )


def _after_fork() -> None:
    for box in list(started):  # they are the parent's
        box.abandon()
    _pools.clear()
    globals()["_lock"] = threading.Lock()


atexit.register(close_all)
os.register_at_fork(after_in_child=_after_fork)
