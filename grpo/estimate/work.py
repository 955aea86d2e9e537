"""What a stage does with its model, at full length: which texts it samples, which it trains on, in which micro-batches.

Every stage's recipe becomes one `Work`, from which memory and FLOPs follow. Not counted: rewards, judges, evaluations
during training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from grpo.estimate.shape import MTP, Texts
from grpo.recipe.config import EngineSection, GRPORecipe, OnPolicyRecipe, RewardConfig
from grpo.recipe.section import StageRecipe
from grpo.recipe.stages.held_out import HeldOutRecipe
from grpo.recipe.stages.preference import PairsRecipe, RewardModelRecipe
from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.recipe.stages.sft import SFTRecipe

Rows = Callable[[str], int | None]  # a dataset's name -> the most rows it can have; None: unknown


@dataclass(frozen=True, slots=True)
class Training:
    """Training(rows=1, length=34_816, checkpointed=True, more_forwards=2, texts=((5_324_800, 34_816),))"""

    rows: int  # of a micro-batch
    length: int  # tokens of each
    checkpointed: bool
    texts: Texts | None  # of the whole stage; None: the data's rows are not known
    offloads_activations: bool = False  # those that checkpointing keeps
    offloads_params: bool = False  # and gradients, moments and the reference
    more_forwards: int = 0  # per text, beside the one with gradient: reference, old policy, teacher
    reference: bool = False
    shards: int = 1  # processes that divide weights, gradients and optimizer
    head: Literal["chunked", "one output"] = "chunked"
    mtp: MTP | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Generation(engine="vllm", section=…, context=34_816, texts=((5_324_800, 34_816),))"""

    engine: str
    section: EngineSection
    context: int  # tokens of the longest text
    texts: Texts  # of the whole stage


@dataclass(frozen=True, slots=True)
class Work:
    """A stage's work."""

    training: Training | None = None
    generation: Generation | None = None
    rewards: tuple[RewardConfig, ...] = ()
    reward_workers: int = 0


def work_of(recipe: StageRecipe, rows: Rows = lambda _: None, num_processes: int = 1) -> Work | None:
    """What a recipe's stage does; None for a stage that is not estimated."""
    match recipe:
        case OnPolicyRecipe():
            return _on_policy(recipe, num_processes)
        case SFTRecipe():
            return Work(training=_sft(recipe, rows, num_processes))
        case RewardModelRecipe():
            return Work(training=_reward_model(recipe, rows))
        case RejectionRecipe() | PairsRecipe():
            return _candidates(recipe)
        case HeldOutRecipe():
            return _held_out(recipe)
    return None


def micro_batch(recipe: OnPolicyRecipe) -> tuple[int, int]:
    """Rows and length of a micro-batch of full-length samples."""
    length = recipe.data.max_prompt_length + recipe.rollout.max_completion_length
    return max(1, recipe.trainer.max_tokens_per_micro_batch // length), length


def _on_policy(recipe: OnPolicyRecipe, num_processes: int) -> Work:
    rollout, algorithm, trainer = recipe.rollout, recipe.policy_gradient, recipe.trainer
    rows, length = micro_batch(recipe)
    texts = ((recipe.trainer.max_steps * rollout.problems_per_step * rollout.num_generations, length),)
    has_reference = isinstance(recipe, GRPORecipe) and algorithm.beta > 0
    training = Training(
        rows=rows,
        length=length,
        checkpointed=trainer.gradient_checkpointing,
        offloads_activations=trainer.activation_offloading,
        offloads_params=trainer.offload_params,
        texts=texts,
        more_forwards=has_reference + (algorithm.steps_per_generation > 1),
        reference=has_reference and recipe.model.lora is None,  # else it is the base itself
        shards=max(1, num_processes // trainer.sharding_replicas) if trainer.sharding == "fsdp2" else 1,
        mtp={None: None, "frozen": "kept", "detached": "trained"}[recipe.model.mtp],
    )
    generation = Generation(rollout.engine, rollout, recipe.max_model_len, texts)
    return Work(training, generation, tuple(recipe.rewards), recipe.trainer.num_reward_workers)


def _sft(recipe: SFTRecipe, rows: Rows, num_processes: int) -> Training:
    data, settings = recipe.data, recipe.trainer
    per_batch = settings.per_device_train_batch_size
    if settings.max_tokens_per_batch:
        per_batch = max(1, settings.max_tokens_per_batch // data.max_length)
    per_step = per_batch * settings.gradient_accumulation_steps * num_processes
    epoch = data.max_rows or _sum([rows(source.dataset_name) for source in data.sources])
    count = settings.max_steps * per_step if settings.max_steps else _times(epoch, settings.num_train_epochs)
    return Training(
        rows=per_batch,
        length=data.max_length,
        checkpointed=settings.gradient_checkpointing,
        texts=None if count is None else ((count, data.max_length),),
        mtp="trained" if recipe.model.mtp else None,
    )


def _reward_model(recipe: RewardModelRecipe, rows: Rows) -> Training:
    data, settings = recipe.data, recipe.trainer
    epochs = _times(rows(data.dataset_name), settings.num_train_epochs)
    pairs = settings.max_steps * settings.batch_size if settings.max_steps else epochs
    return Training(
        rows=2 * settings.max_pairs_per_micro_batch,
        length=data.max_length,
        checkpointed=settings.gradient_checkpointing,
        texts=None if pairs is None else ((2 * pairs, data.max_length),),
        head="one output",
    )


def _candidates(recipe: RejectionRecipe | PairsRecipe) -> Work:
    rollout = recipe.rollout
    problems = recipe.pairs.num_problems if isinstance(recipe, PairsRecipe) else recipe.rollout.num_problems
    length = recipe.data.max_prompt_length + rollout.max_completion_length
    texts = ((problems * rollout.num_generations, length),)
    generation = Generation(rollout.engine, rollout, recipe.max_model_len, texts)
    if isinstance(recipe, PairsRecipe):
        return Work(generation=generation)
    return Work(generation=generation, rewards=tuple(recipe.rewards), reward_workers=recipe.num_reward_workers)


def _held_out(recipe: HeldOutRecipe) -> Work:
    rollout, sets = recipe.rollout, recipe.sets.values()
    texts = tuple(
        (one.num_problems * rollout.num_samples, one.data.max_prompt_length + rollout.max_completion_length)
        for one in sets
    )
    context = rollout.max_model_len or max(length for _, length in texts)
    rewards = tuple(reward for one in sets for reward in one.rewards)
    return Work(generation=Generation(rollout.engine, rollout, context, texts), rewards=rewards, reward_workers=2)


def _sum(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _times(rows: int | None, epochs: float) -> int | None:
    return None if rows is None else math.ceil(rows * epochs)
