"""Whole GRPO steps, TRL with colocated vLLM and ours: seconds per step and peak memory, on the same dense model.

    python benchmarks/trl/step_vs_trl.py [--steps 6] [--max-tokens 2048]

A step is everything: 16 problems x 8 completions of at most 128 tokens through vLLM, a reward, advantages, one
optimizer step, new weights in the engine. Both train the dense Llama of update_vs_trl.py (5.1M parameters, float32,
random weights, so that nearly every completion is as long as allowed), with `dapo`, beta 0, no evaluation and no
checkpoint. The reward is the share of even token ids, so every group has a gradient. vLLM's cache has 1 GiB on both
sides, and neither corrects for sampling with vLLM, which costs TRL a forward pass. Each side runs in its own process;
the first step, which warms up, does not count. TRL 1.16's way of giving vLLM new weights raises on CPU; it gets ours.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", TRL_EXPERIMENTAL_SILENCE="1", TRANSFORMERS_VERBOSITY="error")
os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="ERROR")

import numpy as np
from update_vs_trl import VOCAB, make_model

PROBLEMS, SIZE, PROMPT, LONGEST = 16, 8, 16, 128
LEARNING_RATE = 1e-5
KV_CACHE_GIB = 1


def prompts(count: int) -> list[str]:
    """Texts of PROMPT tokens."""
    rng = np.random.default_rng(0)
    return [" ".join(f"<{i}>" for i in rng.integers(3, VOCAB, PROMPT)) for _ in range(count)]


def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Share of words of a completion that are even numbers."""
    return [float(np.mean([int(word[1:-1]) % 2 == 0 for word in text.split()] or [0.0])) for text in completions]


def run_trl(folder: Path, steps: int) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from rollout.engines.vllm_setup import repack_for_cpu

    # TRL has no setting for it: vLLM would take its share of the machine's memory, 30%.
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_CACHE_GIB)

    class Clock(TrainerCallback):
        seconds: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=even,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            use_vllm=True,
            vllm_mode="colocate",
            vllm_max_model_length=PROMPT + LONGEST,
            vllm_importance_sampling_correction=False,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=PROBLEMS * SIZE // 16,
            num_generations=SIZE,
            max_completion_length=LONGEST,
            max_steps=steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            loss_type="dapo",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": text} for text in prompts(PROBLEMS * steps)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
    )
    llm = trainer.vllm_generation.llm

    def sync_weights() -> None:
        llm.collective_rpc("reload_weights", kwargs={"weights_iterator": trainer.model.named_parameters()})
        llm.collective_rpc(repack_for_cpu)
        llm.reset_prefix_cache()

    trainer.vllm_generation.sync_weights = sync_weights
    trainer.train()
    return clock.seconds


def run_ours(folder: Path, steps: int, max_tokens: int) -> list[float]:
    import grpo

    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts(PROBLEMS * steps)))
    recipe = {
        "stage": "grpo",
        "model": {"model_name_or_path": str(folder)},
        "data": {"dataset_name": str(data), "template": "{prompt}", "max_prompt_length": PROMPT},
        "rollout": {
            "problems_per_step": PROBLEMS,
            "num_generations": SIZE,
            "max_completion_length": LONGEST,
            "kv_cache_gib": KV_CACHE_GIB,
        },
        "rewards": [{"function": f"{__file__}:even"}],
        "algorithm": {"loss_type": "dapo"},
        "trainer": {
            "output_dir": str(folder / "ours"),
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "max_tokens_per_micro_batch": max_tokens,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    grpo.train(str(path))
    rows = [json.loads(line) for line in (folder / "ours/metrics.jsonl").read_text().splitlines()]
    return [row["step_time"] for row in rows if "step_time" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=2048, help="our token budget per micro-batch")
    parser.add_argument("--side", choices=["trl", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run = (
            run_trl(args.folder, args.steps)
            if args.side == "trl"
            else run_ours(args.folder, args.steps, args.max_tokens)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        (args.folder / f"{args.side}.json").write_text(json.dumps({"seconds": run, "peak_gib": peak}))
        return
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        make_model(Path(scratch))
        for name in ("ours", "trl"):
            command = [sys.executable, __file__, "--side", name, "--folder", scratch]
            command += ["--steps", str(args.steps), "--max-tokens", str(args.max_tokens)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            measured = json.loads((Path(scratch) / f"{name}.json").read_text())
            medians[name] = float(np.median(measured["seconds"][1:]))
            steps = ", ".join(f"{seconds:.1f}" for seconds in measured["seconds"])
            print(f"{name:5} {medians[name]:6.2f} s per step ({steps}), peak {measured['peak_gib']:.2f} GiB")
    print(f"TRL takes {medians['trl'] / medians['ours']:.1f}x our time")


if __name__ == "__main__":
    main()
