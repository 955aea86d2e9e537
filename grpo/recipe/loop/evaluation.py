"""A recipe's `evaluation`: what a run is measured on while it trains."""

from collections.abc import Iterator, Sequence

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from grpo.recipe.data import DataConfig, SourceConfig
from grpo.recipe.optimizer import PositiveFraction
from grpo.recipe.section import Section


class EvaluationConfig(Section):
    """Held-out evaluation before training, every `eval_steps` steps and after training."""

    eval_steps: NonNegativeInt = 0  # 0: only before and after
    num_problems: NonNegativeInt = 0  # 0: no evaluation, unless `tasks` is set
    num_samples: PositiveInt = 4  # completions per problem (k)
    temperature: NonNegativeFloat = 1.0
    top_p: PositiveFraction = 1.0
    top_k: NonNegativeInt = 0  # 0: no limit
    max_completion_length: PositiveInt | None = None  # None: the rollout's
    data: DataConfig | None = None  # None: the training data's held-out split
    tasks: list[str] = []  # instead: tasks of `grpo eval`, in the template of `data`; num_problems each, 0: all
    data_dir: str | None = None  # local copies of the tasks' datasets
    reward: str | None = None  # the reward that decides what is correct (> 0.5); None: the first


def evaluation_conflicts(evaluation: EvaluationConfig, data: DataConfig, names: Sequence[str]) -> Iterator[str]:
    """What cannot be held out, measured or decided. data: the training's; names: the rewards'."""
    if evaluation.reward is not None and evaluation.reward not in names:
        yield (
            f"evaluation.reward={evaluation.reward!r}: must be one of the recipe's rewards, {', '.join(names)}. "
            "Name one of them, or remove it to use the first."
        )
    if evaluation.eval_steps and not (evaluation.num_problems or evaluation.tasks):
        yield (
            f"evaluation.eval_steps={evaluation.eval_steps} with evaluation.num_problems=0: there is nothing to "
            "evaluate. Set evaluation.num_problems, or evaluation.eval_steps=0."
        )
    if evaluation.data_dir is not None and not evaluation.tasks:
        yield (
            f"evaluation.data_dir={evaluation.data_dir!r} without evaluation.tasks: it has the tasks' datasets. Name "
            "the tasks, or remove data_dir."
        )
    dataset = next((source.dataset_name for source in data.sources if source.dataset_name), None)
    if evaluation.num_problems and dataset and evaluation.data is None and not evaluation.tasks:
        yield (
            f"evaluation.num_problems={evaluation.num_problems} on data.dataset_name={dataset!r}: "
            "without evaluation.data, the held-out problems would be training problems. Set evaluation.data to "
            "another dataset_split or file."
        )
    if evaluation.num_problems and evaluation.data and not evaluation.tasks:
        trained = [_rows_of(source) for source in data.sources if source.dataset_name]
        for source in evaluation.data.sources:
            if _rows_of(source) in trained:
                yield (
                    f"evaluation.data: dataset_name={source.dataset_name!r} with dataset_split="
                    f"{source.dataset_split!r} is what data trains on, so the held-out problems would be training "
                    "problems. Divide it, such as data.dataset_split=train[:-500] and "
                    "evaluation.data.dataset_split=train[-500:], or name another file."
                )
    if evaluation.temperature == 0 and evaluation.num_samples > 1:
        yield (
            f"evaluation.num_samples={evaluation.num_samples} at evaluation.temperature=0: greedy decoding gives the "
            "same completion every time. Set evaluation.num_samples=1 or a temperature above 0."
        )


def _rows_of(source: SourceConfig) -> tuple[str | None, str | None, str]:
    return source.dataset_name, source.dataset_config, source.dataset_split
