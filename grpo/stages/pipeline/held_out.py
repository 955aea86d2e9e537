"""Stage `held_out`: one model on held-out problems, scored by reward functions.

Writes results.json, {"reasoning": {"pass@1": 0.84, …}, …} with the metrics of grpo/evaluation/results/summary.py for
each set, and samples.jsonl.
"""

import json
from contextlib import ExitStack
from pathlib import Path

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from grpo.evaluation.training import HeldOut, reward_held_out
from grpo.recipe.stages.held_out import HeldOutRecipe, HeldOutSet
from grpo.stages import parts
from grpo.stages.checks.prompts import check_prompts, report_held_out
from grpo.stages.problems import prompter_of, source_of
from rollout.data.stream import held_out
from rollout.engines.base import load_tokenizer
from rollout.types import Sampling

RESULTS_FILE = "results.json"
SAMPLES_FILE = "samples.jsonl"


def run_held_out(recipe: HeldOutRecipe) -> Path:
    """Evaluate, and write the results; returns their folder. RefusedError: data or model cannot be used."""
    accelerator, model, rollout = Accelerator(), recipe.model, recipe.rollout
    sampling = Sampling(
        num_generations=rollout.num_samples,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        stop=tuple(rollout.stop),
        seed=recipe.seed,
        logprobs=False,
    )
    results, rows = {}, []
    with ExitStack() as started:
        with parts.refusals():
            tokenizer = load_tokenizer(model.model_name_or_path, model.revision, model.trust_remote_code)
            sets = {name: _held_out(name, part, tokenizer, accelerator, started) for name, part in recipe.sets.items()}
            engine = parts.engine(
                rollout.engine, rollout, model, max_model_len=recipe.max_model_len, device=accelerator.device
            )
            started.callback(engine.close)
        for name, part in sets.items():
            evaluation = part.evaluate(
                engine,
                sampling,
                process_index=accelerator.process_index,
                num_processes=accelerator.num_processes,
            )
            results[name] = {key.removeprefix("eval/"): value for key, value in evaluation.metrics.items()}
            rows += [{**row, "task": name} for row in evaluation.rows]
    output = recipe.output_dir
    if accelerator.is_main_process:
        (output / RESULTS_FILE).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (output / SAMPLES_FILE).write_text("".join(lines), encoding="utf-8")
        for name, metrics in results.items():
            print(f"{name}: " + "  ".join(f"{key} {metrics[key]:.3f}" for key in _shown(metrics)), flush=True)
    return output


def _held_out(
    name: str, part: HeldOutSet, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator, started: ExitStack
) -> HeldOut:
    """A set's problems with their grader, checked. started: takes the rewards, which have to be closed."""
    source = source_of(part.data, split="eval", seed=0)
    prompter = prompter_of(part.data, tokenizer, part.data.max_prompt_length)
    check_prompts(f"sets.{name}.data", source, prompter, accelerator)
    prompts, dropped = held_out(source, prompter, part.num_problems)
    report_held_out(len(prompts), part.num_problems, dropped, accelerator, name=name)
    rewards = parts.rewards(part.rewards, num_workers=2, timeout=600.0)
    started.callback(rewards.close)
    functions = {reward.name: reward.function for reward in part.rewards}
    found = reward_held_out(prompts, rewards, part.reward, functions)
    parts.preflight((), [found], rewards, accelerator)
    return found


def _shown(metrics: dict[str, float]) -> list[str]:
    return [key for key in metrics if key in ("pass@1", "mean_length") or key.startswith("rewards/")]
