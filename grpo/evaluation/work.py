"""What an evaluation has to do for each task, prepared and checked before a model is loaded."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpo.evaluation.config import EvalRecipe, TaskConfig
from grpo.evaluation.engines import load_tokenizer
from grpo.evaluation.grading import Grader, build_grader, check_columns
from grpo.evaluation.tasks.load import Task, find_task, load_task
from grpo.evaluation.tasks.prompts import stop_strings, task_prompts
from rollout.types import Prompt, Sampling


@dataclass(slots=True)
class Work:
    """A task, its prompts and grader, the samples already on disk and the timing so far."""

    task: Task
    grader: Grader
    grading_options: dict[str, Any]
    prompts: list[Prompt]
    texts: list[str]  # the prompts as text
    sampling: Sampling  # for a single sample
    num_samples: int
    done: set[tuple[str, int]] = field(default_factory=set)
    timing: dict[str, float] = field(default_factory=dict)

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[Prompt]:
        """This process's share of the missing samples, one prompt each, with id "<problem id>#<sample>".

        They are graded as the task's problems, without the instruction of the prompt, as `grpo regrade` does.
        """
        problems = {problem.id: problem for problem in self.task.problems}
        requests = [
            replace(p, problem=replace(problems[p.problem.id], id=f"{p.problem.id}#{sample}"))
            for p in self.prompts
            for sample in range(self.num_samples)
            if (p.problem.id, sample) not in self.done
        ]
        return requests[process_index::num_processes]

    def manifest(self) -> dict[str, Any]:
        """This task's entry in manifest.json."""
        return {
            "reward": self.task.config.reward,
            "options": self.grading_options,
            "num_samples": self.num_samples,
            "problem_ids": [problem.id for problem in self.task.problems],
        }


def prepare(recipe: EvalRecipe) -> list[Work]:
    """Load tasks, graders and prompts, and check everything that does not need the model.

    Raises:
        ValueError: a task, column or template is wrong, or a task has no problem that can be graded.
    """
    data_dir = None if recipe.data_dir is None else Path(recipe.data_dir)
    tasks = [load_task(name, recipe.define_tasks, data_dir=data_dir, limit=recipe.limit) for name in recipe.tasks]
    names = [task.name for task in tasks]
    if duplicates := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"tasks={recipe.tasks}: {duplicates[0]!r} is listed twice. Remove one; a task file's name is its task's "
            "name, so rename one of two such files."
        )
    for name, task in zip(recipe.tasks, tasks, strict=True):
        _report_missing_filters(task, find_task(name, recipe.define_tasks)[1])
        check_columns(task.name, task.config.reward, task.config.options, task.problems[0].columns)
        if recipe.engine.name == "reference" and not task.references:
            raise ValueError(
                f"task {task.name!r} has no reference completions: either its field `reference` is not set, or the "
                "dataset lacks a column that it uses. Use another engine."
            )
    encode = _encoder(recipe)
    work = []
    for task in tasks:
        prompts, texts = encode(task)
        sampling = recipe.sampling_of_one(stop_strings(str(recipe.template)))
        options = _grading_options(recipe, task)
        grader = build_grader(task.config.reward, options)
        _report_unreadable(task, grader)
        work.append(Work(task, grader, options, prompts, texts, sampling, recipe.num_samples(task.config)))
    return work


def _report_missing_filters(task: Task, config: TaskConfig) -> None:
    """Warn if a local copy lacks a column that selects rows: it may hold other problems than the Hub's selection."""
    missing = [column for column in config.where if column not in task.config.where]
    if missing and os.environ.get("RANK", "0") == "0":
        print(f"{task.name}: the local copy has no column {', '.join(missing)}, so all of its rows are used.")


def _report_unreadable(task: Task, grader: Grader) -> None:
    """List the problems that cannot be graded, before spending time on them."""
    found = {problem.id: why for problem in task.problems if (why := grader.unreadable(problem))}
    if len(found) == len(task.problems):
        raise ValueError(f"task {task.name!r}: none of its problems can be graded. {next(iter(found.values()))}")
    if found and os.environ.get("RANK", "0") == "0":
        listed = "; ".join(f"{key}: {why}" for key, why in list(found.items())[:5])
        count = f"{len(found)} of {len(task.problems)} problems"
        print(f"{task.name}: {count} cannot be graded and will be excluded from the metrics: {listed}")


def _encoder(recipe: EvalRecipe) -> Callable[[Task], tuple[list[Prompt], list[str]]]:
    """A function from a task to its prompts and their texts."""
    if recipe.engine.name == "reference":  # never reads them, and has no tokenizer
        return lambda task: (
            [Prompt(problem=problem, token_ids=[]) for problem in task.problems],
            [str(problem.prompt) for problem in task.problems],
        )
    tokenizer = load_tokenizer(recipe.model)
    return lambda task: task_prompts(
        task,
        tokenizer,
        template=str(recipe.template),
        system_prompt=recipe.system_prompt,
        chat_template_kwargs=recipe.chat_template_kwargs,
    )


def _grading_options(recipe: EvalRecipe, task: Task) -> dict[str, Any]:
    """The task's options; few-shot prompts request no answer format, so answers are read from free text."""
    free = task.config.reward == "accuracy" and recipe.template == "few_shot"
    return {**({"answer_in": "free_text"} if free else {}), **task.config.options}
