"""The sections of a recipe for next-token loss: pretraining and supervised fine-tuning."""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from grpo.recipe.data import check_rendering
from grpo.recipe.loop.schedules import Step
from grpo.recipe.optimizer import AdamWConfig, Schedule
from grpo.recipe.section import Section, StageRecipe


class MTPConfig(Section):
    """Multi-token prediction of depth 1 (2412.19437, section 2.2), trained with the model; V3's architecture only."""

    # lambda, of its loss: one number, or {step: number}, each from that optimizer step on. V3: 0.3 for the first 10 of
    # its 14.8 trillion tokens, then 0.1.
    coefficient: PositiveFloat | dict[Step, PositiveFloat]

    @model_validator(mode="after")
    def _holds_from_the_first_step(self) -> "MTPConfig":
        if isinstance(self.coefficient, dict) and 0 not in self.coefficient:
            raise ValueError(
                f"coefficient: steps {sorted(self.coefficient)} leave the first step without a value. Add step 0."
            )
        return self

    def at(self, step: int) -> float:
        """lambda of the update after `step` optimizer steps."""
        if not isinstance(self.coefficient, dict):
            return self.coefficient
        return self.coefficient[max(one for one in self.coefficient if one <= step)]


class SFTModel(Section):
    """The model to start from: a Hugging Face folder or Hub name, `./` being the recipe's folder; or, from nothing, the
    keys of a configuration.
    """

    model_name_or_path: str | None = None
    revision: str | None = None  # branch, tag or commit on the Hub; None: its default branch
    config: dict[str, Any] = {}  # keys of its config.json to change; from nothing: all, with model_type
    tokenizer: str | None = None  # folder, Hub name or file.py:function; None: model_name_or_path's
    dtype: Literal["float32", "bfloat16"] = "float32"  # the forward computes in it; trained weights are float32
    attn_implementation: str | None = None  # None: transformers' default
    experts_implementation: str = "grouped_mm"  # MoE only
    disable_dropout: bool = True  # also that of attention
    trust_remote_code: bool = False  # whether code from the model's repository may run
    mtp: MTPConfig | None = None  # docs/moe.md; None: a model's multi-token prediction is neither trained nor saved

    @model_validator(mode="after")
    def _one_start(self) -> "SFTModel":
        if self.model_name_or_path is None and not ("model_type" in self.config and self.tokenizer):
            raise ValueError(
                "give model_name_or_path, to continue from a model, or config with model_type, and tokenizer, to start "
                "from nothing"
            )
        return self

    @property
    def name(self) -> str:
        """For messages."""
        return self.model_name_or_path or f"a new {self.config['model_type']}"


class SFTSource(Section):
    """Rows with a prompt (a question or messages) and a completion (text), which alone is learnt; or with a text."""

    dataset_name: str  # Hub name, a local .json/.jsonl/.parquet file, or file.py:function(seed, **options)
    dataset_config: str | None = None  # name of the dataset's configuration on the Hub
    dataset_split: str = "train"
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {prompt: question, completion: answer} or {text: content}
    options: dict[str, Any] = {}  # arguments of the function
    weight: PositiveFloat | None = None  # its share of the rows, relative to the other sources'; None: all its rows

    @property
    def is_function(self) -> bool:
        return ".py:" in self.dataset_name


class SFTData(Section):
    """What is learnt: the rows of one source or of a mixture, each prompt as a rollout renders it."""

    sources: Annotated[list[SFTSource], Field(min_length=1)]
    template: str = "{prompt}"  # as in a GRPO recipe's data section: "r1_zero", "chat" or a string with {prompt}
    system_prompt: str | None = None  # for "chat"
    chat_template_kwargs: dict[str, Any] = {}  # for "chat"
    max_length: PositiveInt = 1024  # tokens; longer prompts with completions are left out and counted, texts are cut up
    packing: bool = False  # fill rows up to max_length with several, which see one another, as in V3's pretraining
    max_rows: PositiveInt | None = None  # rows of an epoch; None: all, or with weights the most that repeats none

    @model_validator(mode="after")
    def _can_be_read(self) -> "SFTData":
        weights = [source.weight for source in self.sources]
        if None in weights and any(weights):
            raise ValueError(
                f"weights {weights}: give every source a weight, to mix rows by weight, or none, to take all rows."
            )
        functions = [source.dataset_name for source in self.sources if source.is_function]
        if functions and self.max_rows is None:
            raise ValueError(f"max_rows is not set, and {functions[0]} may yield rows without end. Set data.max_rows.")
        check_rendering(self.template, self.system_prompt, self.chat_template_kwargs)
        return self


class SFTTrainerConfig(AdamWConfig):
    """Optimizer, schedule, batches and checkpoints, under transformers' names."""

    output_dir: str = "runs/sft"  # the run's folder
    num_train_epochs: PositiveFloat = 2.0  # passes over the data
    max_steps: PositiveInt | None = None  # optimizer steps, instead of epochs
    per_device_train_batch_size: PositiveInt = 8  # rows per process and micro-batch
    # Instead of a number of rows: as many as there is room for, padding included. Then long rows count no less.
    max_tokens_per_batch: PositiveInt | None = None
    gradient_accumulation_steps: PositiveInt = 1  # micro-batches per optimizer step
    learning_rate: PositiveFloat = 5e-5  # R1: 5e-5 for V3 (2501.12948)
    lr_scheduler_type: Schedule | Literal["cosine_with_min_lr", "warmup_stable_decay"] = "cosine_with_min_lr"
    # cosine_with_min_lr: min_lr, or min_lr_rate, a share of the peak; None: a tenth, as for R1.
    # warmup_stable_decay: num_decay_steps; decay_type: linear, cosine (default) or 1-sqrt; min_lr_ratio.
    lr_scheduler_kwargs: dict[str, float | str] | None = None
    gradient_checkpointing: bool = False  # less memory: activations are computed again in the backward pass
    balance_bias_update_speed: NonNegativeFloat = 0.0  # gamma of 2408.15664, MoE only; 0: frozen; pretraining: 0.001
    sequence_balance_coefficient: NonNegativeFloat = 0.0  # alpha of 2412.19437, MoE only; pretraining: 1e-4
    seed: NonNegativeInt = 42  # of sampling, order and new weights
    logging_steps: PositiveInt = 10  # optimizer steps per row of metrics
    save_steps: NonNegativeInt = 0  # 0: only the end
    save_total_limit: PositiveInt = 2  # checkpoints that are kept, the newest
    resume_from_checkpoint: bool = False  # true: the newest in output_dir
    allow_changes: list[str] = []  # keys that may differ from the resumed run's recipe, docs/recipes.md

    @model_validator(mode="after")
    def _schedule_takes_its_arguments(self) -> "SFTTrainerConfig":
        given, name = self.lr_scheduler_kwargs, self.lr_scheduler_type
        keys = set(given or {})
        if name == "warmup_stable_decay":
            right = "num_decay_steps" in keys and keys <= {"num_decay_steps", "decay_type", "min_lr_ratio"}
            rule = "it takes num_decay_steps, and optionally decay_type and min_lr_ratio"
        elif name == "cosine_with_min_lr":
            right, rule = given is None or keys in ({"min_lr"}, {"min_lr_rate"}), "it takes min_lr or min_lr_rate"
        else:
            right, rule = given is None, "it takes none"
        if not right:
            raise ValueError(f"lr_scheduler_kwargs={given} with lr_scheduler_type={name!r}: {rule}. Correct them.")
        return self

    @property
    def scheduler_arguments(self) -> dict[str, Any]:
        """What transformers' schedule is called with beside warm-up and length."""
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            return {"min_lr_rate": 0.1}
        return dict(self.lr_scheduler_kwargs or {})


class SFTRecipe(StageRecipe):
    """A whole recipe of stage `sft`, or `pretrain`: the same under the name that fits a base.

    `base_dir` is what relative `file.py:function` sources are found from.
    """

    stage: Literal["sft", "pretrain"]
    model: SFTModel
    data: SFTData
    trainer: SFTTrainerConfig = SFTTrainerConfig()
    base_dir: str = "."
