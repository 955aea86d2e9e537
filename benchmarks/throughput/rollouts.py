"""A rollout against vLLM's `LLM.generate`: same requests, same engine, alternating in one process.

    python benchmarks/throughput/rollouts.py [--problems 64] [--samples 8] [--rounds 10]
    python benchmarks/throughput/rollouts.py --model DIR --template "{prompt}" --problems 4 --max-tokens 64 --rounds 5

A rollout is groups of samples with log-probs and texts; graded, each goes to worker processes as soon as it is
finished, which is what a step of GRPO times as `generate` and `reward`. `LLM.generate` gets the same sampling
parameters, and its texts are not decoded. All must give the same tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from transformers import AutoTokenizer
from vllm import SamplingParams

from rewards.runner.score import Rewards, RewardSpec
from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import ProblemStream
from rollout.engines.base import request_seed
from rollout.engines.vllm import VLLMEngine
from rollout.types import Sampling

BASE = str(Path(__file__).parents[2] / "recipes" / "v3_base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--template", default="{prompt} :")
    parser.add_argument("--max-tokens", type=int, default=144)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    prompter = Prompter(AutoTokenizer.from_pretrained(given.model), template=given.template, max_prompt_length=128)
    prompts = ProblemStream(load_source(task="countdown", split="train", seed=0), prompter, seed=0).take(given.problems)
    sampling = Sampling(num_generations=given.samples, max_completion_length=given.max_tokens, seed=42)
    rewards = Rewards([RewardSpec(function="countdown"), RewardSpec(function="format")], num_workers=2)
    engine = VLLMEngine(
        given.model,
        dtype="float32",
        max_model_len=max(len(prompt.token_ids) for prompt in prompts) + given.max_tokens,
        max_num_seqs=512,
        kv_cache_gib=1,
        gpu_memory_utilization=0.5,
    )
    requests = sorted(prompts, key=lambda prompt: -len(prompt.token_ids))  # as the engine orders them
    parameters = [
        SamplingParams(
            n=given.samples,
            temperature=1.0,
            max_tokens=given.max_tokens,
            seed=request_seed(sampling, request),
            stop_token_ids=engine._end_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )
        for request in requests
    ]
    inputs = [{"prompt_token_ids": list(request.token_ids)} for request in requests]

    def raw() -> int:
        engine._llm.reset_prefix_cache()  # the last round's prompts; a step starts without them, too
        outputs = engine._llm.generate(inputs, parameters, use_tqdm=False)  # type: ignore[arg-type]
        return sum(len(sample.token_ids) for output in outputs for sample in output.outputs)

    def generated() -> int:
        return sum(len(one.token_ids) for group in engine.generate(prompts, sampling) for one in group.completions)

    def graded() -> int:
        scoring = [rewards.submit(group) for group in engine.generate(prompts, sampling)]
        scored = [rewards.result(one) for one in scoring]
        return sum(len(completion.token_ids) for one in scored for completion in one.group.completions)

    ways = {"LLM.generate": raw, "rollout": generated, "rollout, graded": graded}
    for way in ways.values():  # warm-up: compiles, and starts the workers
        way()
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(given.rounds):
        names = [*ways]
        found = {name: timed(ways[name]) for name in names[number % 3 :] + names[: number % 3]}
        assert len({tokens for tokens, _ in found.values()}) == 1, "the same requests must give the same tokens"
        for name, (tokens, seconds) in found.items():
            speeds[name].append(tokens / seconds)
        print(
            f"round {number + 1}:", "; ".join(f"{name} {speeds[name][-1]:,.0f} tokens/s" for name in names), flush=True
        )
    for name in ("rollout", "rollout, graded"):
        ratios = [ours / raw for ours, raw in zip(speeds[name], speeds["LLM.generate"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest = max(speeds[name]) / max(speeds["LLM.generate"])
        print(
            f"{name} over LLM.generate: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}; fastest {fastest:.3f}"
        )
    rewards.close()
    engine.close()


def timed(function: Callable[[], int]) -> tuple[int, float]:
    """Tokens and wall seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


if __name__ == "__main__":
    main()
