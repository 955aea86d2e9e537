"""The isolation levels, strongest first: which ones this machine supports, and how each sandbox is configured.

    "bubblewrap"   bwrap's namespaces and file system, Landlock where the kernel has it, seccomp, limits
    "namespaces"   the same through system calls from Python, without bwrap; needs Landlock
    "landlock"     no namespaces (containers often refuse them): Landlock, seccomp, limits
    "none"         limits only; must be requested explicitly

docs/sandbox.md says what each prevents. Left out: nsjail, firejail, gVisor, cgroups, Windows and macOS.
"""

import functools
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rewards.programs.sandbox.inside import confine

Level = Literal["bubblewrap", "namespaces", "landlock", "none"]
LEVELS: Sequence[Level] = ("bubblewrap", "namespaces", "landlock", "none")

FOLDER = "/box"  # writable folder where the file system is private: a 64 MiB tmpfs, discarded after use
FOLDER_BYTES = 64 << 20
PROCESSES = 64
_SYSTEM = ["/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/etc/ld.so.cache", "/etc/alternatives"]


def missing(level: Level) -> str | None:
    """What this machine lacks for a level; None if nothing obvious is missing (only starting one proves it)."""
    if level == "none":
        return None
    if sys.platform != "linux" or not confine.can_filter():
        return "seccomp filters (Linux on x86-64 or aarch64)"
    if level == "bubblewrap":
        return None if shutil.which("bwrap") else "bwrap (package bubblewrap)"
    if confine.landlock_abi() < 3:
        return "Landlock version 3 (Linux 6.2, enabled at boot)"
    return None


def describe(level: Level, slot: int, folder: str) -> dict[str, Any]:
    """A sandbox's configuration, JSON-serializable (`spec` in inside/enter.py and inside/zygote.py).

    slot: number of the sandbox within this process; as root, each gets its own user id.
    folder: a fresh folder on the host, for levels without a private file system; otherwise unused.
    """
    private = level in ("bubblewrap", "namespaces")
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    readable = _outermost([*_SYSTEM, sys.base_prefix, sys.base_exec_prefix, *packages])
    user = 60_000 + (os.getpid() * 64 + slot) % 5_000 if os.getuid() == 0 else None
    alone = user is not None or (private and _counts_by_namespace())
    return {
        "level": level,
        "outside": level == "bubblewrap",  # still to be entered
        "user": user,
        "readable": readable,
        "reachable": [folder],
        "packages": packages,
        "folder": FOLDER if private else folder,
        "folder_size": FOLDER_BYTES,
        "private": private,
        "landlock": level != "none" and confine.landlock_abi() > 0,
        "seccomp": level != "none",
        "processes": PROCESSES if alone else PROCESSES + _own_tasks(),
    }


def python() -> str:
    """The interpreter behind a virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


def bwrap_command(spec: dict[str, Any], command: Sequence[str]) -> list[str]:
    executable = shutil.which("bwrap")
    assert executable is not None
    options = ["--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    options += ["--unshare-cgroup-try", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL"]
    options += ["--new-session", "--hostname", "sandbox"]
    if "--disable-userns" in _bwrap_help(executable):
        options += ["--disable-userns"]
    for path in spec["readable"]:
        options += ["--ro-bind-try", path, path]
    options += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    options += ["--size", str(spec["folder_size"]), "--tmpfs", spec["folder"], "--remount-ro", "/"]
    return [executable, *options, "--", *command]


@functools.cache
def _bwrap_help(executable: str) -> str:
    return subprocess.run([executable, "--help"], capture_output=True, text=True, check=False).stdout


def _outermost(paths: Sequence[str]) -> list[str]:
    """The paths, without those inside another one."""
    return [path for path in dict.fromkeys(paths) if not any(path.startswith(f"{other}/") for other in paths)]


def _counts_by_namespace() -> bool:
    """Since Linux 5.14, RLIMIT_NPROC counts processes per user namespace; before, all of the user's."""
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (5, 14)


def _own_tasks() -> int:
    """This user's current threads: RLIMIT_NPROC includes them if a sandbox has no user id or namespace of its own."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                total += len(os.listdir(folder / "task"))
        except OSError:  # it has exited
            continue
    limit = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    return total if limit == resource.RLIM_INFINITY else min(total, limit)
