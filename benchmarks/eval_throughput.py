"""What evaluating costs beyond generating: `LLM.generate` of vLLM against `grpo eval`'s loop, same requests and tokens.

    python benchmarks/eval_throughput.py [--problems 128] [--samples 4] [--rounds 3]

One engine, the embedded base on its held-out problems. Each round runs both, in turn: plain `LLM.generate` with
nothing but the sampling parameters, and the loop of grpo/evaluation/run.py, which generates, judges in worker processes
and writes every sample. Tokens are equal; compared are wall seconds and the CPU seconds of this process, which a busy
machine disturbs less, and the time that judging takes after the last token.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from accelerate import Accelerator
from vllm import SamplingParams

from grpo.evaluation.grading import build_grader
from grpo.evaluation.prompts import task_prompts
from grpo.evaluation.run import Work, _answer
from grpo.evaluation.tasks import load_task
from rollout.engine import request_seed
from rollout.types import Sampling
from rollout.vllm import VLLMEngine

MODEL = str(Path(__file__).parent.parent / "recipes" / "v3_base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    task = load_task("countdown", limit=given.problems)
    prompts, texts = task_prompts(task, AutoTokenizer.from_pretrained(MODEL), template="{prompt} :", system_prompt=None)
    sampling = Sampling(num_generations=1, max_completion_length=144, seed=42, logprobs=False)
    grader = build_grader(task.config.reward, {})
    engine = VLLMEngine(
        MODEL, dtype="float32", max_model_len=176, max_num_seqs=256, kv_cache_gib=0.5, gpu_memory_utilization=0.5
    )
    work = Work(task, grader, {}, prompts, texts, sampling, given.samples)
    requests = sorted(work.missing(), key=lambda prompt: -len(prompt.token_ids))
    parameters = [
        SamplingParams(
            temperature=1.0, max_tokens=144, seed=request_seed(sampling, request), stop_token_ids=engine._end_ids
        )
        for request in requests
    ]
    inputs = [{"prompt_token_ids": list(request.token_ids)} for request in requests]

    def raw() -> tuple[int, float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = engine._llm.generate(inputs, parameters, use_tqdm=False)  # type: ignore[arg-type]
        tokens = sum(len(sample.token_ids) for output in outputs for sample in output.outputs)
        return tokens, time.perf_counter() - wall, time.process_time() - cpu

    def whole() -> tuple[int, float, float]:
        with tempfile.TemporaryDirectory() as folder:
            wall, cpu = time.perf_counter(), time.process_time()
            _answer(work, engine, Accelerator(), Path(folder))
            return int(work.timing["generated_tokens"]), time.perf_counter() - wall, time.process_time() - cpu

    raw(), whole()  # first generations compile, and start the workers
    ratios, tails = [], []
    for number in range(given.rounds):
        (a_tokens, a_wall, a_cpu), (b_tokens, b_wall, b_cpu) = raw(), whole()
        assert a_tokens == b_tokens, "the same requests give the same tokens"
        ratios.append((b_wall / a_wall, b_cpu / a_cpu))
        tails.append(work.timing["grading_tail_seconds"])
        print(
            f"round {number + 1}: {a_tokens} tokens; LLM.generate {a_tokens / a_wall:.0f} tokens/s, {a_cpu:.1f} CPU s; "
            f"grpo eval {b_tokens / b_wall:.0f} tokens/s, {b_cpu:.1f} CPU s; judging after that {tails[-1]:.3f} s"
        )
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    print(f"grpo eval over LLM.generate, median of rounds: wall {wall:.3f}, CPU {cpu:.3f}")
    grader.close()
    engine.close()


if __name__ == "__main__":
    main()
