"""Faults of real vLLM servers on hosts of their own (network namespaces), and runs whose trainers are on others.

    sudo python benchmarks/faults/server_faults.py [--only hosts,stale,slow,hang,cut,update,half,kill,dead]
        [--seconds 20]

Needs root and the package installed, as vLLM finds `grpo_file` by its entry point. Prints a line per fault: what was
done, what the run did, and whether that is right. Every generation must give each group once, complete, and with the
tokens it has without a fault, but for rounding. Two servers of the embedded base start once and are killed at the end.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo.model.weights import checkpoint_weights
from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import held_out
from rollout.engines.servers.engine import ServersEngine
from rollout.engines.servers.plugin import checksum
from rollout.engines.servers.settings import ServerSettings
from rollout.types import Sampling

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "recipes" / "v3_base")
ADDRESSES = {"trainer": "10.77.0.1", "second": "10.77.0.2", "a": "10.77.0.3", "b": "10.77.0.4"}
SWITCH = "grpo-switch"
CLONE_NEWNET = 0x40000000
GROUPS, SIZE = 24, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="hosts,stale,slow,hang,cut,update,half,kill,dead")
    parser.add_argument("--seconds", type=float, default=20, help="health_timeout; more on a busy machine")
    parser.add_argument("--links", type=float, default=30, help="seconds for which the link is cut")
    given = parser.parse_args()
    chosen = given.only.split(",")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="server-faults-")))
        stack.enter_context(hosts())
        servers = {name: stack.enter_context(server(name, folder / f"{name}.log")) for name in "ab"}
        started = time.monotonic()
        for name in servers:
            wait_for_server(name, servers[name], folder / f"{name}.log")
        print(f"two servers are up after {time.monotonic() - started:.0f} s", flush=True)
        right = [report("hosts", *two_hosts(folder))] if "hosts" in chosen else []
        faults = Faults(servers, given.seconds, given.links)
        for name in ("stale", "slow", "hang", "cut", "update", "half", "kill"):
            if name in chosen:
                right.append(report(name, *getattr(faults, name)()))
        faults.engine.close()
        if "dead" in chosen:
            right.append(report("dead", *all_dead(folder, servers)))
    sys.exit(not all(right))


def report(name: str, right: bool, seen: str) -> bool:
    print(f"{'ok   ' if right else 'WRONG'} {name}: {seen}", flush=True)
    return right


# -- hosts


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


# -- runs


def train(folder: Path, name: str, servers: str, *options: str, machines: Sequence[str] = ("trainer",)) -> list[Any]:
    """recipes/r1_zero.yaml, small, on these hosts; returns a process per host."""
    words = [
        "rollout.engine=server",
        f"rollout.servers={{urls: [{', '.join(url(host) for host in servers)}], patience: 10}}",
        "rollout.problems_per_step=4",
        "rollout.num_generations=4",
        "evaluation.num_problems=4",
        f"trainer.output_dir={folder / name}",
        *options,
    ]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(len(machines))]
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


def two_hosts(folder: Path) -> tuple[bool, str]:
    """The same two steps by one trainer and by two on two hosts, with the server on a third."""
    runs = {}
    for name, machines in {"one": ("trainer",), "two": ("trainer", "second")}.items():
        started = time.monotonic()
        codes = [run.wait() for run in train(folder, name, "a", "trainer.max_steps=2", machines=machines)]
        if any(codes):
            logs = [(folder / f"{name}-{host}.log").read_text()[-1500:] for host in machines]
            return False, f"{name}: exit codes {codes}:\n" + "\n".join(logs)
        runs[name] = steps(folder / name)
        print(f"      {name} trainer{'s' * (name == 'two')}: 2 steps in {time.monotonic() - started:.0f} s", flush=True)
    keys = ("reward", "grad_norm", "num_tokens", "completions/mean_length")
    apart = max(abs(one[key] - two[key]) / max(abs(one[key]), 1e-9) for one, two in zip(*runs.values()) for key in keys)  # noqa: B905
    mismatch = max(row["sampling/sampling_logp_difference/mean"] for rows in runs.values() for row in rows)
    seen = f"reward, gradient norm and lengths of one and two trainers differ by {apart:.1e}; "
    return apart < 1e-3 and mismatch < 1e-5, seen + f"mean |log p_trainer - log p_engine| at most {mismatch:.1e}"


def all_dead(folder: Path, servers: dict[str, subprocess.Popen[bytes]]) -> tuple[bool, str]:
    """Kill every server of a run that has trained, and look at how it ends."""
    alive = [name for name, process in servers.items() if process.poll() is None]
    (run,) = train(folder, "dead", "".join(alive), "trainer.max_steps=100")
    while run.poll() is None and not steps(folder / "dead"):
        time.sleep(0.2)
    for name in alive:
        send(servers[name], signal.SIGKILL)
    code = run.wait()
    log = (folder / "dead-trainer.log").read_text()
    said = [line for line in log.splitlines() if "stopped at step" in line]
    kept = sorted(path.name for path in (folder / "dead").glob("checkpoint-*"))
    right = bool(code and kept and said) and "Traceback" not in log
    return right, f"the run kept {', '.join(kept)} and said: {said[0] if said else log[-1500:]}"


# -- faults of servers


class Faults:
    """Each fault happens after the first group of a generation; what it returns: right?, and what was seen."""

    def __init__(self, servers: dict[str, subprocess.Popen[bytes]], seconds: float, cut: float) -> None:
        self.processes, self.cut_seconds = servers, cut
        settings = ServerSettings(urls=[url("a"), url("b")], health_timeout=seconds, update_timeout=60, patience=120)
        self.engine = ServersEngine(
            MODEL,
            servers=settings,
            dtype="float32",
            max_model_len=192,
            max_num_seqs=64,
            kv_cache_gib=1,
            gpu_memory_utilization=0.5,
            vllm_options={},
        )
        self.seconds = seconds
        self.model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        prompter = Prompter(AutoTokenizer.from_pretrained(MODEL), template="{prompt} :", max_prompt_length=32)
        self.prompts, _ = held_out(load_source(task="countdown", split="eval"), prompter, GROUPS)
        self.version, self.taken, self.said = 0, Counter(), io.StringIO()
        for one in self.engine._pool.servers:
            one.generate = self.counted(one.url, one.generate)
        self.publish()
        self.expected = self.sample()[0]

    def counted(self, name: str, generate: Callable[..., Any]) -> Callable[..., Any]:
        async def counting(body: Any) -> Any:
            choices = await generate(body)
            self.taken[name] += 1
            return choices

        return counting

    def publish(self) -> str:
        self.version += 1
        with contextlib.redirect_stderr(io.StringIO()) as said:
            self.engine.publish(checkpoint_weights(self.model), self.version)
        return said.getvalue()

    def sample(self, fault: Callable[[], object] = lambda: None) -> tuple[dict[str, Any], str, float]:
        """The groups by problem, each once; what was said; and the seconds it took."""
        self.taken.clear()
        found, started = {}, time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()) as said:
            for group in self.engine.generate(self.prompts, Sampling(num_generations=SIZE, max_completion_length=144)):
                assert group.problem.id not in found and len(group.completions) == SIZE
                if not found:
                    fault()
                found[group.problem.id] = [list(completion.token_ids) for completion in group.completions]
        assert len(found) == GROUPS
        return found, " ".join(said.getvalue().split()), time.monotonic() - started

    def same(self, found: dict[str, Any]) -> str:
        pairs = [(one, two) for key, group in found.items() for one, two in zip(group, self.expected[key], strict=True)]
        return f"{sum(one == two for one, two in pairs)} of {len(pairs)} completions as without it"

    def returns(self) -> str:
        """Generate until server a takes part again."""
        for _ in range(10):
            if "takes part again" in (said := self.sample()[1]) or self.taken[url("a")]:
                return said or "a takes part again"
        return ""

    def stale(self) -> tuple[bool, str]:
        httpx.post(f"{url('a')}/update_weight_version", json={"new_version": "another run's/3"}, timeout=60)
        found, said, _ = self.sample()
        refused = ("samples with weights" in said and self.taken[url("a")] == 0) or "another run" in said
        back = self.publish()
        return (
            refused and "takes part again" in back,
            f"{said}; {self.same(found)}; after the next update: {back.strip()}",
        )

    def slow(self) -> tuple[bool, str]:
        ended = threading.Event()

        def crawl() -> None:
            while not ended.wait(0.02):
                send(self.processes["a"], signal.SIGSTOP)
                ended.wait(0.18)
                send(self.processes["a"], signal.SIGCONT)

        before = self.taken[url("a")] if self.sample() else 0
        thread = threading.Thread(target=crawl)
        thread.start()
        try:
            shares = [(self.sample()[2], self.taken[url("a")]) for _ in range(3)]
        finally:
            ended.set()
            thread.join()
            send(self.processes["a"], signal.SIGCONT)
        text = ", ".join(f"{share} of {GROUPS} in {seconds:.0f} s" for seconds, share in shares)
        return shares[-1][1] < before, f"groups of server a: {before} of {GROUPS}; stopped 9/10 of the time: {text}"

    def hang(self) -> tuple[bool, str]:
        found, said, seconds = self.sample(lambda: send(self.processes["a"], signal.SIGSTOP))
        send(self.processes["a"], signal.SIGCONT)
        right = f"did not answer within {self.seconds:g} s" in said
        return right and bool(
            self.returns()
        ), f"{said}; {self.same(found)} in {seconds:.0f} s; continued, it takes part again"

    def cut(self) -> tuple[bool, str]:
        restored = threading.Timer(self.cut_seconds, link, ["a", "up"])

        def fault() -> None:
            link("a", "down")
            restored.start()

        found, said, seconds = self.sample(fault)
        restored.join()
        back = self.returns()
        return bool(back), f"{said or 'nothing was said'}; {self.same(found)} in {seconds:.0f} s; {back}"

    def update(self) -> tuple[bool, str]:
        """The link is cut while weights are sent; the server has old ones, or half of the new, when it returns."""
        link("a", "down")
        lost = self.publish()
        link("a", "up")
        found, _, _ = self.sample()
        kept_out = self.taken[url("a")] == 0
        back = self.publish()
        right = "left out" in lost and kept_out and "takes part again" in back
        return right, f"{lost.strip()}; then {self.same(found)}, none by it; after the next update: {back.strip()}"

    def half(self) -> tuple[bool, str]:
        """A trainer died in the middle of an update and left half of its weights, which are noise."""
        weights = list(checkpoint_weights(self.model))[::2]
        noise = {name: torch.randn_like(weight).contiguous() for name, weight in weights}
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            file = Path(folder) / "half.safetensors"
            save_file(noise, file)
            requests = {
                "/pause?mode=keep": {},
                "/init_weight_transfer_engine": {"init_info": {}},
                "/start_weight_update": {},
                "/update_weights": {"update_info": {"path": str(file), "crc32": checksum(file)}},
            }
            for path, body in requests.items():
                httpx.post(url("a") + path, json=body, timeout=120).raise_for_status()
        said = self.publish()
        found, also, _ = self.sample()
        right = not said + also and self.taken[url("a")] > 0 and found == self.expected
        return right, f"{said + also or 'the next update is whole'}; {self.same(found)}"

    def kill(self) -> tuple[bool, str]:
        found, said, seconds = self.sample(lambda: send(self.processes["a"], signal.SIGKILL))
        right = said.count("is left out") == 1
        return right, f"{said}; {self.same(found)} in {seconds:.0f} s"


def link(host: str, state: str) -> None:
    ip("-n", SWITCH, "link", "set", f"to-{host}", state)


if __name__ == "__main__":
    main()
