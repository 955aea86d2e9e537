"""Starts training processes and sets up the current one.

Users start processes with `accelerate launch`, or with `grpo train`, which runs `accelerate launch`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

# Set by torchrun in each of several processes, and by `accelerate launch` in a single one.
_MARKS = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process."""
    return any(mark in environ for mark in _MARKS)


def use_all_cores() -> None:
    """Divide the machine's cores among its processes. Call before torch is imported.

    `accelerate launch` sets OMP_NUM_THREADS=1 unless told otherwise, which leaves the other cores idle. Values above 1
    were set on purpose and are kept.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))


def missing_processes() -> int:
    """The number of CPU processes requested but not started, or 0.

    `accelerate launch --cpu --num_processes N` relies on MPI to start N processes. Without MPI it starts one and does
    not pass N on, so N is read from accelerate's command line.
    """
    if "RANK" in os.environ or "MASTER_ADDR" not in os.environ or not is_launched():
        return 0
    import psutil

    command = psutil.Process().parent()
    words = command.cmdline() if command else []
    if "launch" not in "".join(words[:4]):
        return 0
    from accelerate.commands.launch import launch_command_parser

    start = next(i for i, word in enumerate(words) if "launch" in word) + 1
    requested = launch_command_parser().parse_known_args(words[start:])[0].num_processes or 1
    return requested if requested > 1 else 0


def launch_on_cpu(num_processes: int, command: Sequence[str]) -> NoReturn:
    """Replace this process by torchrun with `num_processes` CPU processes, which communicate over gloo."""
    options = ["--standalone", "--nproc_per_node", str(num_processes)]
    program = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "grpo", *command]
    sys.stdout.flush()
    os.execv(sys.executable, program)


def launch(accelerate_options: Sequence[str], command: Sequence[str]) -> NoReturn:
    """Replace this process by `accelerate launch [options] -m grpo [command]`."""
    from accelerate.commands.config.config_args import default_config_file

    options = [*accelerate_options]
    if not os.path.isfile(default_config_file):  # noqa: PTH113 (a string)
        options = [*_defaults(accelerate_options), *options]
    program = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options, "-m", "grpo", *command]
    sys.stdout.flush()
    os.execv(sys.executable, program)


def _defaults(given: Sequence[str]) -> list[str]:
    """The options accelerate would default to without a configuration file; passing them silences its warnings."""
    import torch

    defaults = {
        "--num_processes": max(1, torch.cuda.device_count()),
        "--num_machines": 1,
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
    }
    names = {option.partition("=")[0].replace("-", "_") for option in given}
    if "__config_file" in names:
        return []
    return [
        str(part) for name, value in defaults.items() if name.replace("-", "_") not in names for part in (name, value)
    ]
