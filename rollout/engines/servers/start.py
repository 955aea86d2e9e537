"""Servers of our own on this machine: started, waited for, and ended with the run.

A server is a process group of its own, so that Ctrl-C reaches the trainer alone; it ends when the trainer closes it,
and by the kernel's signal when the trainer dies. One of several that dies itself is started once more.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from rollout.engines.servers.settings import ServerSettings
from rollout.engines.vllm_serve import FOR_TRAINING, server_command

STOP_SECONDS = 20  # between SIGTERM and SIGKILL
# What torchrun tells the trainer's processes, beside TORCHELASTIC_…; it does not hold for a server.
LAUNCHER_NAMES = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)


def check(
    model_path: str,
    *,
    servers: ServerSettings,
    vllm_options: Mapping[str, Any],
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Refuse servers that could not be started or reached, before anything is.

    Raises:
        ValueError: several machines, too few GPUs, a model that vLLM cannot serve, or a key that is not set.
    """
    servers.authorization()
    if servers.start:
        _check_one_machine(servers.start)
        share = _share(servers.start - 1, servers.start)
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            if (size := vllm_options.get(name, 1)) > 1 and "CUDA_VISIBLE_DEVICES" in share:
                raise ValueError(
                    f"vllm_options.{name}={size} with rollout.servers.start={servers.start}: each server that a run "
                    "starts has one GPU. Start larger ones with `grpo serve MODEL --for-training` and list them: "
                    "rollout.servers=[http://host:8000]."
                )
        options = [FOR_TRAINING, *_command_line(vllm_options)]
        server_command(model_path, options, revision=revision, trust_remote_code=trust_remote_code, share=share)


class StartedServers:
    """`count` servers of one model, each on its own port.

    Args:
        options: vLLM's engine arguments, named as those of vllm.LLM.
        timeout: seconds until all must be up.
        api_key_env: environment variable with the key that they require; None: none.

    Raises:
        ValueError: a server ended or was not up in time; with the end of its output.
    """

    def __init__(
        self,
        count: int,
        model_path: str,
        options: Mapping[str, Any],
        *,
        timeout: float,
        api_key_env: str | None,
        revision: str | None,
        trust_remote_code: bool,
    ) -> None:
        _check_one_machine(count)
        self._logs = tempfile.TemporaryDirectory(prefix="grpo-servers-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._commands: list[tuple[Sequence[str], Mapping[str, str]]] = []
        self._ended: list[subprocess.Popen[bytes]] = []
        self._revived: set[str] = set()
        ports = _free_ports(count)
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        try:
            for number, port in enumerate(ports):
                address = ["--host", "127.0.0.1", "--port", str(port)]
                share = _share(number, count)
                command, environment = server_command(
                    model_path,
                    [FOR_TRAINING, *_command_line(options), *address],
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                    share=share,
                )
                environment = _without_launcher(environment) | share
                environment["VLLM_API_KEY"] = os.environ[api_key_env] if api_key_env else ""
                self._commands.append((command, environment))
                self._processes.append(self._start(number))
            self._wait(timeout)
        except BaseException:
            self.close()
            raise

    def revive(self, url: str) -> str:
        """How the server has ended; "" if it runs. The first time, start it again, without waiting until it is up.

        A single server is not: it would take part after the next update, and nothing else samples for that.
        """
        number = self.urls.index(url)
        process = self._processes[number]
        if process.poll() is None:
            return ""
        ended = f"ended with code {process.returncode}"
        starts = url not in self._revived and len(self.urls) > 1
        if process not in self._ended:
            self._ended.append(process)
            again = "; it is started again, once, and takes part after an update" if starts else ""
            print(f"server {url} {ended}{again}. Its last lines:\n{self._end(number)}", file=sys.stderr, flush=True)
        if starts:
            self._revived.add(url)
            _signal(process, signal.SIGKILL)  # what is left of its group
            self._processes[number] = self._start(number)
        return ended

    def close(self) -> None:
        """End the servers and their processes."""
        for process in self._processes:
            _signal(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _signal(process, signal.SIGKILL)  # also what is left of its group
            process.wait()
        self._logs.cleanup()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command, environment = self._commands[number]
        child = [sys.executable, "-m", "rollout.engines.servers.child", str(os.getpid()), *command]
        with self._log(number).open("wb") as log:
            return subprocess.Popen(
                child, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, timeout: float) -> None:
        started = time.monotonic()
        waiting = dict(enumerate(self.urls))
        print(f"starting {len(waiting)} vLLM server{'s' * (len(waiting) > 1)} …", file=sys.stderr, flush=True)
        while waiting:
            seconds = time.monotonic() - started
            for number, url in list(waiting.items()):
                if (code := self._processes[number].poll()) is not None:
                    raise ValueError(
                        f"the vLLM server {url} ended with code {code}. Its last lines:\n{self._end(number)}"
                    )
                if _is_up(url):
                    del waiting[number]
                    print(f"server {url} is up after {seconds:.0f} s", file=sys.stderr, flush=True)
                elif seconds > timeout:
                    raise ValueError(
                        f"the vLLM server {url} was not up within rollout.servers.start_timeout={timeout:g} s. "
                        f"Its last lines:\n{self._end(number)}"
                    )
            time.sleep(0.5)

    def _log(self, number: int) -> Path:
        return Path(self._logs.name) / f"{number}.log"

    def _end(self, number: int) -> str:
        return "\n".join(self._log(number).read_text(encoding="utf-8", errors="replace").splitlines()[-15:])


def _check_one_machine(count: int) -> None:
    processes, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if processes > here:
        raise ValueError(
            f"rollout.servers.start={count}: servers started by the run are reached from their machine only, and "
            f"{processes - here} of {processes} trainer processes are on others. Start servers with `grpo serve MODEL "
            "--for-training` and list them: rollout.servers=[http://host:8000]."
        )


def _command_line(options: Mapping[str, Any]) -> list[str]:
    """vllm.LLM's arguments as its server's options: {"enforce_eager": True} is --enforce-eager."""
    words: list[str] = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return words


def _share(number: int, count: int) -> dict[str, str]:
    """A server's share of the machine: of its cores, and the GPUs after those of the trainer's processes."""
    import torch

    threads = max(1, len(os.sched_getaffinity(0)) // count)
    share = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    if devices := torch.cuda.device_count():
        device = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) + number
        if device >= devices:
            raise ValueError(
                f"rollout.servers.start={count}: the machine has {devices} GPUs, and the trainer's processes take "
                f"{device - number} of them. Start fewer servers or fewer processes."
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(devices)))).split(",")
        share["CUDA_VISIBLE_DEVICES"] = visible[device]
    return share


def _without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name not in LAUNCHER_NAMES and not name.startswith("TORCHELASTIC_")
    }


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).is_success
    except httpx.TransportError:
        return False


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
