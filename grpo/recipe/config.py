"""The sections of a GRPO recipe and the rules between them.

Fields that exist in Hugging Face or TRL keep their names. Reading files and overrides is in `grpo.recipe.load`, the
wording of type errors in `grpo.recipe.explain`.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from grpo.recipe.algorithm import AlgorithmConfig, conflicts
from grpo.recipe.data import DataConfig
from grpo.recipe.loop.curriculum import curriculum_conflicts
from grpo.recipe.loop.dynamic import dynamic_sampling_conflicts
from grpo.recipe.loop.evaluation import EvaluationConfig, evaluation_conflicts
from grpo.recipe.loop.lora import LoRAConfig, lora_conflicts, quantization_conflicts, sending_conflicts
from grpo.recipe.loop.mixture import mixture_conflicts
from grpo.recipe.loop.mtp import mtp_conflicts
from grpo.recipe.loop.rewards import RewardConfig, reward_conflicts
from grpo.recipe.loop.schedules import Schedules, recipe_at, schedule_conflicts, sized_by_largest
from grpo.recipe.loop.truncation import Truncation, truncation_conflicts
from grpo.recipe.optimizer import OptimizerConfig, PositiveFraction
from grpo.recipe.section import Section, StageRecipe
from grpo.recipe.servers import ServersConfig, ahead_conflicts, corrected_if_stale, server_conflicts, with_own_gpus
from rollout.engines.build import ENGINES, check_trainable
from rollout.types import Sampling

# Measured means: 1e-6 in float32; 7e-3 to 2e-2 in bfloat16 on a random MoE, where near-ties between experts flip.
MAX_LOGP_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.05}


def default_logp_bound(dtype: str, *, is_corrected: bool) -> float:
    """The mean |log p_trainer - log p_engine| above which a run stops. is_corrected: the loss weighs the difference."""
    return MAX_LOGP_DIFFERENCE[dtype] * (10.0 if is_corrected else 1.0)


class EngineSection(Section):
    """An engine's capacity, wherever completions are generated."""

    max_num_seqs: PositiveInt = 256  # sequences decoded at once
    max_model_len: PositiveInt | None = None  # context in tokens; None: longest prompt and completion
    gpu_memory_utilization: PositiveFraction = 0.3  # vLLM on GPU; of servers that a run starts 0.9
    kv_cache_gib: PositiveFloat = 1.0  # vLLM on CPU
    vllm_options: dict[str, Any] = {}  # further arguments of vllm.LLM


class ModelConfig(Section):
    """The policy: a Hugging Face folder or Hub name. A path starting with `./` is relative to the recipe."""

    model_name_or_path: str
    revision: str | None = None  # branch, tag or commit on the Hub; None: its default branch
    dtype: Literal["float32", "bfloat16"] = "float32"  # trainer and engine compute in it; trained weights are float32
    attn_implementation: str | None = None  # None: transformers' default
    experts_implementation: str = "grouped_mm"  # MoE only; batched_mm is 40 times slower on CPU
    disable_dropout: bool = True  # also that of attention
    balance_bias_update_speed: NonNegativeFloat = 0.0  # gamma of 2408.15664; 0: frozen, as in published RL runs
    sequence_balance_coefficient: NonNegativeFloat = 0.0  # alpha of 2412.19437, MoE only; V3's pretraining: 1e-4
    trust_remote_code: bool = False  # whether code from the model's repository may run

    @model_validator(mode="after")
    def _flash_attention_computes_in_bfloat16(self) -> Self:
        if "flash" in (self.attn_implementation or "") and self.dtype == "float32":
            raise ValueError(
                f"attn_implementation={self.attn_implementation} with dtype=float32: flash attention has no float32. "
                "Set dtype=bfloat16, or remove attn_implementation."
            )
        return self


class PolicyConfig(ModelConfig):
    """A policy that GRPO's loop trains: whole, or by adapters."""

    lora: LoRAConfig | None = None  # train and save adapters only (docs/lora.md); None: all weights
    quantization: Literal["4bit"] | None = None  # of the base under adapters (QLoRA), docs/lora.md
    # V3's multi-token prediction: kept as it is, or trained with the trunk detached; None: dropped (docs/moe.md)
    mtp: Literal["frozen", "detached"] | None = None


class RolloutConfig(EngineSection, Truncation):
    """How groups of completions are sampled. Truncated distributions need `algorithm.sampling_mask`."""

    engine: Annotated[str, AfterValidator(check_trainable)] = "vllm"  # or hf, or server
    servers: ServersConfig | None = None  # for engine `server`
    sleep_level: Literal[0, 1, 2] = 0  # vLLM on GPU frees its memory during updates, docs/engines.md
    adapters: Literal["merge", "send"] = "merge"  # model.lora: merged into the engine's weights, or sent as they are
    max_staleness: NonNegativeInt = 0  # most rollouts that generation is ahead of the update (docs/async.md); 0: none
    problems_per_step: PositiveInt = 32  # problems per optimizer step, summed over processes
    num_generations: Annotated[int, Field(ge=2)] = 16  # completions per problem (G)
    max_completion_length: PositiveInt = 512  # tokens
    temperature: PositiveFloat = 1.0
    dynamic_sampling: bool = False  # replace groups without signal by further problems (DAPO), docs/algorithms.md
    max_num_gen_batches: PositiveInt = 10  # dynamic_sampling: rounds of sampling per rollout
    stop: list[Annotated[str, Field(min_length=1)]] = []  # texts that end a completion, beside the end tokens

    _memory = model_validator(mode="before")(with_own_gpus)


class TrainerConfig(OptimizerConfig):
    """Optimizer, token budget and checkpoints. A step is one optimizer step."""

    output_dir: str = "runs/grpo"  # the run's folder
    max_steps: PositiveInt = 100  # optimizer steps of the run
    max_tokens_per_micro_batch: PositiveInt = 8192  # per process; prompt and completion
    gradient_checkpointing: bool = False  # less memory: activations are computed again in the backward pass
    activation_offloading: bool = False  # what gradient_checkpointing keeps waits in host memory for the backward pass
    sharding: Literal["none", "fsdp2"] = "none"  # fsdp2: weights, gradients and optimizer over the processes
    sharding_replicas: PositiveInt = 1  # whole copies of the sharded model; above 1: hybrid sharding
    offload_params: bool = False  # fsdp2: each process's weights, gradients and optimizer are in host memory
    num_reward_workers: PositiveInt = 2  # processes that run reward functions
    reward_timeout: PositiveFloat | None = 600.0  # seconds for one group's rewards
    seed: NonNegativeInt = 42  # of sampling, order and new weights
    save_steps: NonNegativeInt = 0  # 0: only at the end
    save_total_limit: PositiveInt = 2  # checkpoints that are kept, the newest
    resume_from_checkpoint: bool | str = False  # true: the newest in output_dir
    allow_changes: list[str] = []  # keys that may differ from the resumed run's recipe, docs/recipes.md


class ReportConfig(Section):
    """Logging and trackers."""

    report_to: list[str] = []  # accelerate's trackers: tensorboard, wandb, trackio
    project: str = "grpo"  # of the trackers
    run_name: str | None = None  # of the trackers
    logging_steps: PositiveInt = 1  # optimizer steps per row of metrics
    num_logged_groups: PositiveInt = 4  # groups per step written to samples.jsonl


class OnPolicyRecipe(StageRecipe):
    """A recipe of GRPO's loop: the policy completes problems, and is updated on its completions."""

    model: PolicyConfig
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    rewards: list[RewardConfig]
    algorithm: Section = Section()  # what an update is; each stage has its own
    trainer: TrainerConfig = TrainerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()

    @property
    def learns_rewards(self) -> bool:
        """Whether rewards teach; else they are only measured."""
        return True

    @property
    def policy_gradient(self) -> AlgorithmConfig:
        """The algorithm as the loop reads it."""
        raise NotImplementedError

    def at(self, step: int) -> Self:  # noqa: ARG002
        """The recipe as it is after `step` optimizer steps: itself, unless numbers are scheduled."""
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ValueError("\n".join(conflicts))
        return self

    @property
    def problems_per_rollout(self) -> int:
        """Problems sampled at once, for `steps_per_generation` optimizer steps."""
        return self.rollout.problems_per_step * self.policy_gradient.steps_per_generation

    @property
    def max_model_len(self) -> int:
        """The engine's context in tokens."""
        return self.rollout.max_model_len or self.longest_text

    @property
    def longest_text(self) -> int:
        """Tokens of the longest prompt and completion, in rollouts and held-out evaluations."""
        trained = self.data.max_prompt_length + self.rollout.max_completion_length
        if not (self.evaluation.num_problems or self.evaluation.tasks):
            return trained
        prompt = (self.evaluation.data or self.data).max_prompt_length
        return max(trained, prompt + self.evaluation_sampling().max_completion_length)

    @property
    def max_logp_difference(self) -> float:
        """The mean |log p_trainer - log p_engine| above which a run stops."""
        algorithm = self.policy_gradient
        bound = default_logp_bound(self.model.dtype, is_corrected=algorithm.is_corrected)
        return algorithm.max_logp_difference or bound

    @property
    def max_logp_difference_at_start(self) -> float:
        """The same before the first step, where both have the same weights: a correction excuses nothing."""
        bound = default_logp_bound(self.model.dtype, is_corrected=False)
        return self.policy_gradient.max_logp_difference or bound

    def rollout_sampling(self, index: int) -> Sampling:
        """Sampling parameters of rollout number `index`."""
        return Sampling(
            num_generations=self.rollout.num_generations,
            max_completion_length=self.rollout.max_completion_length,
            temperature=self.rollout.temperature,
            top_p=self.rollout.top_p,
            top_k=self.rollout.top_k,
            min_p=self.rollout.min_p,
            stop=tuple(self.rollout.stop),
            seed=self.trainer.seed * 1_000_003 + index,
        )

    def evaluation_sampling(self) -> Sampling:
        """Sampling parameters of held-out evaluations, with the same seed at every step."""
        return Sampling(
            num_generations=self.evaluation.num_samples,
            max_completion_length=self.evaluation.max_completion_length or self.rollout.max_completion_length,
            temperature=self.evaluation.temperature,
            top_p=self.evaluation.top_p,
            top_k=self.evaluation.top_k,
            stop=tuple(self.rollout.stop),
            seed=self.trainer.seed,
        )


class GRPORecipe(OnPolicyRecipe):
    """The recipe of stage `grpo`."""

    stage: Literal["grpo"] = "grpo"
    rewards: Annotated[list[RewardConfig], Field(min_length=1)]
    algorithm: AlgorithmConfig = AlgorithmConfig()
    schedules: Schedules | None = None  # {rollout.max_completion_length: {0: 32768, 8200: 65536}}, docs/recipes.md

    @property
    def policy_gradient(self) -> AlgorithmConfig:
        return self.algorithm

    @model_validator(mode="before")
    @classmethod
    def _corrected(cls, values: Any) -> Any:
        return corrected_if_stale(values)

    def at(self, step: int) -> Self:
        return recipe_at(self, self.schedules or {}, step)

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: Any) -> Any:
        return sized_by_largest(values)

    @model_validator(mode="after")
    def _schedules_fit(self) -> Self:
        found = list(schedule_conflicts(self, self.schedules or {}, max_steps=self.trainer.max_steps))
        if "algorithm.entropy_coef" in (self.schedules or {}) and self.algorithm.entropy_target is not None:
            found.append(
                f"schedules.algorithm.entropy_coef with algorithm.entropy_target={self.algorithm.entropy_target}: the "
                "coefficient follows the target. Remove one of them."
            )
        if stale := self.rollout.max_staleness:
            scheduled = (f"schedules.{key}" for key in self.schedules or {} if key.startswith("rollout."))
            found += ahead_conflicts(stale, scheduled)
        if found:
            raise ValueError("\n".join(found))
        return self


def _conflicts(recipe: OnPolicyRecipe) -> Iterator[str]:
    """Value, rule and remedy for each invalid combination of fields."""
    rollout, algorithm, trainer, evaluation = recipe.rollout, recipe.policy_gradient, recipe.trainer, recipe.evaluation
    train_tokens, tokens = recipe.data.max_prompt_length + rollout.max_completion_length, recipe.longest_text
    if recipe.max_model_len < tokens:
        yield (
            f"rollout.max_model_len={recipe.max_model_len}: the engine's context must hold the longest prompt and "
            f"completion, {tokens} tokens. Set rollout.max_model_len={tokens}, or lower data.max_prompt_length or "
            "max_completion_length."
        )
    if rollout.sleep_level and rollout.engine != "vllm":
        yield (
            f"rollout.sleep_level={rollout.sleep_level} with rollout.engine={rollout.engine}: only vLLM in the "
            "trainer's process shares its GPU memory and can sleep. Set rollout.engine=vllm or rollout.sleep_level=0."
        )
    yield from server_conflicts(rollout.engine, rollout.servers, rollout.max_staleness)
    if rollout.max_staleness:
        in_use = {"rollout.dynamic_sampling": rollout.dynamic_sampling, "data.curriculum": recipe.data.curriculum}
        yield from ahead_conflicts(rollout.max_staleness, (key for key, on in in_use.items() if on))
    able = [name for name, entry in ENGINES.items() if entry.records]
    yield from truncation_conflicts(
        rollout, rollout.engine, able, masked=algorithm.sampling_mask, learns_rewards=recipe.learns_rewards
    )
    if algorithm.routing_replay == "R3" and rollout.engine not in able:
        yield (
            f"algorithm.routing_replay='R3' with rollout.engine={rollout.engine!r}: this engine does not return the "
            f"experts that tokens took. Set rollout.engine to one of {', '.join(able)}, or algorithm.routing_replay=R2."
        )
    if trainer.max_tokens_per_micro_batch < train_tokens:
        yield (
            f"trainer.max_tokens_per_micro_batch={trainer.max_tokens_per_micro_batch}: must hold a full-length "
            f"sample of {recipe.data.max_prompt_length} + {rollout.max_completion_length} tokens. "
            f"Set it to at least {train_tokens}."
        )
    if trainer.activation_offloading and not trainer.gradient_checkpointing:
        yield (
            "trainer.activation_offloading=true: moves what gradient checkpointing keeps, each layer's input, and not "
            "all that a layer computes. Set trainer.gradient_checkpointing=true too."
        )
    if trainer.max_steps % algorithm.steps_per_generation:
        steps = algorithm.steps_per_generation
        whole = -(-trainer.max_steps // steps) * steps
        yield (
            f"trainer.max_steps={trainer.max_steps}: must be a multiple of algorithm.steps_per_generation={steps}, the "
            f"number of steps that share a rollout. Set trainer.max_steps={whole}."
        )
    if algorithm.ref_model_sync_steps and not algorithm.beta:
        yield (
            f"algorithm.ref_model_sync_steps={algorithm.ref_model_sync_steps} with algorithm.beta=0: without a KL term "
            "there is no reference model. Set algorithm.beta above 0 (R1-Zero: 0.001), or ref_model_sync_steps=0."
        )
    yield from conflicts(algorithm)
    yield from mtp_conflicts(recipe.model.mtp, adapters=recipe.model.lora is not None, sharding=trainer.sharding)
    model = recipe.model
    yield from quantization_conflicts(model.quantization, model.lora, sharding=trainer.sharding)
    if model.lora is not None:
        yield from lora_conflicts(model.lora, model.balance_bias_update_speed, beta=algorithm.beta)
    if rollout.adapters == "send":
        transfer = rollout.servers.weights if rollout.servers else None
        yield from sending_conflicts(model.lora, model.quantization, rollout.engine, rollout.sleep_level, transfer)
    yield from mixture_conflicts(recipe.data.mixture, trainer.max_steps, evaluation.tasks, evaluation.data)
    if rollout.dynamic_sampling:
        first_steps = {source.name: source.first_step(trainer.max_steps) for source in recipe.data.mixture}
        yield from dynamic_sampling_conflicts(
            learns_rewards=recipe.learns_rewards,
            advantage_estimator=algorithm.advantage_estimator,
            late_sources={name: step for name, step in first_steps.items() if step},
        )
    in_evaluation = bool(evaluation.data and evaluation.data.curriculum)
    if recipe.data.curriculum or in_evaluation:
        yield from curriculum_conflicts(has_rewards=bool(recipe.rewards), in_evaluation=in_evaluation)
    yield from reward_conflicts(recipe.rewards, recipe.policy_gradient, recipe.rollout.num_generations)
    yield from evaluation_conflicts(evaluation, recipe.data, [reward.name for reward in recipe.rewards])
