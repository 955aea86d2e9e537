"""From a recipe's sections to the parts of a run: what each part needs of the recipe is said here and nowhere else."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from grpo.evaluation.training import HeldOut, reward_held_out, task_held_out
from grpo.recipe.config import DataConfig, GRPORecipe
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.prompts import Prompter
from rollout.data.sources import Source, load_source
from rollout.data.stream import ProblemStream, held_out
from rollout.engines.base import Engine

REWARD_WORKERS = 2  # processes; rule-based rewards are light


def build_problems(recipe: GRPORecipe, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> ProblemStream:
    """The training stream of this process."""
    data, seed = recipe.data, recipe.trainer.seed
    return ProblemStream(
        _source(data, split="train", seed=seed),
        _prompter(data, tokenizer),
        seed=seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def build_held_out(recipe: GRPORecipe, tokenizer: PreTrainedTokenizerBase, rewards: Rewards) -> list[HeldOut]:
    """What the run is evaluated on, whole; each process takes its share."""
    config = recipe.evaluation
    if config.tasks:
        return task_held_out(recipe, tokenizer)
    if not config.num_problems:
        return []
    data = config.data or recipe.data
    prompts = held_out(_source(data, split="eval", seed=0), _prompter(data, tokenizer), config.num_problems)
    function = next((reward.function for reward in recipe.rewards if reward.name == config.reward), None)
    return [reward_held_out(prompts, rewards, config.reward, function)]


def build_rewards(recipe: GRPORecipe, functions: Sequence[Callable[..., Any]] | None = None) -> Rewards:
    """The recipe's rewards, followed by functions given from Python (weight 1)."""
    specs = [RewardSpec(**dict(reward)) for reward in recipe.rewards]
    return Rewards([*specs, *(RewardSpec(function=f) for f in functions or ())], num_workers=REWARD_WORKERS)


def build_engine(recipe: GRPORecipe, accelerator: Accelerator) -> Engine:
    """The engine that `rollout.engines.base` names, with the precision that the trainer computes in."""
    rollout = recipe.rollout
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, recipe.model.dtype)
    source = {"revision": recipe.model.revision, "trust_remote_code": recipe.model.trust_remote_code}
    if rollout.engine == "hf":
        from rollout.engines.hf import HFEngine

        return HFEngine(
            recipe.model.model_name_or_path,
            dtype=dtype,
            device=accelerator.device,
            max_num_seqs=rollout.max_num_seqs,
            max_model_len=recipe.max_model_len,
            **source,
        )
    from rollout.engines.vllm import VLLMEngine

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
