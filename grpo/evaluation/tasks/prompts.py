"""From a task's problems to token ids, using a template of `rollout.data.prompts` or few_shot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from grpo.evaluation.tasks.load import Task
from rollout.data.columns import UnusableRowError
from rollout.data.prompts import Prompter
from rollout.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXEMPLARS_FILE = Path(__file__).parent / "exemplars.yaml"
FEW_SHOT_STOP = "\n\nQuestion:"  # a base model continues with a new question


def stop_strings(template: str) -> tuple[str, ...]:
    """Strings that end a completion, in addition to the end token."""
    return (FEW_SHOT_STOP,) if template == "few_shot" else ()


def task_prompts(
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str,
    system_prompt: str | None,
    instruct: bool = True,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[Prompt], list[str]]:
    """Each problem's prompt and its text.

    Args:
        instruct: append the task's instruction to the question under "chat"; other templates carry their own.

    Raises:
        ValueError: the tokenizer does not support the template, few_shot has no examples for the task, or the template
            cannot show a problem.
    """
    text = few_shot_template(task) if template == "few_shot" else template
    prompter = Prompter(
        tokenizer,
        template=text,
        system_prompt=system_prompt,
        max_prompt_length=1 << 30,
        chat_template_kwargs=chat_template_kwargs,
    )
    instructs = instruct and prompter.is_chat
    problems = [instructed(problem, task) for problem in task.problems] if instructs else task.problems
    prompts: list[Prompt] = []
    for prompt in prompter.encode_batch(problems):
        if isinstance(prompt, UnusableRowError):
            raise prompt
        prompts.append(prompt)
    return prompts, [prompter.render(problem) for problem in problems]


def instructed(problem: Problem, task: Task) -> Problem:
    """The problem with the task's instruction appended."""
    if not task.config.instruction or not isinstance(problem.prompt, str):
        return problem
    return Problem(id=problem.id, prompt=f"{problem.prompt}\n\n{task.config.instruction}", columns=problem.columns)


def few_shot_template(task: Task) -> str:
    """Worked examples followed by the question: "Question: …\\nAnswer: …\\n\\n … Question: {prompt}\\nAnswer:"."""
    known = yaml.safe_load(EXEMPLARS_FILE.read_text(encoding="utf-8"))
    name = task.config.exemplars
    if name not in known:
        raise ValueError(
            f"task {task.name!r} with template 'few_shot': exemplars={name!r}, must be one of {', '.join(known)}. "
            "Use another template or protocol, or set exemplars in your own task."
        )
    shown: Sequence[dict[str, str]] = known[name]
    examples = [f"Question: {example['question']}\nAnswer: {example['answer']}\n\n" for example in shown]
    return "".join([*examples, "Question: {prompt}\nAnswer:"])
