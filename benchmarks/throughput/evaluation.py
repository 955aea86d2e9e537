"""The overhead of evaluation over generation: vLLM's `LLM.generate` against `grpo eval`, same requests and tokens.

    python benchmarks/throughput/evaluation.py [--problems 256] [--samples 4] [--rounds 10]
    python benchmarks/throughput/evaluation.py --model DIR --task gsm8k --data-dir DIR --template chat --max-tokens 256

Both share one engine; by default the embedded base on its held-out problems, the hardest case, because it needs only
3 ms per sample. Each round runs plain `LLM.generate` and the loop of grpo/evaluation/run.py, which generates, grades in
worker processes and writes every sample, in alternating order. Both produce the same tokens and texts, decoded once at
the end; the benchmark reports wall time, this process's CPU time, and how long grading continues after the last token.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from vllm import SamplingParams

from grpo.evaluation.grading import build_grader
from grpo.evaluation.run import generate_and_grade
from grpo.evaluation.tasks.load import load_task
from grpo.evaluation.tasks.prompts import task_prompts
from grpo.evaluation.work import Work
from rollout.engines.base import completion_texts, request_seed
from rollout.engines.vllm import VLLMEngine
from rollout.types import Sampling

BASE = str(Path(__file__).parents[2] / "recipes" / "v3_base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--task", default="countdown")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--template", default="{prompt} :")
    parser.add_argument("--max-tokens", type=int, default=144)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    from transformers import AutoTokenizer

    task = load_task(given.task, data_dir=given.data_dir, limit=given.problems)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    prompts, texts = task_prompts(task, tokenizer, template=given.template, system_prompt=None)
    sampling = Sampling(num_generations=1, max_completion_length=given.max_tokens, seed=42, logprobs=False)
    grader = build_grader(task.config.reward, task.config.options)
    engine = VLLMEngine(
        given.model,
        dtype="float32",
        max_model_len=max(len(prompt.token_ids) for prompt in prompts) + given.max_tokens,
        max_num_seqs=256,
        kv_cache_gib=2,
        gpu_memory_utilization=0.5,
    )
    work = Work(task, grader, {}, prompts, texts, sampling, given.samples)
    requests = sorted(work.missing(), key=lambda prompt: -len(prompt.token_ids))
    parameters = [
        SamplingParams(
            temperature=1.0,
            max_tokens=given.max_tokens,
            seed=request_seed(sampling, request),
            stop_token_ids=engine._end_ids,
            detokenize=False,
        )
        for request in requests
    ]
    inputs = [{"prompt_token_ids": list(request.token_ids)} for request in requests]

    def raw() -> int:
        engine._llm.reset_prefix_cache()  # the last round's prompts; an evaluation starts without them, too
        outputs = engine._llm.generate(inputs, parameters, use_tqdm=False)  # type: ignore[arg-type]
        generated = [sample.token_ids for output in outputs for sample in output.outputs]
        completion_texts(tokenizer, engine._end_ids, generated)
        return sum(map(len, generated))

    def whole() -> int:
        with tempfile.TemporaryDirectory() as folder:
            generate_and_grade(work, engine, Accelerator(), Path(folder))
            return int(work.timing["generated_tokens"])

    for _ in range(2):  # warm-up: compiles, and starts the workers
        raw(), whole()
    ratios, tails = [], []
    for number in range(given.rounds):
        order = [raw, whole] if number % 2 else [whole, raw]
        measured = {function: timed(function) for function in order}
        (a_tokens, a_wall, a_cpu), (b_tokens, b_wall, b_cpu) = measured[raw], measured[whole]
        assert a_tokens == b_tokens, "the same requests must give the same tokens"
        ratios.append((b_wall / a_wall, b_cpu / a_cpu))
        tails.append(work.timing["grading_tail_seconds"])
        print(
            f"round {number + 1}: {a_tokens} tokens; LLM.generate {a_tokens / a_wall:.0f} tokens/s, {a_cpu:.1f} CPU s; "
            f"grpo eval {b_tokens / b_wall:.0f} tokens/s, {b_cpu:.1f} CPU s; grading tail {tails[-1]:.3f} s"
        )
    for name, column in zip(("wall", "CPU"), zip(*ratios, strict=True), strict=True):
        low, middle, high = statistics.quantiles(column, n=4)
        print(f"grpo eval over LLM.generate, {name}: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}")
    grader.close()
    engine.close()


def timed(function: Callable[[], int]) -> tuple[int, float, float]:
    """Tokens, wall seconds and CPU seconds of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    return function(), time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
