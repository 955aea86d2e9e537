"""From a recipe to the parts of a run. What each part needs of the recipe is said here and nowhere else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from grpo.evaluation.training import HeldOut, reward_held_out, task_held_out
from grpo.learner import checkpoint as checkpoints
from grpo.learner.policy import Policy
from grpo.learner.reference import FOLDER, Reference
from grpo.learner.scoring import Batching
from grpo.model.load import load_model
from grpo.recipe.config import DataConfig, GRPORecipe
from grpo.report.report import Report
from grpo.stages.preflight import check_prompts
from rewards.runner.preflight import check_problems
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.prompts import Prompter
from rollout.data.sources import Source, load_source
from rollout.data.stream import ProblemStream, held_out, usable
from rollout.engines.base import Engine, Publisher, load_tokenizer
from rollout.engines.build import build_engine


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a GRPO run holds in one process."""

    recipe: GRPORecipe
    accelerator: Accelerator
    tokenizer: PreTrainedTokenizerBase
    problems: ProblemStream
    rewards: Rewards
    held_out: Sequence[HeldOut]
    policy: Policy
    reference: Reference | None  # None without a KL term
    engine: Engine
    publisher: Publisher
    report: Report
    first_step: int  # 0, or that of the checkpoint the run continues from

    def close(self) -> None:
        """Write the page, also of an interrupted run, and end engine and workers."""
        self.report.close()
        for part in self.held_out:
            part.grader.close()
        self.rewards.close()
        self.engine.close()


def build(recipe: GRPORecipe, reward_functions: Sequence[Callable[..., Any]] | None = None) -> Parts:
    """Build a run's parts, cheap and fallible ones first: a wrong dataset or reward is found before a model loads."""
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)])
    set_seed(recipe.trainer.seed)
    checkpoint = checkpoints.find_checkpoint(recipe.output_dir, recipe.trainer.resume_from_checkpoint)
    first_step = checkpoints.step_of(checkpoint) if checkpoint else 0
    source = (str(checkpoint), None) if checkpoint else (recipe.model.model_name_or_path, recipe.model.revision)
    tokenizer = load_tokenizer(*source, recipe.model.trust_remote_code)
    problems = _problems(recipe, tokenizer, accelerator)
    check_prompts("data", problems.source, problems.prompter, accelerator)
    if (data := recipe.evaluation.data) and recipe.evaluation.num_problems and not recipe.evaluation.tasks:
        check_prompts("evaluation.data", _source(data, split="eval", seed=0), _prompter(data, tokenizer), accelerator)
    rewards = _rewards(recipe, reward_functions)
    held_out = _held_out(recipe, tokenizer, rewards)
    if accelerator.is_main_process:
        source = problems.source
        ours = [prompt.problem for part in held_out if not part.name for prompt in part.prompts]
        training = usable(source, range(source.size or 1))
        check_problems(training, source.size, ours, rewards, Console(stderr=True))

    model = load_model(recipe.model, checkpoint)
    batching = Batching(
        max_tokens=recipe.trainer.max_tokens_per_micro_batch,
        pad_token_id=tokenizer.pad_token_id or 0,  # type: ignore[arg-type]
        packed=(model.config._attn_implementation or "").startswith("flash"),
    )
    if recipe.trainer.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    policy = Policy(
        model,
        recipe.trainer,
        accelerator,
        max_steps=recipe.trainer.max_steps,
        temperature=recipe.rollout.temperature,
        batching=batching,
        balance_bias_update_speed=recipe.model.balance_bias_update_speed,
    )
    reference = None
    if recipe.algorithm.beta > 0:
        moved = checkpoint / FOLDER if checkpoint and (checkpoint / FOLDER).exists() else None
        temperature = recipe.rollout.temperature
        reference = Reference(load_model(recipe.model, moved), accelerator, temperature=temperature, batching=batching)
    accelerator.register_for_checkpointing(problems)
    if checkpoint:
        accelerator.load_state(str(checkpoint / checkpoints.STATE))
    engine: Any = _engine(recipe, accelerator)  # both an Engine and a Publisher: it lives in this process
    engine.publish(policy.weights(), first_step)
    report = Report(recipe.output_dir, recipe, accelerator=accelerator, resume_step=first_step if checkpoint else None)
    return Parts(
        recipe=recipe,
        accelerator=accelerator,
        tokenizer=tokenizer,
        problems=problems,
        rewards=rewards,
        held_out=held_out,
        policy=policy,
        reference=reference,
        engine=engine,
        publisher=engine,
        report=report,
        first_step=first_step,
    )


def _problems(recipe: GRPORecipe, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> ProblemStream:
    """The training stream of this process."""
    data, seed = recipe.data, recipe.trainer.seed
    return ProblemStream(
        _source(data, split="train", seed=seed),
        _prompter(data, tokenizer),
        seed=seed,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )


def _held_out(recipe: GRPORecipe, tokenizer: PreTrainedTokenizerBase, rewards: Rewards) -> list[HeldOut]:
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


def _rewards(recipe: GRPORecipe, functions: Sequence[Callable[..., Any]] | None = None) -> Rewards:
    """The recipe's rewards, followed by functions given from Python (weight 1)."""
    specs = [RewardSpec(**dict(reward)) for reward in recipe.rewards]
    return Rewards(
        [*specs, *(RewardSpec(function=f) for f in functions or ())], num_workers=recipe.trainer.num_reward_workers
    )


def _engine(recipe: GRPORecipe, accelerator: Accelerator) -> Engine:
    """The engine that `rollout.engine` names, with the precision that the trainer computes in."""
    rollout = recipe.rollout
    return build_engine(
        rollout.engine,
        recipe.model.model_name_or_path,
        dtype={"bf16": "bfloat16", "fp16": "float16"}.get(accelerator.mixed_precision, recipe.model.dtype),
        device=accelerator.device,
        max_model_len=recipe.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        vllm_options=rollout.vllm_options,
        revision=recipe.model.revision,
        trust_remote_code=recipe.model.trust_remote_code,
    )


def _source(data: DataConfig, *, split: str, seed: int) -> Source:
    return load_source(
        task=data.task,
        task_options=data.task_options,
        dataset_name=data.dataset_name,
        dataset_config=data.dataset_config,
        dataset_split=data.dataset_split,
        columns=data.columns,
        streaming=data.streaming,
        shuffle_buffer_size=data.shuffle_buffer_size,
        split=split,
        seed=seed,
    )


def _prompter(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Prompter:
    return Prompter(
        tokenizer,
        template=data.template,
        system_prompt=data.system_prompt,
        max_prompt_length=data.max_prompt_length,
        chat_template_kwargs=data.chat_template_kwargs,
    )
