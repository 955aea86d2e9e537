"""Checks of a run's data before a model loads. Those of the rewards are in `rewards.runner.preflight`."""

from collections.abc import Mapping

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from rollout.data.check import conclude, survey_prompts
from rollout.data.columns import Reason
from rollout.data.prompts import Prompter
from rollout.data.sources import Source
from rollout.data.stream import counts


def check_prompts(section: str, source: Source, prompter: Prompter, accelerator: Accelerator) -> None:
    """Render and tokenize a source's rows, or a sample; each process takes its share, and all raise the same error.

    Raises:
        ValueError: a row cannot become a prompt, or all are too long; see `rollout.data.check.conclude`.
    """
    survey = survey_prompts(
        source, prompter, process_index=accelerator.process_index, num_processes=accelerator.num_processes
    )
    surveys = gather_object([survey])
    _warn(conclude(section, surveys, size=source.size, max_prompt_length=prompter.max_prompt_length), accelerator)


def report_held_out(
    count: int, wanted: int, dropped: Mapping[Reason, int], accelerator: Accelerator, *, name: str = ""
) -> None:
    """Say which rows were skipped in choosing held-out problems, and whether there are fewer than asked for.

    name: of the set in a recipe's `sets`; "": the problems of its section `evaluation`.
    """
    what, key = (f"held-out problems of {name}", f"sets.{name}") if name else ("held-out problems", "evaluation")
    parts = [f"{sum(dropped.values())} rows were skipped ({counts(dropped)})"] if dropped else []
    parts += [f"the source has only {count} of {key}.num_problems={wanted}"] if count < wanted else []
    _warn(f"{what}: {'; '.join(parts)}." if parts else None, accelerator)


def report_shared(shared: int, total: int, accelerator: Accelerator) -> None:
    """Say how many of the held-out problems are training problems as well.

    Raises:
        ValueError: all are.
    """
    remedy = (
        "Divide the rows, such as dataset_split=train[:-500] to train on and train[-500:] to evaluate on; give a "
        "generated task options with more different problems."
    )
    if shared and shared == total:
        raise ValueError(
            f"evaluation: all {total} held-out problems are training problems as well (the same prompts), so what is "
            f"measured is memory. {remedy}"
        )
    told = f"held-out problems: {shared} of {total} are training problems as well (the same prompts). {remedy}"
    _warn(told if shared else None, accelerator)


def _warn(warning: str | None, accelerator: Accelerator) -> None:
    if warning and accelerator.is_main_process:
        Console(stderr=True).print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
