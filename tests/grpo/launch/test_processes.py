"""What a launched process sets up for itself."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from grpo.launch import processes

FAULTS = """
import resource, sys, torch
from grpo.launch.processes import keep_freed_memory
keep_freed_memory()
def touch():
    blocks = [torch.ones(6 * 2**20) for _ in range(4)]  # of 24 MiB
for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_blocks_are_used_again_without_page_faults() -> None:
    """Else 5 x 4 x 6,144 pages of 4 KiB."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100


@pytest.mark.parametrize(
    ("name", "expected"), [("MALLOC_TRIM_THRESHOLD_", []), ("UNRELATED", [(-3, 33_554_432), (-1, -1)])]
)
def test_malloc_settings_of_the_user_stay(name: str, expected: list, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "131072")
    calls: list[tuple[int, int]] = []
    libc = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(processes.ctypes, "CDLL", lambda _: libc)
    processes.keep_freed_memory()
    assert calls == expected
