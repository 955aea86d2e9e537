"""Starts training processes and sets up the current one.

`grpo train` runs accelerate's launcher in its own process: it forwards signals, waits for the training processes, exits
with their code and adds no traceback to theirs. `accelerate launch recipe.yaml` becomes `grpo train` (startup.py).
"""

import ctypes
import logging
import os
import shlex
import signal
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import psutil

from grpo.launch.signals import COMMAND, LAUNCHER, SIGNALS, command_to_continue, end

# Set by torchrun in each of several processes, and by `accelerate launch` in a single one.
_MARKS = ("LOCAL_RANK", "ACCELERATE_MIXED_PRECISION")
# Words, or names of programs, that accelerate's options follow.
_LAUNCHERS = ("launch", "train", "accelerate-launch", "accelerate.commands.launch", "launch.py")

# Processes wait for each other as long as it takes: for servers to start, for the longest completion, for a save. The
# launcher ends the others of its machine when one dies.
PATIENCE = timedelta(days=30)
MEASURED_SECONDS = 0.3
SHARED_FRACTION = 0.25  # of all cores, used by others, from which waiting threads sleep
_MALLOC = {-3: 2**25, -1: -1}  # glibc's M_MMAP_THRESHOLD, the largest it takes, and M_TRIM_THRESHOLD: never


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


def wait_without_spinning_on_shared_cores() -> None:
    """Let waiting OpenMP threads sleep if other programs use the cores now. Call before torch is imported.

    Threads that wait spin by default. On idle cores that is fastest; beside other work a spinning thread holds the core
    that the one it waits for needs, and a step becomes several times slower than its share of the cores allows
    (measured in docs/recipes.md). The results are the same. A policy set by the user wins.
    """
    if any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        return
    used = psutil.cpu_percent(interval=MEASURED_SECONDS) / 100
    if used > SHARED_FRACTION:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        print(f"other programs use {used:.0%} of the cores: OMP_WAIT_POLICY=PASSIVE for this run", file=sys.stderr)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed blocks of up to 32 MiB for the next ones. For a process that trains on a CPU.

    Otherwise it gives the larger activations back to the system, which clears their pages anew in each micro-batch: up
    to a fifth of an update's time (docs/results/update_vs_trl.md). Settings of the user's win.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version") or any(
        name in os.environ for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
    ):
        return
    for option, value in _MALLOC.items():
        libc.mallopt(option, value)


def quieten() -> None:
    """Silence what users cannot act on: transformers' progress bars and C++ warnings. Call before torch is imported.

    Downloads keep their bars. A value of TORCH_CPP_LOG_LEVEL set by the user wins.
    """
    # vLLM's CPU build warns about its NUMA binding at every start
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # about checkpoints of a single process
    warnings.filterwarnings("ignore", message=r"torch\.distributed is disabled, unavailable or uninitialized")
    # about options that grpo passes to accelerate
    warnings.filterwarnings("ignore", category=FutureWarning, module="accelerate")
    # bitsandbytes, which peft imports, about kernels for inference that grpo does not use
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one per loading and saving of weights
    enable_progress_bars()  # huggingface_hub's, which the line above switches off too


def missing_processes() -> int:
    """The number of CPU processes requested but not started, or 0.

    `accelerate launch --cpu --num_processes N` relies on MPI to start N processes. Without MPI it starts one and does
    not pass N on, so N is read from accelerate's command line and configuration file.
    """
    if "RANK" in os.environ or "MASTER_ADDR" not in os.environ or not is_launched():
        return 0
    requested = _accelerates_options().num_processes or 1
    return requested if requested > 1 else 0


def _accelerates_options() -> Namespace:
    """Those of the parent process, `accelerate launch` or `grpo train`, and of its configuration file; else none."""
    from accelerate.commands import launch as accelerate

    command = psutil.Process().parent()
    words = command.cmdline() if command else []
    starts = [i for i, word in enumerate(words[:4]) if Path(word).name in _LAUNCHERS]
    given = words[starts[0] + 1 :] if starts else ["script"]  # which it requires
    asked = accelerate.launch_command_parser().parse_known_args(given)[0]
    if asked.config_file or (os.path.isfile(accelerate.default_config_file) and not asked.cpu):  # noqa: PTH113 (a string)
        asked = accelerate._validate_launch_command(asked)[0]  # which merges the file
    return asked


def torchrun_options(asked: Namespace, num_processes: int) -> list[str]:
    """What torchrun is told of this machine's share of `num_processes`, and of the others, as accelerate was asked."""
    machines = asked.num_machines or 1
    if machines == 1:
        return ["--standalone", "--nproc_per_node", str(num_processes)]
    return [
        *("--nnodes", str(machines), "--node_rank", str(asked.machine_rank or 0)),
        *("--master_addr", asked.main_process_ip, "--master_port", str(asked.main_process_port)),
        *("--nproc_per_node", str(num_processes // machines)),
    ]


def launch_on_cpu(num_processes: int, command: Sequence[str]) -> NoReturn:
    """Run `grpo [command]` in this machine's share of `num_processes` CPU processes over gloo, and exit as they do."""
    from torch.distributed import run as torchrun

    cores = len(os.sched_getaffinity(0))
    if os.environ["OMP_NUM_THREADS"] == str(cores):  # set by use_all_cores for one process
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // num_processes))
    options = torchrun_options(_accelerates_options(), num_processes)
    arguments = torchrun.parse_args([*options, "-m", "grpo", *command])
    arguments.signals_to_handle = "SIGQUIT"
    _supervise(lambda: torchrun.run(arguments), command_to_continue(["grpo", *command]))


def launch(accelerate_options: Sequence[str], command: Sequence[str]) -> NoReturn:
    """Run `accelerate launch [options] -m grpo [command]` in this process, and exit as its training processes do."""
    from accelerate.commands.config.config_args import default_config_file
    from accelerate.commands.launch import launch_command, launch_command_parser

    options = [*accelerate_options]
    if not os.path.isfile(default_config_file):  # noqa: PTH113 (a string)
        options = [*_defaults(accelerate_options), *options]
    arguments = launch_command_parser().parse_args([*options, "-m", "grpo", *command])
    arguments.signals_to_handle = "SIGQUIT"  # torchrun's: leave the others to _supervise
    _pass_sharding_on(arguments)
    wait_without_spinning_on_shared_cores()
    typed = os.environ.get(COMMAND) or shlex.join(["grpo", command[0], *accelerate_options, *command[1:]])
    _supervise(lambda: launch_command(arguments), typed)


def _pass_sharding_on(arguments: Namespace) -> None:
    """Tell the training processes what they are to be sharded by. They accept FSDP2 and refuse the rest.

    accelerate allows none of these with --cpu, and looks for DeepSpeed itself.
    """
    for option in ("use_fsdp", "use_deepspeed", "use_megatron_lm"):
        if getattr(arguments, option):
            os.environ[f"ACCELERATE_{option.upper()}"] = "true"
    os.environ["FSDP_VERSION"] = str(arguments.fsdp_version)
    arguments.use_deepspeed = arguments.use_megatron_lm = False
    arguments.use_fsdp = arguments.use_fsdp and not arguments.cpu


def _supervise(start: Callable[[], object], typed: str) -> NoReturn:
    """Run a launcher that waits for its processes; forward signals to them, and exit with their code.

    typed: the command line, for the message that says how to continue.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    def forward(number: int, _frame: object) -> None:
        children = psutil.Process().children()
        if not children:
            end(f"stopped before a step was done ({signal.Signals(number).name})", number, typed)
        for child in children:
            child.send_signal(number)

    signal.set_wakeup_fd(-1)  # of signals.listen, if this process called it
    for number in SIGNALS:
        signal.signal(number, forward)
    os.environ |= {COMMAND: typed, LAUNCHER: str(os.getpid())}
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it repeats the processes' own errors
    sys.stdout.flush()
    code = 0
    try:
        start()
    except subprocess.CalledProcessError as error:
        code = error.returncode
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
    if code < 0:
        name = signal.Signals(-code).name
        print(f"a training process was ended by {name}; continue with: {typed}", file=sys.stderr)
    sys.exit(code if code >= 0 else 128 - code)


def _defaults(given: Sequence[str]) -> list[str]:
    """The options accelerate would default to without a configuration file; passing them silences its warnings."""
    import torch

    defaults = {
        "--num_processes": max(1, torch.cuda.device_count()),
        "--num_machines": 1,
        "--mixed_precision": "no",
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": os.environ.get("OMP_NUM_THREADS", 1),  # 1: see use_all_cores
    }
    names = {option.partition("=")[0].replace("-", "_") for option in given}
    if "__config_file" in names:
        return []
    return [
        str(part) for name, value in defaults.items() if name.replace("-", "_") not in names for part in (name, value)
    ]
