"""What a launched process sets up for itself."""

import os
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("set_by_user", "least", "most"),
    [({}, 0, 100), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, 100_000, 200_000)],  # 5 x 4 x 6,144 pages
)
def test_freed_blocks_are_used_again_without_page_faults(set_by_user: dict[str, str], least: int, most: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env=environment | set_by_user, capture_output=True, text=True, check=True
    )
    assert least <= int(done.stdout) < most
