"""The self-test: a submission attempts everything a sandbox must prevent, and the outcome is reported.

self_test() == {"level": "bubblewrap", "landlock_abi": 7, "held": ["read a file of the host", …], "broken": [],
                "weaker_because": {}}
"""

import os
import socket
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewards.programs.sandbox import pool as pools
from rewards.programs.sandbox.inside import confine
from rewards.programs.sandbox.isolation import LEVELS, Level
from rewards.programs.sandbox.limits import Limits, Stopped
from rewards.programs.sandbox.pool import Pool
from rewards.programs.sandbox.running import Running

# An attack that succeeds returns; one that is refused raises.
_ATTACKS = '''
import ctypes, fcntl, os, socket, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def others():
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]

def first(attempts):
    """Try each until one works."""
    error = OSError("nothing to attack")
    for attempt in attempts:
        try:
            return attempt()
        except OSError as failed:
            error = failed
    raise error

def read(path, mode="rb"):
    with open(path, mode) as file:
        if not file.read(1):
            raise OSError("empty")

def connect(kind, address):
    with socket.socket(kind, socket.SOCK_STREAM) as s:
        s.connect(address)

def send(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.sendto(b"x", address)

def forks(count):
    for _ in range(count):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)

def share_memory():
    segment = libc.shmget(0, 4096, 0o1600)
    check(segment)
    check(libc.shmctl(segment, 0, None))

def in_child(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except OSError:
            os._exit(1)
        os._exit(0)
    check(-os.waitpid(pid, 0)[1])

def namespace(flags):
    check(libc.unshare(flags))

def clone_with_namespace():
    if libc.syscall(56 if os.uname().machine == "x86_64" else 220, 0x10000000 | 17, 0, 0, 0, 0) == 0:
        os._exit(0)
    check(-1 if ctypes.get_errno() else 0)

def big_file(folder):
    with open(folder + "/big", "wb") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))

def many_files(folder):
    for i in range(300):
        with open(f"{folder}/{i}", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 1 << 20)

ATTACKS = {
    "read a file of the host": lambda a: read(a["file"]),
    "list a folder of the host": lambda a: os.listdir(a["folder"]),
    "write a file of the host": lambda a: open(a["folder"] + "/written", "w"),
    "change a file's mode": lambda a: os.chmod(a["file"], 0o777),
    "read the list of users": lambda a: read("/etc/passwd"),
    "write to the system": lambda a: first([lambda f=f: open(f + "/x", "w") for f in ["/usr", "/", sys.prefix]]),
    "read another process's environment": lambda a: first([lambda p=p: read(f"/proc/{p}/environ") for p in others()]),
    "read another process's memory": lambda a: first([lambda p=p: read(f"/proc/{p}/mem") for p in others()]),
    "trace the parent": lambda a: check(libc.ptrace(16, os.getppid(), 0, 0)),
    "signal the parent": lambda a: os.kill(os.getppid(), 0),
    "signal the process of the reward": lambda a: os.kill(a["pid"], 0),
    "have a pipe signal the parent": lambda a: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid()),
    "signal everything": lambda a: os.kill(-1, 0),
    "connect by TCP": lambda a: connect(socket.AF_INET, ("127.0.0.1", a["port"])),
    "send by UDP": lambda a: send(("127.0.0.1", a["port"])),
    "connect to a socket in the file system": lambda a: connect(socket.AF_UNIX, a["socket"]),
    "connect to an abstract socket": lambda a: connect(socket.AF_UNIX, "\\0" + a["abstract"]),
    "become root": lambda a: os.setuid(0),
    "make a user namespace": lambda a: namespace(0x10000000),
    "make a user namespace by clone": lambda a: clone_with_namespace(),
    "make a mount namespace": lambda a: namespace(0x20000),
    "mount": lambda a: check(libc.mount(b"tmpfs", a["box"].encode(), b"tmpfs", 0, None)),
    "leave by chroot": lambda a: os.chroot(a["box"]),
    "load a BPF program": lambda a: check(libc.syscall(321 if os.uname().machine == "x86_64" else 280, 0, 0, 0)),
    "use the keyring": lambda a: check(libc.syscall(250 if os.uname().machine == "x86_64" else 219, 0, -3, 1)),
    "share memory beyond its end": lambda a: share_memory(),
    "leave the process group": lambda a: in_child(os.setsid),
    "start 200 processes": lambda a: forks(200),
    "take 3 GiB of memory": lambda a: bytearray(3 << 30),
    "open 1000 files": lambda a: [os.open("/dev/null", os.O_RDONLY) for _ in range(1000)],
    "write a file of 300 MB": lambda a: big_file(a["box"]),
    "write 300 files of 1 MB": lambda a: many_files(a["box"]),
    "raise a limit": lambda a: __import__("resource").setrlimit(7, (4096, 4096)),
}
name, arguments = NAME, ARGUMENTS
try:
    ATTACKS[name](arguments)
except BaseException as error:
    print("refused", type(error).__name__, error)
else:
    print("possible")
'''
NAMES = [line.split('"')[1] for line in _ATTACKS.splitlines() if line.startswith('    "') and "lambda a" in line]


def self_test(level: Level | None = None, *, allow_unsandboxed: bool = False) -> dict[str, Any]:
    """Attack a sandbox of the level (None: the strongest here) and report what held, as JSON-serializable data.

    Raises like `pool` if no such sandbox can be had. Takes a second or two.
    """
    pool = pools.pool(level, allow_unsandboxed=allow_unsandboxed)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        Path(folder).chmod(0o777)
        (Path(folder) / "secret").write_text("secret")
        (Path(folder) / "secret").chmod(0o666)
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(f"{folder}/socket")
        unix.listen()
        Path(f"{folder}/socket").chmod(0o777)
        target: dict[str, Any] = {"file": f"{folder}/secret", "folder": folder, "socket": f"{folder}/socket"}
        hidden = f"probe-{os.getpid()}"
        target |= {"port": tcp.getsockname()[1], "pid": os.getpid(), "abstract": hidden}
        with socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0{hidden}")
            abstract.listen()
            with ThreadPoolExecutor(pool.size) as threads:
                outcomes = dict(zip(NAMES, threads.map(lambda name: _attack(pool, name, target), NAMES), strict=True))
    stronger = LEVELS[: LEVELS.index(pool.level)]
    reasons = {name: reason for name, reason in pools.problems().items() if name in stronger} if stronger else {}
    return {
        "level": pool.level,
        "landlock_abi": confine.landlock_abi(),
        "as_root": os.getuid() == 0,
        "held": [name for name, outcome in outcomes.items() if outcome != "possible"],
        "broken": [name for name, outcome in outcomes.items() if outcome == "possible"],
        "weaker_because": reasons,
    }


def for_ledger(options: Mapping[str, Any]) -> dict[str, Any]:
    """The `sandbox` entry of a run's environment.json, for a `code` reward with these options.

    ValueError if an attack succeeded and the recipe does not set allow_unsandboxed: true.
    """
    if options.get("backend", "local") != "local":
        return {"backend": options["backend"]}
    allowed = bool(options.get("allow_unsandboxed"))
    found = self_test(options.get("isolation"), allow_unsandboxed=allowed)
    if found["broken"] and not allowed:
        raise ValueError(
            f"the sandbox (level {found['level']}) failed to stop these attacks: {', '.join(found['broken'])}. Install "
            "bubblewrap or set backend to a remote sandbox; docs/sandbox.md lists what each level needs. To run "
            "submissions anyway, set allow_unsandboxed: true."
        )
    return found


def _attack(pool: Pool, name: str, target: dict[str, Any]) -> str:
    with pool.box() as box:
        arguments = target | {"box": box.folder}
        source = _ATTACKS.replace("NAME, ARGUMENTS", f"{name!r}, {arguments!r}")
        try:
            with Running(box, {"mode": "script", "preamble": "", "source": source}, Limits(time_limit=20)) as running:
                running.feed(b"", last=True)
                ended = running.wait()
        except Stopped as stopped:
            return f"stopped: {stopped.detail}"
    output = ended.stdout.decode(errors="replace").strip()
    # Several lines: forked children reached the end, too.
    return "possible" if "possible" in output.splitlines() else output or f"ended: {ended.stderr[-200:]}"
