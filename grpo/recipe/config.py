"""The sections of a GRPO recipe and the rules that hold between them.

Field names are those of Hugging Face and TRL where they have one. Reading YAML, `extends`, overrides and the wording
of errors live in `grpo.recipe.load`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from grpo.recipe.registry import LOSSES
from rollout.support.names import nearest
from rollout.types import Sampling

Fraction = Annotated[float, Field(ge=0, le=1)]
# Of transformers' schedules, those that need nothing but warm-up and length.
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


def _known_loss(name: str) -> str:
    if name not in LOSSES:
        raise ValueError(f"{name!r} is none of {', '.join(LOSSES)}.{nearest(name, LOSSES)}")
    return name


class Section(BaseModel):
    """A part of a recipe: unknown keys are errors, values are fixed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """The policy: a Hugging Face folder or Hub name. A path starting with `./` is relative to the recipe."""

    model_name_or_path: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"  # trainer and engine compute in it; trained weights are float32
    attn_implementation: str | None = None  # None: transformers' choice
    experts_implementation: str = "grouped_mm"  # MoE only; batched_mm is 40 times slower on CPU
    disable_dropout: bool = True
    balance_bias_update_speed: NonNegativeFloat = (
        0.0  # gamma of 2408.15664; 0 freezes the bias, as published RL runs do
    )
    trust_remote_code: bool = False


class DataConfig(Section):
    """Where problems come from: a generated `task`, or a dataset by Hub name or local file."""

    task: str | None = None  # countdown, arithmetic, or reasoning_gym:<name>
    task_options: dict[str, Any] = {}  # difficulty settings of the task
    dataset_name: str | None = None  # Hub name, or a local .json/.jsonl/.parquet path
    dataset_config: str | None = None
    dataset_split: str = "train"
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {prompt: question, solution: answer}
    template: str = "{prompt}"  # "r1_zero", "chat", or a string with {prompt}
    system_prompt: str | None = None  # for "chat"
    max_prompt_length: PositiveInt = 512  # longer prompts are dropped and counted

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if (self.task is None) == (self.dataset_name is None):
            raise ValueError(
                f"task={self.task!r} and dataset_name={self.dataset_name!r}: problems come from exactly one of them. "
                "Set one and leave out the other."
            )
        if self.template not in ("r1_zero", "chat") and "{prompt}" not in self.template:
            raise ValueError(
                f"template={self.template!r}: the problem has no place in it. "
                "Write {prompt} where it belongs, or use r1_zero or chat."
            )
        return self


class RolloutConfig(Section):
    """How groups of completions are sampled."""

    engine: Literal["vllm", "hf"] = "vllm"
    problems_per_step: PositiveInt = 32  # questions per optimizer step, over all processes
    num_generations: Annotated[int, Field(ge=2)] = 16  # completions per question (G)
    max_completion_length: PositiveInt = 512
    temperature: PositiveFloat = 1.0
    max_model_len: PositiveInt | None = None  # engine context; None: max_prompt_length + max_completion_length
    max_num_seqs: PositiveInt = 256  # sequences that the engine decodes at once
    gpu_memory_utilization: Fraction = 0.3  # vLLM on a GPU
    kv_cache_gib: PositiveFloat = 1.0  # vLLM on CPU
    vllm_options: dict[str, Any] = {}  # further arguments of vllm.LLM


class RewardConfig(Section):
    """One reward function: a built-in name, `package.module:function` or `path/to/file.py:function`."""

    function: str
    weight: float = 1.0
    options: dict[str, Any] = {}  # keyword arguments, fixed for the run
    name: str = ""  # what metrics and `evaluation.reward` call it; empty: the function's name
    requires: str | None = None  # counts 0 unless the reward of this name is above 0.5 for the completion
    data_sources: list[str] | None = None  # for problems whose column data_source is one of these; None: for all

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("function"), str):
            return {"name": values["function"].rpartition(":")[2], **values}
        return values


class AlgorithmConfig(Section):
    """GRPO (2402.03300, 2501.12948) and its variants."""

    loss_type: Annotated[str, AfterValidator(_known_loss)] = "grpo"  # a name in LOSSES of grpo/recipe/registry.py
    scale_rewards: Literal["group", "batch", "none"] = "group"
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"  # or GDPO
    epsilon: PositiveFloat = 0.2
    epsilon_high: PositiveFloat | None = None  # None: same as epsilon
    beta: NonNegativeFloat = 0.0  # KL coefficient; 0 keeps no reference in memory
    ref_model_sync_steps: NonNegativeInt = 0  # refresh the reference every N steps; 0: never
    steps_per_generation: PositiveInt = 1  # optimizer steps (mini-batches) per rollout; R1-Zero: 16
    mask_truncated_completions: bool = False
    # The run stops when mean |log p_trainer - log p_engine| exceeds it. None: 1e-3 in float32, 0.05 in bfloat16.
    max_logp_difference: PositiveFloat | None = None


class AdamWConfig(Section):
    """AdamW, the same for every stage."""

    learning_rate: PositiveFloat = 1e-6  # the peak
    warmup_steps: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.0
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.999
    adam_epsilon: PositiveFloat = 1e-8
    max_grad_norm: PositiveFloat = 1.0


class OptimizerConfig(AdamWConfig):
    """AdamW with one of transformers' schedules."""

    lr_scheduler_type: Schedule = "constant_with_warmup"


class TrainerConfig(OptimizerConfig):
    """Optimization, budget and checkpoints. A step is one optimizer step."""

    output_dir: str = "runs/grpo"
    max_steps: PositiveInt = 100
    num_reward_workers: PositiveInt = 2  # processes that run reward functions
    max_tokens_per_micro_batch: PositiveInt = 8192  # per process; prompt and completion
    gradient_checkpointing: bool = False
    seed: NonNegativeInt = 42
    save_steps: NonNegativeInt = 0  # 0: only at the end
    save_total_limit: PositiveInt = 2
    resume_from_checkpoint: bool | str = False  # true: the newest in output_dir


class EvaluationConfig(Section):
    """Held-out evaluation before, every `eval_steps` and after training."""

    eval_steps: NonNegativeInt = 0  # 0: only before and after
    num_problems: NonNegativeInt = 0  # 0: no evaluation, unless there are tasks
    num_samples: PositiveInt = 4  # completions per problem (k)
    temperature: NonNegativeFloat = 1.0
    top_p: Fraction = 1.0
    max_completion_length: PositiveInt | None = None  # None: the rollout's
    data: DataConfig | None = None  # None: the training source, its held-out split
    tasks: list[str] = []  # tasks of `grpo eval` instead, asked in the template of data; num_problems of each, 0: all
    data_dir: str | None = None  # local copies of the tasks' datasets
    reward: str | None = None  # which reward decides "correct" (> 0.5); None: the first


class ReportConfig(Section):
    """What is written and shown."""

    report_to: list[str] = []  # accelerate trackers: tensorboard, wandb, trackio
    run_name: str | None = None
    logging_steps: PositiveInt = 1
    num_logged_groups: PositiveInt = 4  # groups per step written to samples.jsonl


class GRPORecipe(Section):
    """A whole recipe of stage `grpo`."""

    stage: Literal["grpo"] = "grpo"
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    rewards: Annotated[list[RewardConfig], Field(min_length=1)]
    algorithm: AlgorithmConfig = AlgorithmConfig()
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> "GRPORecipe":
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ValueError("\n".join(conflicts))
        return self

    @property
    def problems_per_rollout(self) -> int:
        """Questions sampled at once; `steps_per_generation` optimizer steps share them."""
        return self.rollout.problems_per_step * self.algorithm.steps_per_generation

    @property
    def max_model_len(self) -> int:
        """Context of the engine in tokens."""
        return self.rollout.max_model_len or self.data.max_prompt_length + self.rollout.max_completion_length

    def rollout_sampling(self, rollout_index: int) -> Sampling:
        """Parameters of the `rollout_index`-th rollout."""
        return Sampling(
            num_generations=self.rollout.num_generations,
            max_completion_length=self.rollout.max_completion_length,
            temperature=self.rollout.temperature,
            seed=self.trainer.seed * 1_000_003 + rollout_index,
        )

    def evaluation_sampling(self) -> Sampling:
        """Parameters of every held-out evaluation; its random numbers do not depend on the step."""
        return Sampling(
            num_generations=self.evaluation.num_samples,
            max_completion_length=self.evaluation.max_completion_length or self.rollout.max_completion_length,
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.top_p,
            seed=self.trainer.seed,
        )

    @property
    def output_dir(self) -> Path:
        return Path(self.trainer.output_dir)


def _conflicts(recipe: GRPORecipe) -> Iterator[str]:
    """What no run could make sense of: value, rule and remedy of each impossible combination."""
    rollout, algorithm, trainer, evaluation = recipe.rollout, recipe.algorithm, recipe.trainer, recipe.evaluation
    prompt = (evaluation.data or recipe.data).max_prompt_length
    answer = evaluation.max_completion_length or rollout.max_completion_length
    train_tokens = recipe.data.max_prompt_length + rollout.max_completion_length
    tokens = max(train_tokens, prompt + answer if evaluation.num_problems or evaluation.tasks else 0)
    if recipe.max_model_len < tokens:
        yield (
            f"rollout.max_model_len={recipe.max_model_len}: the engine's context must hold the longest prompt and "
            f"completion, {tokens} tokens. Set rollout.max_model_len={tokens}, or shorten data.max_prompt_length or "
            "max_completion_length."
        )
    if trainer.max_tokens_per_micro_batch < train_tokens:
        yield (
            f"trainer.max_tokens_per_micro_batch={trainer.max_tokens_per_micro_batch}: one full sample has "
            f"{recipe.data.max_prompt_length} + {rollout.max_completion_length} tokens and must fit. "
            f"Set it to at least {train_tokens}."
        )
    if trainer.max_steps % algorithm.steps_per_generation:
        steps = algorithm.steps_per_generation
        whole = -(-trainer.max_steps // steps) * steps
        yield (
            f"trainer.max_steps={trainer.max_steps}: every rollout is used for algorithm.steps_per_generation={steps} "
            f"steps, so max_steps must be a multiple of it. Set trainer.max_steps={whole}."
        )
    if algorithm.ref_model_sync_steps and not algorithm.beta:
        yield (
            f"algorithm.ref_model_sync_steps={algorithm.ref_model_sync_steps} with algorithm.beta=0: without a KL term "
            "there is no reference to refresh. Set algorithm.beta above 0 (R1-Zero: 0.001), or ref_model_sync_steps=0."
        )
    yield from _reward_conflicts(recipe)
    yield from _evaluation_conflicts(recipe)


def _reward_conflicts(recipe: GRPORecipe) -> Iterator[str]:
    algorithm = recipe.algorithm
    names = [reward.name for reward in recipe.rewards]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"rewards: {name!r} is listed {names.count(name)} times, and metrics go by name. Give each a `name`."
    for reward in recipe.rewards:
        if reward.requires is not None and (reward.requires not in names or reward.requires == reward.name):
            others = ", ".join(name for name in names if name != reward.name) or "none"
            yield (
                f"rewards: {reward.name!r} requires {reward.requires!r}, which is no other reward of this recipe "
                f"({others}). Name one of them, or leave `requires` out."
            )
    if algorithm.multi_objective_aggregation == "normalize_then_sum" and algorithm.scale_rewards != "group":
        yield (
            f"algorithm.scale_rewards={algorithm.scale_rewards} with multi_objective_aggregation=normalize_then_sum: "
            "each reward is scaled within its group, and the sum within the batch. Leave scale_rewards at group."
        )
    if not any(reward.weight for reward in recipe.rewards):
        yield "rewards: every weight is 0, so that all advantages are 0. Give at least one reward a weight."


def _evaluation_conflicts(recipe: GRPORecipe) -> Iterator[str]:
    evaluation = recipe.evaluation
    names = [reward.name for reward in recipe.rewards]
    if evaluation.reward is not None and evaluation.reward not in names:
        yield (
            f"evaluation.reward={evaluation.reward!r}: it must be one of the recipe's rewards, {', '.join(names)}. "
            "Name one of them, or leave it out for the first."
        )
    if evaluation.eval_steps and not (evaluation.num_problems or evaluation.tasks):
        yield (
            f"evaluation.eval_steps={evaluation.eval_steps} with evaluation.num_problems=0: there is nothing to "
            "evaluate on. Set evaluation.num_problems, or eval_steps=0."
        )
    if evaluation.num_problems and recipe.data.dataset_name and evaluation.data is None and not evaluation.tasks:
        yield (
            f"evaluation.num_problems={evaluation.num_problems} on data.dataset_name={recipe.data.dataset_name!r}: "
            "without evaluation.data the held-out problems would be those trained on. Set evaluation.data, with "
            "another dataset_split or file."
        )
    if evaluation.temperature == 0 and evaluation.num_samples > 1:
        yield (
            f"evaluation.num_samples={evaluation.num_samples} at evaluation.temperature=0: greedy decoding gives the "
            "same completion every time. Set evaluation.num_samples=1, or a temperature above 0."
        )
