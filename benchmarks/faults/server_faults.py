"""Faults of real vLLM servers on hosts of their own (network namespaces), and runs whose trainers are on others.

    sudo python benchmarks/faults/server_faults.py [--only restart,hosts,stale,slow,hang,cut,update,half,kill,dead]
        [--seconds 20]

Needs root and the package installed, as vLLM finds `grpo_file` by its entry point. Prints a line per fault: what was
done, what the run did, and whether that is right. Every generation must give each group once, complete, and with the
tokens it has without a fault, but for rounding. Two servers of the embedded base start once and are killed at the end;
the run of `restart` starts two of its own.
"""

import argparse
import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from hosts import ADDRESSES, MODEL, hosts, link, send, server, steps, train, url, wait_for_server
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

GROUPS, SIZE = 24, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="restart,hosts,stale,slow,hang,cut,update,half,kill,dead")
    parser.add_argument("--seconds", type=float, default=20, help="health_timeout; more on a busy machine")
    parser.add_argument("--links", type=float, default=30, help="seconds for which the link is cut")
    parser.add_argument("--steps", type=int, default=3, help="of the runs on several hosts")
    given = parser.parse_args()
    chosen = given.only.split(",")
    right: list[bool] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="server-faults-")))
        stack.enter_context(hosts())
        if "restart" in chosen:
            right.append(report("restart", *restart(folder)))
        if chosen == ["restart"]:
            sys.exit(not all(right))
        servers = {name: stack.enter_context(server(name, folder / f"{name}.log")) for name in "ab"}
        started = time.monotonic()
        for name in servers:
            wait_for_server(name, servers[name], folder / f"{name}.log")
        print(f"two servers are up after {time.monotonic() - started:.0f} s", flush=True)
        if "hosts" in chosen:
            right.append(report("hosts", *two_hosts(folder, given.steps)))
        faults = Faults(folder, servers, given.seconds, given.links)
        for name in ("stale", "slow", "hang", "cut", "update", "half", "kill"):
            if name in chosen:
                right.append(report(name, *getattr(faults, name)()))
        faults.engine.close()
        if "dead" in chosen:
            right.append(report("dead", *all_dead(folder, servers, given.seconds)))
    sys.exit(not all(right))


def report(name: str, right: bool, seen: str) -> bool:
    print(f"{'ok   ' if right else 'WRONG'} {name}: {seen}", flush=True)
    return right


# -- runs


def two_hosts(folder: Path, count: int) -> tuple[bool, str]:
    """The same steps by one trainer and by two on two hosts, with servers on two others."""
    runs, asked = {}, {}
    sizes = ["rollout.problems_per_step=8", "rollout.num_generations=8", f"trainer.max_steps={count}"]
    for name, machines in {"one": ("trainer",), "two": ("trainer", "second")}.items():
        started, before = time.monotonic(), requests(folder)
        codes = [run.wait() for run in train(folder, name, "ab", *sizes, machines=machines)]
        if any(codes):
            logs = [(folder / f"{name}-{host}.log").read_text()[-1500:] for host in machines]
            return False, f"{name}: exit codes {codes}:\n" + "\n".join(logs)
        runs[name], asked[name] = steps(folder / name), requests(folder) - before
        shares = ", ".join(f"{seen} from {trainer} to {server}" for (trainer, server), seen in asked[name].items())
        print(f"      {name}: {count} steps in {time.monotonic() - started:.0f} s; groups: {shares}", flush=True)
    keys = ("reward", "grad_norm", "num_tokens", "completions/mean_length")
    pairs = list(zip(*runs.values(), strict=True))
    apart = max(abs(one[key] - two[key]) / max(abs(one[key]), 1e-9) for one, two in pairs for key in keys)
    norms = ", ".join(f"{one['grad_norm']:.7g} and {two['grad_norm']:.7g}" for one, two in pairs)
    mismatch = max(row["sampling/sampling_logp_difference/mean"] for rows in runs.values() for row in rows)
    used = {end for ends in asked["two"] for end in ends} == set(ADDRESSES)
    right = used and len(pairs) == count and apart < 1e-3 and mismatch < 1e-5
    return right, (
        f"gradient norms of one and two trainers: {norms}; they, rewards and lengths differ by {apart:.1e}; "
        f"mean |log p_trainer - log p_engine| at most {mismatch:.1e}"
    )


def requests(folder: Path) -> Counter[tuple[str, str]]:
    """Groups that each server's log says it was asked for, by the host that asked."""
    found = Counter[tuple[str, str]]()
    for name in "ab":
        lines = (folder / f"{name}.log").read_text().splitlines()
        for host, address in ADDRESSES.items():
            asked = [line for line in lines if f" {address}:" in line and "POST /inference/v1/generate" in line]
            found[host, name] = len(asked)
    return +found


def all_dead(folder: Path, servers: dict[str, subprocess.Popen[bytes]], seconds: float) -> tuple[bool, str]:
    """Lose every server of a run that has trained, in an evaluation, then in a rollout of the run that continues it."""
    alive = [name for name, process in servers.items() if process.poll() is None]
    seen, right = [], True
    for number, (moment, sent) in enumerate({"an evaluation": signal.SIGSTOP, "a rollout": signal.SIGKILL}.items()):
        options = [
            "trainer.max_steps=100",
            "trainer.resume_from_checkpoint=true",
            "evaluation.num_problems=128",
            f"evaluation.eval_steps={1 - number}",  # once after each step, and then never
        ]
        (run,) = train(folder, "dead", "".join(alive), *options, seconds=seconds)
        while run.poll() is None and len(steps(folder / "dead")) <= number:
            time.sleep(0.2)
        for name in alive:
            send(servers[name], sent)
        code = run.wait()
        for name in alive:
            send(servers[name], signal.SIGCONT)
        log = (folder / "dead-trainer.log").read_text()
        said = [line for line in log.splitlines() if line.startswith("stopped at step")]
        kept = sorted(path.name for path in (folder / "dead").glob("checkpoint-*"))
        right = right and bool(code and len(kept) == number + 1 and said) and "Traceback" not in log
        seen.append(f"in {moment}, it kept {', '.join(kept)} and said: {said[0] if said else log[-1500:]}")
    return right, "; ".join(seen)


def restart(folder: Path) -> tuple[bool, str]:
    """Kill one of two servers that a run has started, and wait until it takes part again."""
    (run,) = train(folder, "restart", "", "rollout.servers={start: 2}", "trainer.max_steps=1000")
    log, killed = folder / "restart-trainer.log", 0

    def said() -> list[str]:
        return [line for line in log.read_text().splitlines() if line.startswith(("server http", "warning: server"))]

    while run.poll() is None and not any("takes part again" in line for line in said()):
        time.sleep(0.2)
        if not killed and steps(folder / "restart"):
            family = psutil.Process(run.pid).children(recursive=True)
            server = next(one for one in family if any("api_server" in word for word in one.cmdline()))
            os.killpg(server.pid, signal.SIGKILL)
            killed = len(steps(folder / "restart"))
    back = len(steps(folder / "restart"))
    family = psutil.Process(run.pid).children(recursive=True) if run.poll() is None else []
    send(run, signal.SIGTERM)
    run.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    seen = "; ".join(line for line in said() if "is up after" not in line)
    right = "started again" in seen and "takes part again" in seen and not left
    return right, f"killed after step {killed}: {seen}, after step {back}; ended, the run left {len(left)} processes"


# -- faults of servers


class Faults:
    """Each fault happens after the first group of a generation; what it returns: right?, and what was seen."""

    def __init__(self, folder: Path, servers: dict[str, subprocess.Popen[bytes]], seconds: float, cut: float) -> None:
        self.folder, self.processes, self.cut_seconds = folder, servers, cut
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
            while not ended.wait(0.05):
                send(self.processes["a"], signal.SIGSTOP)
                ended.wait(0.95)
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
        return shares[-1][1] < before, f"groups of server a: {before} of {GROUPS}; stopped 19/20 of the time: {text}"

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
        self.leave_half()
        said = self.publish()
        found, also, _ = self.sample()
        right = not said + also and self.taken[url("a")] > 0 and found == self.expected
        self.leave_half()
        (run,) = train(self.folder, "after", "a", "trainer.max_steps=1")
        code, rows = run.wait(), steps(self.folder / "after")
        self.publish()  # the new run's weights give way
        mismatch = rows[0]["sampling/sampling_logp_difference/mean"] if rows else float("nan")
        return right and code == 0 and mismatch < 1e-5, (
            f"{said + also or 'the next update is whole'}; {self.same(found)}; left so again, a new run on it "
            f"ends with code {code} and mean |log p_trainer - log p_engine| {mismatch:.1e}"
        )

    def leave_half(self) -> None:
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

    def kill(self) -> tuple[bool, str]:
        found, said, seconds = self.sample(lambda: send(self.processes["a"], signal.SIGKILL))
        right = said.count("is left out") == 1
        return right, f"{said}; {self.same(found)} in {seconds:.0f} s"


if __name__ == "__main__":
    main()
