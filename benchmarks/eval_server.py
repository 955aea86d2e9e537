"""The server engine against the in-process engine: same model, same requests, on a real vLLM server.

    python benchmarks/eval_server.py [--problems 24]

Starts vLLM's OpenAI-compatible server on the embedded base, requests greedy, sampled and stopped completions, and
compares every token with the in-process engine's.
"""

import argparse
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import held_out
from rollout.engines.server import ServerEngine
from rollout.engines.vllm import VLLMEngine
from rollout.types import Sampling

MODEL = str(Path(__file__).parent.parent / "recipes" / "v3_base")
SERVER = [sys.executable, "-m", "grpo", "serve", MODEL, "--host", "127.0.0.1", "--max-model-len", "192"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=24)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen([*SERVER, "--port", str(port), "--max-num-seqs", "64"])
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        prompter = Prompter(AutoTokenizer.from_pretrained(MODEL), template="{prompt} :", max_prompt_length=32)
        prompts, _ = held_out(load_source(task="countdown", split="eval"), prompter, given.problems)
        there = ServerEngine(MODEL, base_url=f"http://127.0.0.1:{port}/v1", max_num_seqs=16, max_model_len=176)
        here = VLLMEngine(
            MODEL, dtype="float32", max_model_len=176, max_num_seqs=64, kv_cache_gib=0.5, gpu_memory_utilization=0.5
        )
        for name, options in {
            "greedy": {"num_generations": 1, "temperature": 0.0},
            "sampled": {"num_generations": 2, "temperature": 1.0, "seed": 3},
            "stopped": {"num_generations": 1, "temperature": 0.0, "stop": ("</think>",)},
        }.items():
            sampling = Sampling(max_completion_length=144, **options)  # type: ignore[arg-type]
            found = [
                {
                    (group.problem.id, index): (completion.text, list(completion.token_ids), completion.finish_reason)
                    for group in engine.generate(prompts, sampling)
                    for index, completion in enumerate(group.completions)
                }
                for engine in (there, here)
            ]
            equal = sum(found[0][key] == found[1][key] for key in found[1])
            print(f"{name}: {equal} of {len(found[1])} completions are identical, token for token")
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str, server: subprocess.Popen[bytes], seconds: float = 300) -> None:
    for _ in range(int(seconds)):
        if server.poll() is not None:
            raise SystemExit(f"the server exited with code {server.returncode}")
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(1)
    raise SystemExit(f"the server did not answer within {seconds:.0f} s")


if __name__ == "__main__":
    main()
