"""An evaluation from recipe to results.

    tasks -> prompts -> (samples that are missing) -> engine.generate -> grader -> samples.jsonl
                                                                                        |
                                        results.json, table, page  <--  summary  <------+

Every sample is a request of its own, with random numbers of its own: they depend on the run's seed, the problem and the
sample's number alone. So an interrupted evaluation goes on with what is missing, more samples or problems can be added
to a finished one, and two checkpoints answer under the same random numbers.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from accelerate.utils import gather_object

from grpo.evaluation.config import EvalRecipe, TaskConfig
from grpo.evaluation.engines import ReferenceEngine, build_engine, context_length, fingerprint, load_tokenizer
from grpo.evaluation.grading import Grader, build_grader, check_columns
from grpo.evaluation.prompts import stop_strings, task_prompts
from grpo.evaluation.results.page import PAGE_FILE
from grpo.evaluation.results.samples import (
    PROBLEMS_FILE,
    SampleWriter,
    as_line,
    key_of,
    merge_samples,
    problem_rows,
    read_asked,
    read_samples,
    sample_rows,
    write_asked,
    write_problems,
)
from grpo.evaluation.results.table import markdown
from grpo.evaluation.results.write import RESULTS_FILE, Results, write_results
from grpo.evaluation.tasks import Task, find_task, load_task
from grpo.recipe.record import write_resolved
from grpo.report.progress import Progress
from grpo.report.records import read_rows
from rollout.engines.base import Engine, request_seed
from rollout.types import Group, Problem, Prompt, Sampling

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(slots=True)
class Work:
    """A task with what is to be asked and what was measured."""

    task: Task
    grader: Grader
    grading_options: dict[str, Any]
    prompts: list[Prompt]
    texts: list[str]  # of the prompts
    sampling: Sampling  # of one sample
    num_samples: int
    done: set[tuple[str, int]] = field(default_factory=set)
    timing: dict[str, float] = field(default_factory=dict)

    def missing(self, process_index: int = 0, num_processes: int = 1) -> list[Prompt]:
        """One prompt for each sample that is not there yet; of them this process's share."""
        requests = [
            Prompt(
                problem=Problem(id=f"{p.problem.id}#{sample}", prompt=p.problem.prompt, columns=p.problem.columns),
                token_ids=p.token_ids,
            )
            for p in self.prompts
            for sample in range(self.num_samples)
            if (p.problem.id, sample) not in self.done
        ]
        return requests[process_index::num_processes]

    def asked(self) -> dict[str, Any]:
        """Its part of asked.json."""
        return {
            "reward": self.task.config.reward,
            "options": self.grading_options,
            "num_samples": self.num_samples,
            "problem_ids": [problem.id for problem in self.task.problems],
        }


def run_evaluation(recipe: EvalRecipe) -> Results:
    """Evaluate a checkpoint as a recipe says; returns the figures. Everything is written to `output`.

    Raises:
        ValueError: a task, column, template or model is wrong; nothing was generated yet.
    """
    from accelerate import Accelerator

    processes = Accelerator()
    folder = recipe.output_dir
    work = prepare(recipe)
    resume(recipe, work)
    processes.wait_for_everyone()  # until all have read what is there
    if processes.is_main_process:
        try:
            write_resolved(recipe, folder)
            write_problems(folder, [(w.task.name, w.task.problems) for w in work])
            write_asked(folder, fingerprint(recipe.model), {w.task.name: w.asked() for w in work})
        except OSError as error:
            raise ValueError(f"output={recipe.output!r} cannot be written: {error}. Choose another folder.") from error
    try:
        if any(w.missing() for w in work):
            with closing(_engine(recipe, work, processes.device)) as engine:
                for w in work:
                    _answer(w, engine, processes, folder)
        processes.wait_for_everyone()
        if processes.is_main_process:
            rows = merge_samples(folder, [problem.id for w in work for problem in w.task.problems])
            write_results(recipe, work, rows)
        processes.wait_for_everyone()
        return Results.read(folder)
    finally:
        for w in work:
            w.grader.close()


def run_stage(recipe: EvalRecipe) -> Path:
    """As `run_evaluation`, for a recipe that is launched like any other: prints the table, returns the folder."""
    results = run_evaluation(recipe)
    if os.environ.get("RANK", "0") == "0":
        print(markdown(results.model, results.protocol, results.tasks))
        print(f"page: {results.folder / PAGE_FILE}")
    return results.folder


def prepare(recipe: EvalRecipe) -> list[Work]:
    """Tasks, graders and prompts; what can be wrong before a model is loaded is found here."""
    data_dir = None if recipe.data_dir is None else Path(recipe.data_dir)
    tasks = [load_task(name, recipe.define_tasks, data_dir=data_dir, limit=recipe.limit) for name in recipe.tasks]
    names = [task.name for task in tasks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"tasks={recipe.tasks}: {twice[0]!r} is there more than once. Name it once; the name of a file is that of "
            "its task, so rename one of two."
        )
    for name, task in zip(recipe.tasks, tasks, strict=True):
        _say_unchosen(task, find_task(name, recipe.define_tasks)[1])
        check_columns(task.name, task.config.reward, task.config.options, task.problems[0].columns)
        if recipe.engine.name == "reference" and not task.references:
            raise ValueError(
                f"task {task.name!r} has no reference answers: its entry lacks the field `reference`, or the dataset a "
                "column that it names."
            )
    ask = _asker(recipe)
    work = []
    for task in tasks:
        prompts, texts = ask(task)
        sampling = recipe.sampling_of_one(stop_strings(str(recipe.template)))
        options = _grading_options(recipe, task)
        grader = build_grader(task.config.reward, options)
        _say_unreadable(task, grader)
        work.append(Work(task, grader, options, prompts, texts, sampling, recipe.num_samples(task.config)))
    return work


def _say_unchosen(task: Task, entry: TaskConfig) -> None:
    """Say that a local copy lacks a column by which rows are chosen: it may be of other problems than the Hub's."""
    missing = [column for column in entry.where if column not in task.config.where]
    if missing and os.environ.get("RANK", "0") == "0":
        print(f"{task.name}: the local copy has no column {', '.join(missing)}, so all of its rows are taken.")


def _say_unreadable(task: Task, grader: Grader) -> None:
    """Name the problems that no checker can judge, before time is spent on them."""
    found = {problem.id: why for problem in task.problems if (why := grader.unreadable(problem))}
    if len(found) == len(task.problems):
        raise ValueError(f"task {task.name!r}: not one problem can be judged. {next(iter(found.values()))}")
    if found and os.environ.get("RANK", "0") == "0":
        listed = "; ".join(f"{key}: {why}" for key, why in list(found.items())[:5])
        count = f"{len(found)} of {len(task.problems)} problems"
        print(f"{task.name}: {count} cannot be judged and will count in no share: {listed}")


def resume(recipe: EvalRecipe, work: Sequence[Work]) -> None:
    """Mark the samples that an earlier call left in `output`.

    Raises:
        ValueError: they were drawn under other settings, from other prompts, or judged otherwise.
    """
    folder = recipe.output_dir
    if (folder / "recipe.yaml").is_file():
        before = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        now = recipe.model_dump(mode="json")
        changed = [
            f"{name}: {_at(before, name)!r} there, {_at(now, name)!r} now"
            for name in DECIDES_SAMPLES
            if _at(before, name) != _at(now, name)
        ]
        if changed:
            raise ValueError(
                f"output={recipe.output!r} holds samples drawn under other settings ({'; '.join(changed)}). "
                "Choose another output, or the settings of then."
            )
    rows, asked = read_samples(folder), read_asked(folder)
    if rows and (weights := fingerprint(recipe.model)) != asked["weights"]:
        raise ValueError(
            f"output={recipe.output!r} holds samples of other weights than those that are now in "
            f"{recipe.model.model_name_or_path!r} ({asked['weights']} there, {weights} now). Choose another output."
        )
    before_tasks = Results.read(folder).tasks if (folder / RESULTS_FILE).is_file() else {}
    problems = {row["problem_id"]: as_line(row) for row in read_rows(folder / PROBLEMS_FILE)}
    for w in work:
        w.timing = before_tasks.get(w.task.name, {}).get("timing", {})
        judge = {"reward": w.task.config.reward, "options": w.grading_options}
        judged = {name: asked["tasks"].get(w.task.name, judge)[name] for name in judge}
        if judged != judge:
            raise ValueError(
                f"output={recipe.output!r}: the samples of {w.task.name} were judged by {judged}, now it would be "
                f"{judge}. Judge them again first (grpo regrade), or choose another output."
            )
        texts = {prompt.problem.id: text for prompt, text in zip(w.prompts, w.texts, strict=True)}
        now = {row["problem_id"]: as_line(row) for row in problem_rows(w.task.name, w.task.problems)}
        for row in rows:
            key = row["problem_id"]
            if key in texts and row["sample"] < w.num_samples:
                if row["prompt"] != texts[key] or problems.get(key) != now[key]:
                    raise ValueError(
                        f"output={recipe.output!r}: {key} was asked otherwise there, or had other columns (its gold "
                        "answer is one), so the dataset or the task has changed since. Choose another output."
                    )
                w.done.add(key_of(row))


# What a resumed evaluation must have in common with the one it goes on with. Tasks, limit and num_samples may grow.
DECIDES_SAMPLES = (
    "stage",
    "model",
    "template",
    "system_prompt",
    "engine.name",
    "engine.max_model_len",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.top_k",
    "sampling.max_completion_length",
    "sampling.seed",
)


def _at(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values.get(part, {})
    return values


def _asker(recipe: EvalRecipe) -> Callable[[Task], tuple[list[Prompt], list[str]]]:
    """What turns a task into prompts and their texts."""
    if recipe.engine.name == "reference":  # nobody reads them
        return lambda task: (
            [Prompt(problem=problem, token_ids=[]) for problem in task.problems],
            [str(problem.prompt) for problem in task.problems],
        )
    tokenizer = load_tokenizer(recipe.model)
    return lambda task: task_prompts(task, tokenizer, template=str(recipe.template), system_prompt=recipe.system_prompt)


def _grading_options(recipe: EvalRecipe, task: Task) -> dict[str, Any]:
    """A few-shot prompt asks for no form of the answer, so it is read from free text."""
    free = task.config.reward == "accuracy" and recipe.template == "few_shot"
    return {**({"answer_in": "free_text"} if free else {}), **task.config.options}


def _engine(recipe: EvalRecipe, work: Sequence[Work], device: Any) -> Engine:
    if recipe.engine.name == "reference":
        return ReferenceEngine({key: text for w in work for key, text in w.task.references.items()})
    longest = max(len(prompt.token_ids) for w in work for prompt in w.prompts)
    return build_engine(recipe, max_model_len=context_length(recipe, longest), device=device)


def _answer(w: Work, engine: Engine, processes: "Accelerator", folder: Path) -> None:
    """Generate and judge what is missing of a task, this process's share of it."""
    requests = w.missing(processes.process_index, processes.num_processes)
    texts = dict(zip((prompt.problem.id for prompt in w.prompts), w.texts, strict=True))
    problems = {prompt.problem.id: prompt.problem for prompt in w.prompts}
    seeds = {request.problem.id: request_seed(w.sampling, request) for request in requests}
    clock = Clock()
    with (
        SampleWriter(folder, processes.process_index) as writer,
        Progress(w.task.name, len(requests), shown=processes.is_main_process) as progress,
    ):
        for graded in w.grader.grade(clock.over(engine.generate(requests, w.sampling))):
            request_id = graded.group.problem.id
            problem_id, _, sample = request_id.rpartition("#")
            rows = sample_rows(
                graded,
                task=w.task.name,
                problem_id=problem_id,
                first_sample=int(sample),
                seed=seeds[request_id],
                prompt=texts[problem_id],
                gold=w.grader.gold(problems[problem_id]),
            )
            writer.write(rows)
            progress.advance(rows)
    shares = gather_object([clock.timing()])
    if any(share["generated_tokens"] for share in shares):
        w.timing = merge_timing(shares)


@dataclass(slots=True)
class Clock:
    """Times generation apart from what grading takes after it."""

    start: float = field(default_factory=time.perf_counter)
    end: float = 0.0
    tokens: int = 0

    def over(self, groups: Iterable[Group]) -> Iterator[Group]:
        for group in groups:
            self.tokens += sum(len(completion.token_ids) for completion in group.completions)
            self.end = time.perf_counter()
            yield group

    def timing(self) -> dict[str, float]:
        """Tokens, seconds until the last was generated, and seconds that grading took after that."""
        generating = max(self.end - self.start, 0.0)
        grading = time.perf_counter() - self.start - generating
        return {"generated_tokens": self.tokens, "seconds": generating, "grading_tail_seconds": grading}


def merge_timing(shares: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of all processes: tokens add up, the slowest counts."""
    tokens = sum(share["generated_tokens"] for share in shares)
    seconds = max(share["seconds"] for share in shares)
    return {
        "generated_tokens": tokens,
        "seconds": seconds,
        "grading_tail_seconds": max(share["grading_tail_seconds"] for share in shares),
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }
