"""The lock of a folder that one process writes to: `run.lock`, which names the run and its main process.

The process holds a lock on the file for as long as it lives, however it ends.
"""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"


def lock(folder: Path, *, new: bool = False) -> int | None:
    """Create and lock the folder; returns a descriptor to close, or None if another process holds the lock.

    new: another run begins here, with an id of its own.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    run = owner(folder).get("run", "")
    if new or not run:
        run = secrets.token_hex(4)
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps({"run": run, "pid": os.getpid()}).encode(), 0)
    return file


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; ValueError if another process does."""
    if (file := lock(folder)) is None:
        raise ValueError(f"{folder} is in use by process {owner(folder).get('pid')}. Wait for it to end.")
    try:
        yield
    finally:
        os.close(file)


def owner(folder: Path) -> dict[str, Any]:
    """{"run": id, "pid": of its main process}; {} for nobody's folder."""
    file = folder / LOCK_FILE
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return json.loads(text) if text else {}


def is_locked(folder: Path) -> bool:
    """Whether a running process holds the lock."""
    file = folder / LOCK_FILE
    if not file.is_file():
        return False
    with file.open() as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
