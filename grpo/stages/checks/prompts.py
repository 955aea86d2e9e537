"""Checks of a run's data before a model loads. Those of the rewards are in `rewards.runner.preflight`."""

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console

from rollout.data.check import conclude, survey_prompts
from rollout.data.prompts import Prompter
from rollout.data.sources import Source


def check_prompts(section: str, source: Source, prompter: Prompter, accelerator: Accelerator) -> None:
    """Render and tokenize a source's rows, or a sample; each process takes its share, and all raise the same error.

    Raises:
        ValueError: a row cannot become a prompt, or all are too long; see `rollout.data.check.conclude`.
    """
    survey = survey_prompts(
        source, prompter, process_index=accelerator.process_index, num_processes=accelerator.num_processes
    )
    surveys = gather_object([survey])
    warning = conclude(section, surveys, size=source.size, max_prompt_length=prompter.max_prompt_length)
    if warning and accelerator.is_main_process:
        Console(stderr=True).print(warning, style="yellow", highlight=False, markup=False, soft_wrap=True)
