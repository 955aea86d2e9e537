"""Attacks a sandbox of the given level as the given user; test_sandbox.py runs this in a process of its own.

    python tests/rewards/programs/hostile.py LEVEL USER      USER: the user id to switch to, or "-" for the current user

Prints one line of JSON: the self-test's report and how each hostile submission ended.
"""

import json
import os
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))

LINES = {"type": "stdin", "cases": [{"input": "", "output": "YES\n"}], "time_limit": 0.5, "memory_mb": 128}
PASS = {
    "thread with a large stack": "import threading\nthreading.stack_size(1 << 27)\n"
    "t = threading.Thread(target=lambda: print('YES')); t.start(); t.join()",
    "a child that stays": "import os, time\nif os.fork() == 0: time.sleep(60)\nprint('YES')",
    "a child that works": "import subprocess\nprint(subprocess.run(['/bin/echo', 'YES'], capture_output=True)"
    ".stdout.decode())",
    "signals to itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('YES'))\n"
    "os.kill(os.getpid(), signal.SIGUSR1)",
}
FAIL = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that sleeps": "import os, time\nwhile True:\n    try: os.fork()\n    except OSError: time.sleep(0.01)",
    "memory bomb": "a = []\nwhile True: a.append(bytearray(b'1') * (1 << 24))",
    "memory bomb of many": "import os, time\nfor _ in range(5): os.fork()\na = bytearray(b'1') * (20 << 20)\n"
    "time.sleep(60)",
    "disk bomb": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'wb').write(bytes(1 << 20))",
    "deep folders": "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')",
    "empty files": "n = 0\nwhile True:\n    n += 1\n    open(str(n), 'w').close()",
    "output flood": "while True: print('a' * 65536)",
    "error flood": "import sys\nwhile True: sys.stderr.write('a' * 65536)",
    "all signals ignored": "import signal\nfor s in set(range(1, 64)) - {9, 19, 32, 33}:\n"
    "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "killing everything": "import os\nos.kill(-1, 9)",
    "killing the parent": "import os\nos.kill(os.getppid(), 9)",
    "tracing the parent": "import ctypes, os\nctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)",
    "a held pipe": "import os, time\nif os.fork() == 0:\n    while True: time.sleep(1)\nos._exit(0)",
    "segmentation fault": "import ctypes\nctypes.string_at(0)",
    "no UTF-8": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')",
    "a name that is not UTF-8": "import ctypes, time\nctypes.CDLL(None).prctl(15, b'\\xff', 0, 0, 0)\ntime.sleep(0.3)",
    "a closed folder": "import os\nos.chmod('.', 0)",
    "answers in files": "import glob\nfor p in glob.glob('/**/*expected*', recursive=True): print(open(p).read())",
}  # fmt: skip


def become(user: int) -> None:
    """Switch to another user, who can read this interpreter and this checkout wherever they are."""
    from rewards.programs.sandbox.inside import enter

    paths = [sys.prefix, sys.base_prefix, str(ROOT), sysconfig.get_path("purelib")]
    enter.expose([str(Path(path).resolve()) for path in paths])
    enter.become_user(user)


def attack(level: str) -> dict[str, Any]:
    from rewards.programs.code import run_tests
    from rewards.programs.sandbox.probe import self_test

    report: dict[str, Any] = {"user": os.getuid(), "probe": self_test(level)}
    started = time.monotonic()
    for expected, sources in (("passed", PASS), ("failed", FAIL)):
        results = run_tests(list(sources.values()), [LINES] * len(sources), code_in="text", isolation=level)
        report[expected] = {
            name: f"{result.reason}: {result.first_failure.detail}"
            for name, result in zip(sources, results, strict=True)
        }
    report["seconds"] = time.monotonic() - started
    report["afterwards"] = run_tests(["print('YES')"], [LINES], code_in="text", isolation=level)[0].passed
    return report


def main(level: str, user: str) -> None:
    if user != "-":
        become(int(user))
    print(json.dumps(attack(level)))


if __name__ == "__main__":
    main(*sys.argv[1:])
