"""From a bare Python process to the inside of a sandbox. Standard library only; runs once, before zygote.py.

main(control, spec):  as root, switch to an unprivileged user id;  then, depending on spec["level"],
  "bubblewrap"   execute bwrap, with Python and zygote.py inside
  "namespaces"   enter new user, mount, pid, network, IPC and UTS namespaces whose file system holds only readable paths
  "landlock", "none"   nothing more
"""

import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_char_p, c_int, c_long, c_size_t, c_ulong
from struct import pack
from typing import Any, NoReturn

from rewards.programs.sandbox.inside import confine, zygote

_NEWNS, _NEWCGROUP, _NEWUTS, _NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 0x20, 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _PIVOT_ROOT = 442, {"x86_64": 155, "aarch64": 41}
NOBODY = 65534  # the user id seen inside a sandbox


def main(control: socket.socket, spec: dict[str, Any]) -> NoReturn:
    if spec["user"] is not None:
        expose([*spec["readable"], *spec["reachable"]])
        become_user(spec["user"])
    if spec["level"] == "bubblewrap" and spec["outside"]:
        os.set_inheritable(control.fileno(), True)
        os.execve(spec["bwrap"][0], [*spec["bwrap"], str(control.fileno())], {})
    if spec["level"] == "namespaces":
        _enter_namespaces(control, spec)
    zygote.main(control, spec)


def become_user(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    confine.prctl(confine.PR_SET_DUMPABLE, 1)  # makes its /proc files its own again, to map its user id


def expose(paths: Sequence[str]) -> None:
    """Let other users reach `paths` inside private folders (Python below /root), in this process's view only."""
    closed = {path: top for path in paths if (top := _closed_ancestor(path))}
    if not closed:
        return
    confine.call("unshare", _NEWNS)
    _mount(None, "/", None, _REC | _PRIVATE)
    handles = {path: os.open(path, os.O_PATH) for path in closed if os.path.exists(path)}
    for top in set(closed.values()):
        _mount("tmpfs", top, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    for path, handle in handles.items():
        _bind(handle, path)


def _closed_ancestor(path: str) -> str | None:
    folder = ""
    for part in os.path.dirname(path).split("/")[1:]:
        folder += "/" + part
        if not os.stat(folder).st_mode & 1:
            return folder
    return None


def _enter_namespaces(control: socket.socket, spec: dict[str, Any]) -> None:
    """Returns in process 1 of the new pid namespace; the original process waits for it to exit."""
    uid, gid = os.getuid(), os.getgid()
    confine.call("unshare", _NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | _NEWCGROUP)
    for name, text in [("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1")]:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    child = os.fork()  # here, because a process mounts the /proc of its own pid namespace
    if child:
        control.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)
    _mount(None, "/", None, _REC | _PRIVATE)
    readable = [path for path in spec["readable"] if os.path.exists(path)]
    devices = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    handles = {path: os.open(path, os.O_PATH) for path in [*readable, *devices]}
    root = "/tmp"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,mode=755")
    os.makedirs(root + spec["folder"])
    _mount("tmpfs", root + spec["folder"], "tmpfs", _NOSUID | _NODEV, f"size={spec['folder_size']},mode=700")
    for path, handle in handles.items():
        _bind(handle, root + path)
        if path not in devices:
            _make_readonly(root + path)
    os.mkdir(root + "/proc")
    with suppress(PermissionError):  # containers that hide parts of /proc; then there is no /dev/stdin
        _mount("proc", root + "/proc", "proc", _NOSUID | _NODEV | _NOEXEC, "subset=pid")
        for name, number in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")]:
            os.symlink(f"/proc/self/fd{number}", f"{root}/dev/{name}")
    os.mkdir(root + "/.old")
    os.chdir(root)
    confine.call("syscall", c_long(_PIVOT_ROOT[os.uname().machine]), c_char_p(b"."), c_char_p(b".old"))
    os.chdir("/")
    confine.call("umount2", c_char_p(b"/.old"), 2)  # MNT_DETACH
    os.rmdir("/.old")
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    confine.drop_capabilities()


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [c_char_p(os.fsencode(text)) if text is not None else None for text in (source, target, kind)]
    confine.call("mount", *texts, c_ulong(flags), c_char_p(data.encode()) if data is not None else None)


def _bind(handle: int, target: str) -> None:
    """Bind-mount what `handle` refers to; its path may be hidden by now."""
    source = f"/proc/self/fd/{handle}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with suppress(FileExistsError), open(target, "x"):
            pass
    _mount(source, target, None, _BIND | _REC)
    os.close(handle)


def _make_readonly(target: str) -> None:
    attributes = pack("QQQQ", _RDONLY | _NOSUID | _NODEV, 0, 0, 0)  # the same bits as MOUNT_ATTR_*
    recursive = 0x8000
    confine.call(
        "syscall",
        c_long(_MOUNT_SETATTR),
        c_int(-100),
        c_char_p(os.fsencode(target)),
        c_int(recursive),
        c_char_p(attributes),
        c_size_t(len(attributes)),
    )
