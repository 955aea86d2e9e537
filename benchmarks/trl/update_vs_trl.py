"""One GRPO step without generation, TRL and ours: seconds, peak memory, largest gradient difference.

    python benchmarks/trl/update_vs_trl.py [--steps 3] [--max-tokens 2048] [--trl-batch 16]

Both get the same weights, prompts, completions and rewards, and compute advantages, losses, gradients and an optimizer
step: 64 samples in groups of 8, lognormal lengths (mean about 165, up to 1,024), a dense Llama with 5.1M parameters,
float32, `dapo`, beta 0. Each side runs in its own process, so peak memory is measured separately. The first step's
gradients are compared. Small micro-batches stay in a CPU's cache; the size is an option of both sides.

The printed floor is 6 x parameters x tokens at the throughput of a float32 matrix product in the same run.
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

import numpy as np
import torch

GROUPS, SIZE, PROMPT, LONGEST, VOCAB = 8, 8, 16, 1024, 4096


def samples() -> tuple[list[list[int]], list[list[int]], np.ndarray]:
    """Each sample's prompt and completion, and rewards [GROUPS, SIZE]; no group has equal rewards only."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.72, 0.9, GROUPS * SIZE), 4, LONGEST).astype(int)
    lengths[0] = LONGEST
    prompts = [rng.integers(3, VOCAB, PROMPT).tolist() for _ in range(GROUPS)]
    rewards = rng.integers(0, 2, (GROUPS, SIZE)).astype(float)
    rewards[:, 0], rewards[:, 1] = 0.0, 1.0
    return [p for p in prompts for _ in range(SIZE)], [rng.integers(3, VOCAB, n).tolist() for n in lengths], rewards


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<0>", eos_token="<1>", pad_token="<2>").save_pretrained(
        folder
    )


def run_trl(folder: Path, steps: int, batch: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompts, completions, rewards = samples()

    class Clock(TrainerCallback):
        seconds: list[float] = []
        gradients: dict[str, torch.Tensor] = {}

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if not self.gradients:
                self.gradients = {n: p.grad.clone() for n, p in model.named_parameters()}

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds.append(time.perf_counter() - self.started)

    def given(texts: list, trainer: Any) -> dict:
        rows = [SIZE * int(t) + i % SIZE for i, t in enumerate(texts)]
        return {
            "prompt_ids": [prompts[r] for r in rows],
            "completion_ids": [completions[r] for r in rows],
            "logprobs": None,
        }

    clock = Clock()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=[lambda prompts, **_: [rewards[int(p), i % SIZE] for i, p in enumerate(prompts)]],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=GROUPS * SIZE // batch,
            num_generations=SIZE,
            max_completion_length=LONGEST,
            max_steps=steps,
            max_grad_norm=0.0,
            learning_rate=1e-6,
            loss_type="dapo",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(GROUPS)]),
        processing_class=AutoTokenizer.from_pretrained(folder),
        rollout_func=given,
        callbacks=[clock],
    )
    trainer.train()
    return clock.seconds, clock.gradients


def run_ours(folder: Path, steps: int, max_tokens: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    from accelerate import Accelerator

    from grpo.algorithm.plan import Plan, Shapes
    from grpo.launch.processes import keep_freed_memory
    from grpo.learner.batch import assemble
    from grpo.learner.objective import loss_function
    from grpo.learner.policy import Policy
    from grpo.learner.scoring import Batching
    from grpo.model.load import load_model
    from grpo.recipe.config import GRPORecipe
    from rewards.runner.score import ScoredGroup
    from rollout.types import Completion, Group, Problem

    prompts, completions, rewards = samples()
    recipe = GRPORecipe.model_validate(
        {
            "model": {"model_name_or_path": str(folder)},
            "data": {"task": "countdown"},
            "rollout": {"num_generations": SIZE, "max_completion_length": LONGEST, "problems_per_step": GROUPS},
            "rewards": [{"function": "countdown"}],
            "algorithm": {"loss_type": "dapo"},
            "trainer": {"max_grad_norm": 1e9, "max_tokens_per_micro_batch": max_tokens},
        }
    )
    if not torch.cuda.is_available():
        keep_freed_memory()  # as grpo/stages/run.py does
    policy = Policy(
        load_model(recipe.model),
        recipe.trainer,
        Accelerator(),
        max_steps=recipe.trainer.max_steps,
        temperature=recipe.rollout.temperature,
        batching=Batching(max_tokens, pad_token_id=2),
    )

    def group(index: int) -> ScoredGroup:
        rows = range(SIZE * index, SIZE * (index + 1))
        answers = [
            Completion(
                token_ids=completions[r],
                logprobs=[0.0] * len(completions[r]),
                text="",
                finish_reason="stop",
                policy_version=0,
            )
            for r in rows
        ]
        problem = Problem(id=str(index), prompt="")
        return ScoredGroup(
            Group(problem=problem, prompt_ids=prompts[rows[0]], completions=answers), rewards[index].tolist(), {}
        )

    groups = [group(i) for i in range(GROUPS)]
    seconds, first = [], {}
    for _ in range(steps):
        started = time.perf_counter()
        whole = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=LONGEST, seed=0)
        policy.update(
            assemble(groups, whole, keep_zero_advantage=False),
            loss_function(recipe.algorithm),
        )
        seconds.append(time.perf_counter() - started)
        first = first or {n: p.grad.clone() for n, p in policy.model.named_parameters()}  # type: ignore[union-attr]
    return seconds, first


def side(name: str, folder: Path, steps: int, micro_batch: int) -> None:
    """Run one side in its own process; writes gradients and measurements into the folder."""
    seconds, gradients = (run_trl if name == "trl" else run_ours)(folder, steps, micro_batch)
    torch.save(gradients, folder / f"{name}.pt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (folder / f"{name}.json").write_text(json.dumps({"seconds": seconds, "peak_gib": peak}))


def matmul_flops_per_second() -> float:
    """Throughput of a float32 matrix product on this machine."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    started = time.perf_counter()
    for _ in range(10):
        a @ b
    return 10 * 2 * 2048**3 / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=2048, help="our token budget per micro-batch")
    parser.add_argument("--trl-batch", type=int, default=16, help="TRL's samples per micro-batch, a divisor of 64")
    parser.add_argument("--side", choices=["trl", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.folder, args.steps, args.trl_batch if args.side == "trl" else args.max_tokens)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_model(folder)
        for name in ("ours", "trl"):
            command = [sys.executable, __file__, "--side", name, "--folder", scratch]
            command += ["--steps", str(args.steps), "--max-tokens", str(args.max_tokens)]
            command += ["--trl-batch", str(args.trl_batch)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        report(folder)


def report(folder: Path) -> None:
    measured = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("trl", "ours")}
    ours, trl = (torch.load(folder / f"{name}.pt") for name in ("ours", "trl"))
    difference = max(float((ours[n] - trl[n]).abs().max()) for n in trl)
    largest = max(float(g.abs().max()) for g in trl.values())
    parameters = sum(g.numel() for g in trl.values())
    prompts, completions, _ = samples()
    tokens = sum(map(len, prompts)) + sum(map(len, completions))
    floor = 6 * parameters * tokens / matmul_flops_per_second()
    print(f"{parameters / 1e6:.1f}M parameters, {tokens:,} tokens in {len(completions)} samples; floor {floor:.1f} s")
    medians, peaks = {}, {}
    for name, run in measured.items():
        medians[name], peaks[name] = float(np.median(run["seconds"])), run["peak_gib"]
        steps = ", ".join(f"{s:.1f}" for s in run["seconds"])
        print(f"{name:5} {medians[name]:6.2f} s per step ({steps}), peak {peaks[name]:.2f} GiB")
    time, memory = medians["trl"] / medians["ours"], peaks["trl"] / peaks["ours"]
    print(f"TRL takes {time:.1f}x our time and {memory:.1f}x our memory")
    print(f"largest gradient difference {difference:.1e} (largest gradient {largest:.1e})")


if __name__ == "__main__":
    main()
