"""What a process gives up before it runs a submission: resources, the file system (Landlock), system calls (seccomp).

A process applies each restriction to itself; neither it nor its children can undo them. Runs inside the sandbox:
standard library only, system calls through ctypes. Linux on x86-64 and aarch64.

Left out: cgroups. The memory of the process tree is monitored from outside (running.py).
"""

import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Iterator, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

# Denied outright, as (x86-64, aarch64) numbers; None: the architecture lacks the call.
_DENIED = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # leaving the process group, which is how a process tree is killed
    "setsid": (112, 157), "setpgid": (109, 154),
    # network, and memory that outlives its process or is not accounted for
    "socket": (41, 198), "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193),
    "semctl": (66, 191), "semtimedop": (220, 192), "mq_open": (240, 180), "mq_unlink": (241, 181),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # other views of the system
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262),
    "mknod": (133, None), "mknodat": (259, 33),
    # the kernel itself
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "personality": (135, 92), "syslog": (103, 116), "vhangup": (153, 58), "sethostname": (170, 161),
    "setdomainname": (171, 162), "lookup_dcookie": (212, 18), "modify_ldt": (154, None), "ioperm": (173, None),
    "iopl": (172, None), "uselib": (134, None), "ustat": (136, None), "sysfs": (139, None),
}  # fmt: skip
# Landlock does not cover the owner, mode, times and attributes of files: denied unless the file system is private.
_METADATA = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469),
}  # fmt: skip
_KILL, _TGKILL, _PRLIMIT, _CLONE, _CLONE3 = (62, 129), (234, 131), (302, 261), (56, 220), (435, 435)
_FCNTL, _IOCTL = (72, 25), (16, 29)
# They name the process that a descriptor signals when it can be read, and the signal.
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _FIOSETOWN, _SIOCSPGRP = 8, 10, 15, 0x8901, 0x8902
_FIRST, _SECOND = 16, 24  # where the low halves of a call's arguments are; pids and commands have 32 bits
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID and NET
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH
_FIRST_X32 = 0x40000000
_SELF = 0x7E1F5E1F  # placeholder for the process's own pid; larger than any pid

_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def call(name: str, *arguments: object) -> int:
    """Call a C library function; OSError if it fails."""
    result = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int = 0) -> None:
    call("prctl", option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0))


def can_filter() -> bool:
    """Whether this machine and kernel support the seccomp filters built here."""
    if os.uname().machine not in _MACHINES:
        return False
    result = _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), None, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return result == -1 and ctypes.get_errno() == errno.EFAULT  # it tried to read the filter


def filter_system_calls(*, metadata: bool) -> None:
    """Install the seccomp filter. metadata: allow changing modes and times of files.

    A process may signal only itself and its process group, and change only its own limits.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    packed = _assemble(metadata).replace(struct.pack("I", _SELF), struct.pack("I", os.getpid()))
    buffer = ctypes.create_string_buffer(packed)
    program = struct.pack("HP", len(packed) // 8, ctypes.addressof(buffer))
    call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.c_char_p(program), ctypes.c_ulong(0), ctypes.c_ulong(0))


def prepare_filters() -> None:
    """Assemble the filters once, for all processes forked from this one."""
    for metadata in (False, True):
        _assemble(metadata)


@functools.cache
def _assemble(metadata: bool) -> bytes:
    return b"".join(struct.pack("HBBI", *instruction) for instruction in _program(_SELF, metadata))


def _program(pid: int, metadata: bool) -> list[Instruction]:
    column, arch = _MACHINES[os.uname().machine]

    def refuse(error: int) -> Instruction:
        return (_RET, 0, 0, _ERRNO | error)

    def decide(number: int, argument: int, values: Sequence[int], *, allowed: bool) -> Iterator[Instruction]:
        """Allow or refuse a call if the argument is one of the values; otherwise the opposite."""
        verdicts = [refuse(errno.EPERM), (_RET, 0, 0, _ALLOW)]
        yield (_JEQ, 0, len(values) + 3, number)
        yield (_LOAD, 0, 0, argument)
        for index, value in enumerate(values):
            yield (_JEQ, len(values) - index, 0, value)
        yield from verdicts if allowed else reversed(verdicts)

    program: list[Instruction] = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, arch), (_RET, 0, 0, _KILL_PROCESS), (_LOAD, 0, 0, 0)]
    program += [(_JGE, 0, 1, _FIRST_X32), refuse(errno.ENOSYS)]
    # A filter cannot follow clone3's pointer to its flags. With ENOSYS, the C library falls back to clone.
    program += [(_JEQ, 0, 1, _CLONE3[column]), refuse(errno.ENOSYS)]
    program += [(_JEQ, 0, 4, _CLONE[column]), (_LOAD, 0, 0, 16), (_JSET, 0, 1, _NEW_NAMESPACES)]
    program += [refuse(errno.EPERM), (_RET, 0, 0, _ALLOW)]
    program += decide(_KILL[column], _FIRST, [pid, 0], allowed=True)
    program += decide(_TGKILL[column], _FIRST, [pid], allowed=True)
    program += decide(_PRLIMIT[column], _FIRST, [pid, 0], allowed=True)
    program += decide(_FCNTL[column], _SECOND, [_F_SETOWN, _F_SETSIG, _F_SETOWN_EX], allowed=False)
    program += decide(_IOCTL[column], _SECOND, [_FIOSETOWN, _SIOCSPGRP], allowed=False)
    for numbers in [*_DENIED.values(), *([] if metadata else _METADATA.values())]:
        number = numbers[column]
        if number is not None:
            program += [(_JEQ, 0, 1, number), refuse(errno.EPERM)]
    return [*program, (_RET, 0, 0, _ALLOW)]


# Landlock: system calls and rights, by the ABI version that introduced them.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE, _IOCTL_DEV = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_REFER = 1 << 13
_TCP, _SCOPES = 3, 3  # bind and connect; abstract Unix sockets and signals


def landlock_abi() -> int:
    """The kernel's Landlock ABI version; 0 if unsupported."""
    return max(0, _libc.syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_rules(readable: Sequence[str], writable: Sequence[str]) -> int:
    """A ruleset's descriptor: read and execute below `readable`, everything below `writable`, nothing elsewhere."""
    abi = landlock_abi()
    handled = 0x1FFF | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    attributes = struct.pack("QQQ", handled, _TCP if abi >= 4 else 0, _SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    rules = call("syscall", ctypes.c_long(_CREATE_RULESET), ctypes.c_char_p(attributes), ctypes.c_size_t(size), 0)
    for paths, rights in [(readable, _EXECUTE | _READ_FILE | _READ_DIR), (writable, handled)]:
        for path in paths:
            if os.path.exists(path):
                _allow_below(rules, path, rights & handled)
    return rules


def _allow_below(rules: int, path: str, rights: int) -> None:
    if not os.path.isdir(path):
        rights &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("=Qi", rights, fd)
    call("syscall", ctypes.c_long(_ADD_RULE), rules, 1, ctypes.c_char_p(rule), 0)
    os.close(fd)


def restrict_files(rules: int) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    call("syscall", ctypes.c_long(_RESTRICT_SELF), rules, 0)


def drop_capabilities() -> None:
    """Give up the capabilities of root in a user namespace."""
    for capability in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break  # past the last one the kernel knows
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", ctypes.c_char_p(header), ctypes.c_char_p(bytes(24)))


def limit_resources(
    *, cpu_seconds: int, address_space: int, file_size: int, open_files: int, processes: int, stack: int
) -> None:
    """Sizes in bytes; `processes` includes threads and counts everything under the same user id."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_NPROC: processes,
        resource.RLIMIT_STACK: stack,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
