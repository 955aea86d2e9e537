"""From a task's problems to what the engine reads, under one of the templates of `rollout.data.prompts` or few_shot."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from grpo.evaluation.tasks import Task
from rollout.data.prompts import Prompter
from rollout.types import Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXEMPLARS_FILE = Path(__file__).parent / "exemplars.yaml"
FEW_SHOT_STOP = "\n\nQuestion:"  # a base model goes on with a question of its own


def stop_strings(template: str) -> tuple[str, ...]:
    """What ends a completion beside the end token."""
    return (FEW_SHOT_STOP,) if template == "few_shot" else ()


def task_prompts(
    task: Task,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    template: str,
    system_prompt: str | None,
    instruct: bool = True,
) -> tuple[list[Prompt], list[str]]:
    """The prompt of each problem, and its text.

    instruct: with "chat" the task's instruction follows the question; other templates say how to answer themselves.

    Raises:
        ValueError: tokenizer and template do not fit each other, or few_shot has no examples for the task.
    """
    text = few_shot_template(task) if template == "few_shot" else template
    prompter = Prompter(tokenizer, template=text, system_prompt=system_prompt, max_prompt_length=1 << 30)
    instructs = instruct and prompter.is_chat
    problems = [instructed(problem, task) for problem in task.problems] if instructs else task.problems
    prompts = [prompt for prompt in prompter.encode_batch(problems) if prompt is not None]
    assert len(prompts) == len(problems)  # none is too long for 2^30 tokens
    return prompts, [prompter.render(problem) for problem in problems]


def instructed(problem: Problem, task: Task) -> Problem:
    """The problem with the request for the form of the answer after it."""
    if not task.config.instruction or not isinstance(problem.prompt, str):
        return problem
    return Problem(id=problem.id, prompt=f"{problem.prompt}\n\n{task.config.instruction}", columns=problem.columns)


def few_shot_template(task: Task) -> str:
    """Worked examples, then the question: "Question: …\\nAnswer: …\\n\\n … Question: {prompt}\\nAnswer:"."""
    known = yaml.safe_load(EXEMPLARS_FILE.read_text(encoding="utf-8"))
    name = task.config.exemplars
    if name not in known:
        raise ValueError(
            f"task {task.name!r} with template 'few_shot': exemplars={name!r}, and there are those of "
            f"{', '.join(known)}. Ask it with another template or protocol, or name one of them in a task of your own."
        )
    shown: Sequence[dict[str, str]] = known[name]
    examples = [f"Question: {example['question']}\nAnswer: {example['answer']}\n\n" for example in shown]
    return "".join([*examples, "Question: {prompt}\nAnswer:"])
