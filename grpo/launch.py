"""Starts training processes, and sets up the one it is in.

`accelerate launch` starts them when the user says so; `grpo train` starts `accelerate launch`.
"""

import os
import sys
from collections.abc import Mapping, Sequence

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


def launch(accelerate_options: Sequence[str], command: Sequence[str]) -> None:
    """Become `accelerate launch [options] -m grpo [command]`. Does not return."""
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
    return [str(part) for name, value in defaults.items() if name.replace("-", "_") not in names for part in (name, value)]
