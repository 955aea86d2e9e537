"""The sections of a pretraining recipe."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from grpo.recipe.config import AdamWConfig, Fraction
from grpo.recipe.section import Section, StageRecipe


class PretrainModel(Section):
    """The model: a folder to continue from, or the keys of a configuration to start from nothing."""

    model_name_or_path: str | None = None
    config: dict[str, Any] = {}  # with model_type; vocabulary and special tokens come from the tokenizer
    tokenizer: str | None = None  # folder, Hub name or file.py:function; None: model_name_or_path's
    experts_implementation: str = "grouped_mm"  # MoE only

    @model_validator(mode="after")
    def _one_source(self) -> "PretrainModel":
        if (self.model_name_or_path is None) == (not self.config):
            raise ValueError("give exactly one of model_name_or_path (to continue) and config (to start from nothing)")
        if self.config and not ("model_type" in self.config and self.tokenizer):
            raise ValueError("a model from nothing needs config.model_type and a tokenizer")
        return self


class PretrainData(Section):
    """Documents: {"text"}, or {"prompt", "completion"} where the prompt shall not be learnt."""

    source: str  # file.py:function(seed, **options) that yields documents, a Hub name, or a .jsonl/.parquet/.txt file
    options: dict[str, Any] = {}
    dataset_split: str = "train"
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {text: content}
    train_on_prompt: bool = False
    max_length: PositiveInt = 256  # tokens; longer documents are cut


class PretrainTrainer(AdamWConfig):
    """AdamW with warm-up, a plateau and a decay to zero (decay_fraction 1: no plateau)."""

    output_dir: str = "runs/pretrain"
    max_steps: PositiveInt = 1000
    max_tokens_per_batch: PositiveInt = 4096  # per process, padding included
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 100
    decay: Literal["cosine", "linear"] = "linear"
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
    weight_decay: NonNegativeFloat = 0.1
    adam_beta1: Fraction = 0.9
    adam_beta2: Fraction = 0.95
    max_grad_norm: PositiveFloat = 1.0
    balance_bias_update_speed: NonNegativeFloat = 0.001  # gamma; V3: 0.001
    sequence_balance_coefficient: NonNegativeFloat = 1e-4  # alpha; V3: 1e-4
    seed: NonNegativeInt = 42
    logging_steps: PositiveInt = 50
    save_steps: NonNegativeInt = 0  # also write output_dir/checkpoint-<step> every so many steps; 0: the end alone


class PretrainRecipe(StageRecipe):
    """A whole recipe of stage `pretrain`. `base_dir` is what relative `file.py:function` sources are found from."""

    stage: Literal["pretrain"]
    model: PretrainModel
    data: PretrainData
    trainer: PretrainTrainer = PretrainTrainer()
    base_dir: str = "."
