"""An evaluation's recipe (`stage: eval`) and the protocols that supply its defaults."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from grpo.recipe.config import EngineSection
from grpo.recipe.optimizer import PositiveFraction
from grpo.recipe.section import Section, StageRecipe
from rollout.engines.build import ENGINES
from rollout.support.names import nearest
from rollout.types import Sampling

Bounds = Annotated[list[float | str], Field(min_length=2, max_length=2)]
FILE_SUFFIXES = (".jsonl", ".json", ".parquet")
TASKS_FILE = Path(__file__).parent / "tasks" / "tasks.yaml"

# Defaults by protocol. A recipe or the command line can override each value; the resolved recipe shows the result.
# Without num_samples, each task's own applies (as in DeepSeek-R1, 2501.12948: AIME and GPQA 64, MATH-500 16, …).
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
    """One task: its problems, its question format and its grader. See docs/evaluation.md."""

    dataset_name: str | None = None  # Hub name, or a local .jsonl/.json/.parquet path
    dataset_config: str | None = None  # name of the dataset's configuration on the Hub
    dataset_revision: str | None = None  # None: the latest
    dataset_files: list[str] = []  # files in the Hub repository or folder, instead of its default configuration
    dataset_split: str | None = None  # such as test[:200]; None: test, and of files train, which is all of their rows
    where: dict[str, Bounds] = {}  # column -> [low, high): keep only rows in this range
    task: str | None = None  # generated instead of a dataset: countdown, arithmetic, reasoning_gym:<name>
    task_options: dict[str, Any] = {}
    num_problems: PositiveInt | None = None  # of a generated task; None: 512
    columns: dict[str, str | list[str]] = {}  # our name -> theirs, or alternatives tried in order
    choices: list[str] = []  # option columns, the correct one first; shuffled, shown as {choices}
    # The question's text; {name} inserts a column, a list one item per line. Given several texts, the first whose
    # columns are all non-empty is used.
    question: str | Annotated[list[str], Field(min_length=1)] = "{prompt}"
    instruction: str = ""  # answer format, appended to the question under template "chat"
    exemplars: str | None = None  # key in exemplars.yaml: the worked examples of protocol few-shot
    reward: str = "accuracy"  # the grader: a reward's name, or path/to/file.py:function
    options: dict[str, Any] = {}  # reward options
    num_samples: PositiveInt = 4  # per problem, unless the protocol or recipe sets it
    groups: list[str] = []  # report metrics for each value of these columns, such as subject
    reference: str | None = None  # a correct completion, as the grader expects it; for --engine reference
    licence: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> "TaskConfig":
        if (self.task is None) == (self.dataset_name is None):
            raise ValueError(
                f"task={self.task!r} and dataset_name={self.dataset_name!r}: set exactly one "
                "of them as the source of the problems."
            )
        source = f"task={self.task!r}" if self.task else f"dataset_name={self.dataset_name!r}"
        if unread := [f"{key}={value!r}" for key in self._unread_keys() if (value := getattr(self, key))]:
            raise ValueError(f"{source} does not read {', '.join(unread)}. Remove it, or name another source.")
        return self

    def _unread_keys(self) -> tuple[str, ...]:
        """Keys that say nothing about this source of problems."""
        if self.task is not None:
            return "dataset_config", "dataset_revision", "dataset_files", "dataset_split", "where"
        if self.is_file:
            return "dataset_config", "dataset_revision", "dataset_files", "task_options", "num_problems"
        return ("dataset_config",) * bool(self.dataset_files) + ("task_options", "num_problems")

    @property
    def is_file(self) -> bool:
        """Whether the dataset is a local file."""
        return self.dataset_name is not None and self.dataset_name.endswith(FILE_SUFFIXES)

    @property
    def split(self) -> str:
        """The split that is read; a generated task's is held out."""
        if self.task is not None:
            return "eval"
        return self.dataset_split or ("train" if self.is_file or self.dataset_files else "test")


class EvalModelConfig(Section):
    """The model to evaluate: a Hugging Face folder or Hub name, or a LoRA adapter's folder."""

    model_name_or_path: str
    revision: str | None = None  # branch, tag or commit on the Hub; None: its default branch
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: see docs/evaluation.md
    trust_remote_code: bool = False  # whether code from the model's repository may run


class SamplingConfig(Section):
    """Sampling parameters. None: the protocol's value."""

    num_samples: PositiveInt | None = None  # per problem; None: the protocol's, else each task's own
    temperature: NonNegativeFloat | None = None
    top_p: PositiveFraction | None = None
    top_k: NonNegativeInt = 0  # 0: no limit
    max_completion_length: PositiveInt | None = None  # tokens
    seed: NonNegativeInt = 42  # of sampling, order and new weights


def _check_engine(name: str) -> str:
    known = [*ENGINES, "reference"]
    if name not in known:
        raise ValueError(f"unknown engine {name!r}.{nearest(name, known)} Engines: {', '.join(known)}.")
    return name


class EngineConfig(EngineSection):
    """The engine that generates completions."""

    # vllm, hf, server, or reference: the task's own reference completions
    name: Annotated[str, AfterValidator(_check_engine)] = "vllm"
    base_url: str = "http://localhost:8000/v1"  # for engine "server", OpenAI-compatible
    gpu_memory_utilization: PositiveFraction = 0.9  # vLLM on GPU


class EvalRecipe(StageRecipe):
    """A complete recipe for stage `eval`."""

    stage: Literal["eval"] = "eval"
    model: EvalModelConfig
    tasks: list[str] = Field(min_length=1)  # names in tasks.yaml or define_tasks, or paths of single-task files
    define_tasks: dict[str, TaskConfig] = {}
    protocol: str = "deepseek-r1"
    template: str | None = None  # chat, r1_zero, few_shot or text containing {prompt}; None: the protocol's
    system_prompt: str | None = None  # only with template "chat"
    chat_template_kwargs: dict[str, Any] = {}  # variables of the chat template, such as {enable_thinking: false}
    sampling: SamplingConfig = SamplingConfig()
    engine: EngineConfig = EngineConfig()
    data_dir: str | None = None  # folder with local dataset copies, used instead of the Hub
    limit: PositiveInt | None = None  # problems per task, a fixed random subset; None: all
    output: str = "runs/eval"

    @model_validator(mode="before")
    @classmethod
    def _apply_protocol(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Fill in the protocol's values where the recipe sets none."""
        name = data.get("protocol", cls.model_fields["protocol"].default)
        if not isinstance(name, str) or name not in PROTOCOLS:
            raise ValueError(
                f"protocol={name!r}: unknown, must be one of {', '.join(PROTOCOLS)}.{nearest(str(name), PROTOCOLS)} "
                "Choose one and override individual values with sampling and template."
            )
        values = dict(PROTOCOLS[name])
        if data.get("template") is None:
            data = data | {"template": values["template"]}
        del values["template"]
        sampling = data.get("sampling") or {}
        if not isinstance(sampling, dict):
            return data  # refused as such
        given = {key: value for key, value in sampling.items() if value is not None}
        return data | {"sampling": values | given}

    @model_validator(mode="after")
    def _fits_together(self) -> "EvalRecipe":
        sampling = self.sampling
        if sampling.temperature == 0 and (sampling.num_samples or 1) > 1:
            raise ValueError(
                f"sampling.num_samples={sampling.num_samples} at sampling.temperature=0: greedy decoding "
                "yields the same completion every time. Set num_samples=1 or a temperature above 0."
            )
        if self.system_prompt is not None and self.template != "chat":
            raise ValueError(
                f"system_prompt with template={self.template!r}: only template 'chat' supports a system prompt. "
                "Put it into the template text, or remove it."
            )
        if self.template not in ("chat", "r1_zero", "few_shot") and "{prompt}" not in str(self.template):
            raise ValueError(
                f"template={self.template!r}: the problem's text is missing from it. "
                "Add {prompt} where the problem goes, or use chat, r1_zero or few_shot."
            )
        return self

    def num_samples(self, task: TaskConfig) -> int:
        """A task's samples per problem; 1 for greedy decoding and reference completions, which never vary."""
        if self.engine.name == "reference":
            return 1
        return self.sampling.num_samples or (task.num_samples if self.sampling.temperature else 1)

    def sampling_of_one(self, stop: tuple[str, ...]) -> Sampling:
        """Sampling parameters of a single sample; each sample is its own request."""
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
    """The entries of tasks.yaml by name, without the shared fragments, whose keys start with a dot."""
    entries = yaml.safe_load(TASKS_FILE.read_text(encoding="utf-8"))
    return {name: entry for name, entry in entries.items() if not name.startswith(".")}
