"""What a launched process sets up for itself."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
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


FOUR_ON_CPU = "distributed_type: 'NO'\nuse_cpu: true\nnum_processes: 4\n"
TWO_MACHINES = FOUR_ON_CPU + "num_machines: 2\nmachine_rank: 1\nmain_process_ip: 10.0.0.1\nmain_process_port: 29501\n"


@pytest.mark.parametrize(
    ("command", "file", "wanted"),
    [
        ("/home/me/launch/bin/python /home/me/launch/bin/accelerate launch --cpu --num_processes 2 x.yaml", "", 2),
        ("/home/me/launch/bin/python -m grpo train --cpu x.yaml", "", 0),
        ("python bin/accelerate-launch --config_file FILE x.yaml", FOUR_ON_CPU, 4),
        ("python -m grpo train --config-file FILE x.yaml", FOUR_ON_CPU, 4),
        ("python -m grpo train --config_file FILE --num_processes 2 x.yaml", FOUR_ON_CPU, 2),
    ],
)
def test_processes_are_counted_as_accelerate_was_asked(
    command: str, file: str, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(command, file, tmp_path, monkeypatch)
    assert processes.missing_processes() == wanted


def test_several_machines_may_come_from_accelerates_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask("python -m grpo train --config_file FILE x.yaml", TWO_MACHINES, tmp_path, monkeypatch)
    assert processes.torchrun_options(processes._accelerates_options(), 4) == [
        *("--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29501"),
        *("--nproc_per_node", "2"),
    ]


def ask(command: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process look like one that accelerate started for `command`; FILE is its configuration file."""
    (tmp_path / "acc.yaml").write_text(file)
    words = command.replace("FILE", str(tmp_path / "acc.yaml")).split()
    monkeypatch.setattr(psutil.Process, "parent", lambda _: SimpleNamespace(cmdline=lambda: words))
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", str(tmp_path / "none.yaml"))
    monkeypatch.delenv("RANK", raising=False)
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("ACCELERATE_MIXED_PRECISION", "no"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
