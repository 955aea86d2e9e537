"""From a recipe's sections to the parts of a run: what each part needs of the recipe is said here and nowhere else."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from grpo.config import DataConfig, GRPORecipe
from rewards.score import Rewards, RewardSpec
from rollout.engine import Engine
from rollout.problems import ProblemStream, Source, held_out, load_source
from rollout.prompts import Prompter
from rollout.types import Prompt

REWARD_WORKERS = 2  # processes; rule-based rewards are light


def build_problems(
    recipe: GRPORecipe, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator
) -> tuple[ProblemStream, list[Prompt]]:
    """The training stream of this process, and the held-out prompts (all of them; evaluation shares them out)."""
    data, seed = recipe.data, recipe.trainer.seed
    stream = ProblemStream(
        _source(data, split="train", seed=seed),
        _prompter(data, tokenizer),
        seed=seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    if not recipe.evaluation.num_problems:
        return stream, []
    evaluated = recipe.evaluation.data or data
    source = _source(evaluated, split="eval", seed=0)
    return stream, held_out(source, _prompter(evaluated, tokenizer), recipe.evaluation.num_problems)


def build_rewards(recipe: GRPORecipe, functions: Sequence[Callable[..., Any]] | None = None) -> Rewards:
    """The recipe's rewards, followed by functions given from Python (weight 1)."""
    specs = [RewardSpec(**dict(reward)) for reward in recipe.rewards]
    return Rewards([*specs, *(RewardSpec(function=f) for f in functions or ())], num_workers=REWARD_WORKERS)


def build_engine(recipe: GRPORecipe, accelerator: Accelerator) -> Engine:
    """The engine that `rollout.engine` names, with the precision that the trainer computes in."""
    rollout = recipe.rollout
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, recipe.model.dtype)
    source = {"revision": recipe.model.revision, "trust_remote_code": recipe.model.trust_remote_code}
    if rollout.engine == "hf":
        from rollout.hf import HFEngine

        return HFEngine(
            recipe.model.model_name_or_path,
            dtype=dtype,
            device=accelerator.device,
            max_num_seqs=rollout.max_num_seqs,
            max_model_len=recipe.max_model_len,
            **source,
        )
    from rollout.vllm import VLLMEngine

    return VLLMEngine(
        recipe.model.model_name_or_path,
        dtype=dtype,
        max_model_len=recipe.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        vllm_options=source | rollout.vllm_options,
    )


def _source(data: DataConfig, *, split: str, seed: int) -> Source:
    return load_source(
        task=data.task,
        task_options=data.task_options,
        dataset_name=data.dataset_name,
        dataset_config=data.dataset_config,
        dataset_split=data.dataset_split,
        columns=data.columns,
        split=split,
        seed=seed,
    )


def _prompter(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Prompter:
    return Prompter(
        tokenizer,
        template=data.template,
        system_prompt=data.system_prompt,
        max_prompt_length=data.max_prompt_length,
    )
