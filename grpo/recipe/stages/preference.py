"""The recipes of stages `pairs` and `reward_model`."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from grpo.recipe.config import EngineSection, ModelConfig
from grpo.recipe.data import ProblemsConfig
from grpo.recipe.optimizer import OptimizerConfig, PositiveFraction
from grpo.recipe.section import Endpoint, SamplingRecipe, Section, StageRecipe
from rollout.engines.build import check_in_process


class CandidateConfig(EngineSection):
    """How candidates are sampled."""

    engine: Annotated[str, AfterValidator(check_in_process)] = "vllm"  # or hf
    num_generations: Annotated[int, Field(ge=2)] = 4  # candidates per problem
    max_completion_length: PositiveInt = 512  # candidates that reach it are left out
    temperature: PositiveFloat = 1.0
    top_p: PositiveFraction = 1.0
    stop: list[Annotated[str, Field(min_length=1)]] = []


class JudgeEndpoint(Endpoint):
    """A judge behind an OpenAI-compatible endpoint, asked as the reward `judge` is."""

    criteria: str = "correctness first, then helpfulness and clarity"
    temperature: NonNegativeFloat = 1.0  # above 0, so that repeated comparisons are independent


class PairsConfig(Section):
    """Which pairs are compared, and which are kept (R1's helpful reward model, 2501.12948: judged four times)."""

    num_problems: PositiveInt  # of a dataset that has fewer, some are used again
    pairs_per_problem: PositiveInt = 1  # compared, of candidates with different texts
    num_comparisons: Annotated[int, Field(ge=2, multiple_of=2)] = 4  # per pair, half of them in either order
    # A pair is kept if |mean score| exceeds it. R1 keeps |score| > 1; we read its scale as Arena-Hard's, -2 to 2.
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.5
    summary_only: bool = False  # compare only the text after the last </think>, as the reward model's summary_only
    chunk_size: PositiveInt = 256  # problems between two saves


class PairsRecipe(SamplingRecipe):
    """A whole recipe of stage `pairs`."""

    stage: Literal["pairs"]
    model: ModelConfig  # writes the candidates
    data: ProblemsConfig
    rollout: CandidateConfig = CandidateConfig()
    # path/to/file.py:function(prompt, first, second, **columns) -> -1 to 1, positive if the first is better; or a model
    judge: str | JudgeEndpoint
    pairs: PairsConfig
    output: str = "runs/pairs"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_model_len < self.data.max_prompt_length + self.rollout.max_completion_length:
            raise ValueError(
                f"rollout.max_model_len={self.rollout.max_model_len}: must hold the longest prompt and completion, "
                f"{self.data.max_prompt_length} + {self.rollout.max_completion_length} tokens. Raise it or remove it."
            )
        return self

    @property
    def max_model_len(self) -> int:
        return self.rollout.max_model_len or self.data.max_prompt_length + self.rollout.max_completion_length


class RewardModelModel(Section):
    """The model to start from, usually a causal language model: its head is replaced by one output."""

    model_name_or_path: str
    revision: str | None = None  # branch, tag or commit on the Hub; None: its default branch
    dtype: Literal["float32", "bfloat16"] = "float32"  # bfloat16: autocast; weights are float32
    attn_implementation: str | None = None
    experts_implementation: str = "grouped_mm"  # MoE only
    trust_remote_code: bool = False  # whether code from the model's repository may run


class PreferenceData(Section):
    """Preference pairs: prompt, chosen, rejected, in TRL's formats."""

    dataset_name: str  # Hub name, local folder or .jsonl/.parquet file
    dataset_config: str | None = None  # name of the dataset's configuration on the Hub
    dataset_split: str = "train"
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {prompt: question}
    template: str = "{prompt}"  # of prompts that are text: "r1_zero", "chat" or a string with {prompt}
    summary_only: bool = False  # the model reads only the text after the last </think>
    max_length: PositiveInt = 8192  # tokens; pairs with a longer text are dropped and counted
    num_held_out: NonNegativeInt = 64  # pairs, never trained on, whose accuracy is measured; 0: none

    @model_validator(mode="after")
    def _has_a_place(self) -> Self:
        if self.template not in ("r1_zero", "chat") and "{prompt}" not in self.template:
            raise ValueError(f"template={self.template!r}: has no placeholder. Add {{prompt}}, or use r1_zero or chat.")
        return self


class RewardModelTrainer(OptimizerConfig):
    """TRL's RewardTrainer, with the published values of R1's helpful reward model (2501.12948)."""

    output_dir: str = "runs/reward_model"  # the run's folder
    learning_rate: PositiveFloat = 6e-6
    batch_size: PositiveInt = 256  # pairs per step, summed over processes
    num_train_epochs: PositiveFloat = 1.0  # passes over the data
    max_steps: PositiveInt | None = None  # instead of epochs
    max_pairs_per_micro_batch: PositiveInt = 8  # per process
    gradient_checkpointing: bool = False  # less memory: activations are computed again in the backward pass
    seed: NonNegativeInt = 42  # of sampling, order and new weights
    logging_steps: PositiveInt = 1  # optimizer steps per row of metrics
    eval_steps: NonNegativeInt = 0  # 0: only before and after
    save_steps: NonNegativeInt = 0  # 0: only the end
    save_total_limit: Annotated[int, Field(ge=2)] = 2  # checkpoints that are kept, the newest
    resume_from_checkpoint: bool | str = False  # true: the newest in output_dir
    allow_changes: list[str] = []

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.max_pairs_per_micro_batch:
            raise ValueError(
                f"batch_size={self.batch_size}: must be a multiple of max_pairs_per_micro_batch="
                f"{self.max_pairs_per_micro_batch}. Change one of them."
            )
        return self


class RewardModelRecipe(StageRecipe):
    """A whole recipe of stage `reward_model`."""

    stage: Literal["reward_model"]
    model: RewardModelModel
    data: PreferenceData
    trainer: RewardModelTrainer = RewardModelTrainer()
