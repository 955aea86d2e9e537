"""Hosts for server_faults.py: network namespaces on one bridge, vLLM servers on them, and runs of r1_zero.yaml."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "recipes" / "v3_base")
ADDRESSES = {"trainer": "10.77.0.1", "second": "10.77.0.2", "a": "10.77.0.3", "b": "10.77.0.4"}
SWITCH = "grpo-switch"
CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def hosts() -> Iterator[None]:
    """A network namespace per host, all on one bridge, which is in a namespace of its own."""
    names = [SWITCH, *(f"grpo-{name}" for name in ADDRESSES)]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", SWITCH, "link", "add", "bridge", "type", "bridge")
        ip("-n", SWITCH, "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            ip("-n", SWITCH, "link", "add", f"to-{name}", "type", "veth", "peer", "eth0", "netns", f"grpo-{name}")
            ip("-n", SWITCH, "link", "set", f"to-{name}", "master", "bridge")
            ip("-n", SWITCH, "link", "set", f"to-{name}", "up")
            ip("-n", f"grpo-{name}", "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", f"grpo-{name}", "link", "set", "eth0", "up")
        with Path("/run/netns/grpo-trainer").open() as namespace:  # this process is on the trainer's host
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def on(host: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """A command on a host, with its processes in a group of their own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"VLLM_HOST_IP": ADDRESSES[host], "GLOO_SOCKET_IFNAME": "eth0"}
    environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    with log.open("wb") as output:
        return subprocess.Popen(
            ["ip", "netns", "exec", f"grpo-{host}", *command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


@contextlib.contextmanager
def server(host: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--host", "0.0.0.0", "--port", "8000", "--max-model-len", "192", "--max-num-seqs", "64"]
    process = on(host, [sys.executable, "-m", "grpo", "serve", MODEL, "--for-training", *options], log)
    try:
        yield process
    finally:
        send(process, signal.SIGKILL)
        process.wait()


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def url(host: str) -> str:
    return f"http://{ADDRESSES[host]}:8000"


def wait_for_server(host: str, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        if process.poll() is not None:
            raise SystemExit(f"server {host} ended with code {process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url(host)}/health", timeout=30).is_success:
                return
        time.sleep(1)


def link(host: str, state: str) -> None:
    ip("-n", SWITCH, "link", "set", f"to-{host}", state)


def train(
    folder: Path,
    name: str,
    servers: str,
    *options: str,
    machines: Sequence[str] = ("trainer",),
    seconds: float = 60,
) -> list[subprocess.Popen[bytes]]:
    """recipes/r1_zero.yaml, small, on these hosts; returns a process per host."""
    urls = ", ".join(url(host) for host in servers)
    words = [
        "rollout.engine=server",
        f"rollout.servers={{urls: [{urls}], patience: 10, health_timeout: {seconds:g}}}",
        "rollout.problems_per_step=4",
        "rollout.num_generations=4",
        "evaluation.num_problems=4",
        f"trainer.output_dir={folder / name}",
        *options,
    ]
    accelerate = str(Path(sys.executable).with_name("accelerate"))
    launch = [accelerate, "launch", "--cpu", "--num_processes", str(len(machines))]
    launch += ["--num_machines", str(len(machines)), "--main_process_ip", ADDRESSES[machines[0]]]
    launch += ["--main_process_port", "29511", "--num_cpu_threads_per_process", "1", "--mixed_precision", "no"]
    return [
        on(
            host,
            [*launch, "--machine_rank", str(rank), "recipes/r1_zero.yaml", *words],
            folder / f"{name}-{host}.log",
        )
        for rank, host in enumerate(machines)
    ]


def steps(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for line in lines if "reward" in (row := json.loads(line))]
