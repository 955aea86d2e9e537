"""The recipe of an evaluation (`stage: eval`), and the protocols whose values it starts from."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from grpo.recipe.config import EngineSection, Fraction
from grpo.recipe.section import Section
from rollout.support.names import nearest
from rollout.types import Sampling

Bounds = Annotated[list[float | str], Field(min_length=2, max_length=2)]
TASKS_FILE = Path(__file__).parent / "tasks.yaml"

# What a protocol sets. A recipe or the command line may change each of them; the resolved recipe shows the values.
# num_samples None: what the task says (as DeepSeek-R1 published it, 2501.12948: AIME and GPQA 64, MATH-500 16, …).
PROTOCOLS: dict[str, dict[str, Any]] = {
    "deepseek-r1": {"template": "chat", "temperature": 0.6, "top_p": 0.95, "max_completion_length": 32768},
    "greedy": {"template": "chat", "temperature": 0.0, "top_p": 1.0, "max_completion_length": 2048, "num_samples": 1},
    "r1-zero": {"template": "r1_zero", "temperature": 0.6, "top_p": 0.95, "max_completion_length": 32768},
    "few-shot": {
        "template": "few_shot",
        "temperature": 0.0,
        "top_p": 1.0,
        "max_completion_length": 1024,
        "num_samples": 1,
    },
}


class TaskConfig(Section):
    """One task: where its problems come from, how they are asked and who judges the answers. See docs/evaluation.md."""

    dataset_name: str | None = None  # Hub name, or a local .jsonl/.json/.parquet path
    dataset_config: str | None = None
    dataset_revision: str | None = None  # None: the newest
    dataset_files: list[str] = []  # of the Hub repository or folder, all rows; else what its configuration loads
    dataset_split: str = "test"
    where: dict[str, Bounds] = {}  # the dataset's columns -> [from, below]: rows that are within
    task: str | None = None  # a generated task instead of a dataset: countdown, arithmetic, reasoning_gym:<name>
    task_options: dict[str, Any] = {}
    num_problems: PositiveInt = 512  # of a generated task
    columns: dict[str, str | list[str]] = {}  # ours -> theirs; of a list, the first that is there
    choices: list[str] = []  # columns with the options of a question, the right one first; shown shuffled, as {choices}
    # How a problem is put; {name} is a column, a list by lines. Of several, the first whose columns are all filled.
    question: str | Annotated[list[str], Field(min_length=1)] = "{prompt}"
    instruction: str = ""  # added to the question by template "chat": how to give the answer
    exemplars: str | None = None  # the worked examples of exemplars.yaml that protocol few-shot shows first
    reward: str = "accuracy"  # decides what is right: a reward's name, or path/to/file.py:function
    options: dict[str, Any] = {}  # of the reward
    num_samples: PositiveInt = 4  # per problem, where the protocol does not say
    groups: list[str] = []  # columns to tabulate by, such as subject and level
    reference: str | None = None  # a right answer, in the form the checker expects: for --engine reference
    licence: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if (self.task is None) == (self.dataset_name is None):
            raise ValueError(
                f"task={self.task!r} and dataset_name={self.dataset_name!r}: problems come from exactly one of them. "
                "Set one and leave out the other."
            )
        if self.task is not None and (self.dataset_files or self.where):
            raise ValueError(
                f"task={self.task!r} with dataset_files={self.dataset_files} and where={self.where}: these choose rows "
                "of a dataset, and a generated task has none. Leave them out, or set dataset_name."
            )
        return self


class EvalModelConfig(Section):
    """What is evaluated: a Hugging Face folder or Hub name, a LoRA adapter's folder, or a served model's name."""

    model_name_or_path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: float32 on CPU, the checkpoint's on GPU
    trust_remote_code: bool = False


class SamplingConfig(Section):
    """How answers are drawn. What is None comes from the protocol."""

    num_samples: PositiveInt | None = None  # per problem (k); None: the protocol's, else each task's own
    temperature: NonNegativeFloat | None = None
    top_p: Fraction | None = None
    top_k: NonNegativeInt = 0  # 0: no limit
    max_completion_length: PositiveInt | None = None
    seed: NonNegativeInt = 42


class EngineConfig(EngineSection):
    """What generates."""

    name: Literal["vllm", "hf", "server", "reference"] = "vllm"  # reference: the task's own right answers
    base_url: str = "http://localhost:8000/v1"  # of an OpenAI-compatible server
    gpu_memory_utilization: Fraction = 0.9  # vLLM on GPU


class EvalRecipe(Section):
    """A whole recipe of stage `eval`."""

    stage: Literal["eval"] = "eval"
    model: EvalModelConfig
    tasks: list[str] = Field(min_length=1)  # names of tasks.yaml or of define_tasks, or paths of files with one entry
    define_tasks: dict[str, TaskConfig] = {}
    protocol: str = "deepseek-r1"
    template: str | None = None  # chat, r1_zero, few_shot or a text with {prompt}; None: the protocol's
    system_prompt: str | None = None  # for "chat"
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    data_dir: str | None = None  # a folder with local copies of the datasets, instead of the Hub
    limit: PositiveInt | None = None  # problems per task: a fixed random choice; None: all
    output: str = "runs/eval"

    @model_validator(mode="before")
    @classmethod
    def _apply_protocol(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Write the protocol's values where the recipe leaves them out."""
        name = data.get("protocol", cls.model_fields["protocol"].default)
        if name not in PROTOCOLS:
            raise ValueError(
                f"protocol={name!r}: none of {', '.join(PROTOCOLS)}.{nearest(str(name), PROTOCOLS)} "
                "Name one, and change single values under sampling and template."
            )
        values = dict(PROTOCOLS[name])
        if data.get("template") is None:
            data = data | {"template": values["template"]}
        del values["template"]
        given = {key: value for key, value in (data.get("sampling") or {}).items() if value is not None}
        return data | {"sampling": values | given}

    @model_validator(mode="after")
    def _fits_together(self) -> "EvalRecipe":
        sampling = self.sampling
        if sampling.temperature == 0 and (sampling.num_samples or 1) > 1:
            raise ValueError(
                f"sampling.num_samples={sampling.num_samples} at sampling.temperature=0: greedy decoding gives the "
                "same completion every time. Set num_samples=1, or a temperature above 0."
            )
        if self.system_prompt is not None and self.template != "chat":
            raise ValueError(
                f"system_prompt with template={self.template!r}: only template 'chat' has a place for it. "
                "Write it into the template, or leave it out."
            )
        if self.template not in ("chat", "r1_zero", "few_shot") and "{prompt}" not in str(self.template):
            raise ValueError(
                f"template={self.template!r}: the problem has no place in it. "
                "Write {prompt} where it belongs, or use chat, r1_zero or few_shot."
            )
        return self

    def num_samples(self, task: TaskConfig) -> int:
        """Samples per problem of a task; greedy ones and reference answers would all be the same."""
        if self.engine.name == "reference":
            return 1
        return self.sampling.num_samples or (task.num_samples if self.sampling.temperature else 1)

    def sampling_of_one(self, stop: tuple[str, ...]) -> Sampling:
        """Parameters of every sample, each a request of its own."""
        sampling = self.sampling
        assert sampling.max_completion_length and sampling.temperature is not None and sampling.top_p is not None
        return Sampling(
            num_generations=1,
            max_completion_length=sampling.max_completion_length,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
            stop=stop,
            logprobs=False,
        )

    @property
    def output_dir(self) -> Path:
        return Path(self.output)


def builtin_tasks() -> dict[str, dict[str, Any]]:
    """The entries of tasks.yaml, by name. Keys that begin with a dot are parts shared by several."""
    entries = yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))
    return {name: entry for name, entry in entries.items() if not name.startswith(".")}
