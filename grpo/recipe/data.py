"""The section `data`: where problems come from, one source or a mixture of several."""

from collections.abc import Sequence
from typing import Any, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from grpo.recipe.loop.curriculum import CurriculumConfig
from grpo.recipe.section import Section


class SourceConfig(Section):
    """One source of problems: a generated `task`, or a dataset by Hub name or local file."""

    task: str | None = None  # countdown, arithmetic, or reasoning_gym:<name>
    task_options: dict[str, Any] = {}  # the task's difficulty settings
    dataset_name: str | None = None  # Hub name, or a local .json/.jsonl/.parquet path
    dataset_config: str | None = None  # name of the dataset's configuration on the Hub
    dataset_split: str = "train"
    streaming: bool = False  # read the dataset as it is needed instead of loading it
    shuffle_buffer_size: PositiveInt = 10_000  # rows shuffled at once; streaming only
    columns: dict[str, str] = {}  # ours -> theirs, e.g. {prompt: question, solution: reward_model.ground_truth}
    template: str = "{prompt}"  # "r1_zero", "chat" or a string with {prompt}
    system_prompt: str | None = None  # for "chat"
    chat_template_kwargs: dict[str, Any] = {}  # for "chat": variables of the template, e.g. {enable_thinking: false}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        _check_source(self)
        return self


class MixedSource(SourceConfig):
    """One source of a mixture. Its problems get the column data_source = name, which rewards can be limited to."""

    name: str = Field(min_length=1, pattern="^[^/]+$")  # also in metrics: eval/<name>/…
    weight: PositiveFloat = 1.0  # its share of the problems, relative to the other sources that have joined
    from_step: int = 0  # joins with the first rollout at or after this step; negative: counted from max_steps

    def first_step(self, max_steps: int) -> int:
        """The step it joins at. A run shorter than a negative from_step has the source throughout."""
        return self.from_step if self.from_step >= 0 else max(0, max_steps + self.from_step)


class ProblemsConfig(SourceConfig):
    """Where problems come from: one source."""

    max_prompt_length: PositiveInt = 512  # longer prompts are dropped and counted


RENDERING = ("template", "system_prompt", "chat_template_kwargs")  # of all sources of a mixture that set none


class DataConfig(ProblemsConfig):
    """Where problems come from: one source, or a `mixture` of several."""

    mixture: list[MixedSource] = []
    curriculum: CurriculumConfig | None = None  # docs/algorithms.md; None: every row once per epoch

    @model_validator(mode="before")
    @classmethod
    def _rendered_alike(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not isinstance(values.get("mixture"), list):
            return values
        shared = {key: values[key] for key in RENDERING if key in values}
        return {**values, "mixture": [shared | one if isinstance(one, dict) else one for one in values["mixture"]]}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.mixture:
            _check_source(self)
        for key, field in SourceConfig.model_fields.items():
            if self.mixture and key not in RENDERING and getattr(self, key) != field.get_default():
                raise ValueError(
                    f"{key}={getattr(self, key)!r} beside mixture: each source has keys of its own. Move it into them."
                )
        names = [source.name for source in self.mixture]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"mixture: {repeated[0]!r} names several sources. Give each its own name.")
        for source in self.sources if self.curriculum else ():
            if source.task is not None or source.streaming:
                what = f"task={source.task!r}" if source.task is not None else "streaming=true"
                raise ValueError(
                    f"curriculum with {what}: this source is endless and repeats no problem, so a pass rate would "
                    "never be used. Remove it, or use datasets with rows (streaming=false)."
                )
        return self

    @property
    def sources(self) -> Sequence[SourceConfig]:
        """The sources of the mixture, or the only one."""
        return self.mixture or [self]


def _check_source(source: SourceConfig) -> None:
    if (source.task is None) == (source.dataset_name is None):
        raise ValueError(
            f"task={source.task!r} and dataset_name={source.dataset_name!r}: problems come from exactly one of them. "
            "Set one and remove the other."
        )
    if source.streaming and (source.task is not None or "[" in source.dataset_split):
        raise ValueError(
            f"streaming=true with task={source.task!r} and dataset_split={source.dataset_split!r}: only whole splits "
            "of a dataset can be streamed. Set streaming=false, or name a dataset and a split without a slice."
        )
    check_rendering(source.template, source.system_prompt, source.chat_template_kwargs)


def check_rendering(template: str, system_prompt: str | None, chat_template_kwargs: dict[str, Any]) -> None:
    """Raise ValueError if the template cannot show what it is given."""
    if system_prompt is not None and template != "chat":
        raise ValueError(
            f"system_prompt={system_prompt!r} with template={template!r}: only template chat has one. "
            "Write it into the template and set system_prompt=null, or set template=chat."
        )
    if chat_template_kwargs and template != "chat":
        raise ValueError(
            f"chat_template_kwargs={chat_template_kwargs} with template={template!r}: only template chat "
            "uses them. Remove them, or set template=chat."
        )
    if template not in ("r1_zero", "chat") and "{prompt}" not in template:
        raise ValueError(
            f"template={template!r}: has no placeholder for the problem. Add {{prompt}}, or use r1_zero or chat."
        )
