"""Limits of a run, and the ways in which it may end."""

import math
from dataclasses import dataclass, field
from typing import Literal

from rewards.programs.sandbox import isolation

Reason = Literal["timeout", "memory", "output"]
_SLACK_BYTES = 256 << 20  # address space on top of memory_mb: the interpreter, libraries, thread stacks


class SandboxError(RuntimeError):
    """A sandbox could not be started, or it broke."""


class SandboxDiedError(SandboxError):
    """A sandbox died during a run."""


class Stopped(Exception):  # noqa: N818
    """A submission exceeded a limit and its box was killed. `reason`: "timeout", "memory" or "output"."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


@dataclass(slots=True)
class Budget:
    """CPU and idle seconds of several runs together: Budget(60.0). What they use is taken from `left`."""

    total: float
    left: float = field(init=False)

    def __post_init__(self) -> None:
        self.left = self.total

    @property
    def exceeded(self) -> str | None:
        """A message if nothing is left."""
        return None if self.left > 0 else f"more than {self.total:g} s in all tests together"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one run. Idle time (neither computing nor waiting for a CPU, e.g. sleeping) is limited, too."""

    time_limit: float = 5.0  # CPU seconds, all its processes together
    budget: Budget = field(default_factory=lambda: Budget(math.inf))  # shared with other runs
    memory_mb: int = 512  # all its processes together; up to 64 MiB of files come on top
    output_bytes: int = 1 << 20
    compiling: bool = False

    @property
    def idle_seconds(self) -> float:
        return self.time_limit + 2

    def for_process(self, periods: int) -> dict[str, int]:
        """The rlimits of each process. periods: how many times the run may use up `time_limit`."""
        memory = self.memory_mb << 20
        return {
            "cpu_seconds": math.ceil(self.time_limit * periods) + 1,
            "address_space": memory + _SLACK_BYTES,
            "file_size": isolation.FOLDER_BYTES if self.compiling else isolation.FOLDER_BYTES // 4,
            "stack": min(memory, 128 << 20),
        }


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended by itself: Ended(status=0, cpu=0.02, memory=21_000_000, stdout=b"3\\n", stderr="")."""

    status: int  # exit status; -9: killed by signal 9
    cpu: float  # seconds
    memory: int  # bytes, the largest process
    stdout: bytes  # output not read before
    stderr: str  # the last few KiB
