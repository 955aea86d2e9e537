"""Starts training processes, and sets up the one it is in.

`accelerate launch` starts them when the user says so; `grpo train` starts `accelerate launch`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

# Set by torchrun for every process of several, and by `accelerate launch` for a single one.
_MARKS = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")


def is_launched(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process."""
    return any(mark in environ for mark in _MARKS)


def use_all_cores() -> None:
    """Share the machine's cores among its processes. Call before torch is imported.

    `accelerate launch` sets OMP_NUM_THREADS=1 when it was not told a number, which leaves all other cores idle. A
    number above one was somebody's wish and stays.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // processes))


def missing_processes() -> int:
    """How many CPU processes were asked for and not started, or 0.

    `accelerate launch --cpu --num_processes N` leaves it to MPI to start N, and without MPI starts a single process
    that it does not even tell N. Its own command line does.
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
    asked = launch_command_parser().parse_known_args(words[start:])[0].num_processes or 1
    return asked if asked > 1 else 0


def launch_on_cpu(num_processes: int, command: Sequence[str]) -> NoReturn:
    """Become torchrun, with processes that talk over gloo."""
    options = ["--standalone", "--nproc_per_node", str(num_processes)]
    program = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "grpo", *command]
    sys.stdout.flush()
    os.execv(sys.executable, program)


def launch(accelerate_options: Sequence[str], command: Sequence[str]) -> NoReturn:
    """Become `accelerate launch [options] -m grpo [command]`."""
    from accelerate.commands.config.config_args import default_config_file

    options = [*accelerate_options]
    if not os.path.isfile(default_config_file):  # noqa: PTH113 (accelerate's is a string)
        options = [*_defaults(accelerate_options), *options]
    program = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *options, "-m", "grpo", *command]
    sys.stdout.flush()
    os.execv(sys.executable, program)


def _defaults(given: Sequence[str]) -> list[str]:
    """What accelerate assumes without a configuration, said aloud, so that it does not warn of it."""
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
