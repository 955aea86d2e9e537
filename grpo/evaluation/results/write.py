"""What an evaluation found, in results.json, as a Markdown table and as a page."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from grpo.evaluation.config import EvalRecipe
from grpo.evaluation.results.page import write_page
from grpo.evaluation.results.summary import by_problem, summarize, tabulate
from grpo.evaluation.results.table import markdown
from grpo.report.records import Row
from rollout.types import Problem

if TYPE_CHECKING:
    from grpo.evaluation.grading import Grader
    from grpo.evaluation.run import Work

RESULTS_FILE = "results.json"
TABLE_FILE = "results.md"


@dataclass(frozen=True, slots=True)
class Results:
    """Figures of an evaluation.

    Results(
        model="recipes/v3_base",
        protocol="deepseek-r1: template chat, temperature 0.6, top_p 0.95, up to 32768 tokens, seed 42",
        tasks={"math500": {
            "metrics": {"pass@1": 0.84, …},                # summary.summarize
            "groups": {"level": {"1": {…}, "2": {…}}},     # the same of each subject, level, …
            "unreadable": {"math500/3": "…"},              # problems that no checker can judge, and why
            "reward": "accuracy", "options": {},           # who judged
            "timing": {"generated_tokens": 51200, "seconds": 60.1, "tokens_per_second": 852.0, …},
            "dataset": {"name": "HuggingFaceH4/MATH-500", "split": "test", "files": [], "where": {},
                        "revision": "6e4e…", "sha": "9c0f…"},
        }},
        folder=Path("runs/eval"),
    )
    """

    model: str
    protocol: str
    tasks: dict[str, dict[str, Any]]
    folder: Path

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of a folder; ValueError where there are none."""
        path = folder / RESULTS_FILE
        if not path.is_file():
            raise ValueError(f"{folder} holds no {RESULTS_FILE}: it is not the folder of a finished evaluation.")
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(values["model"], values["protocol"], values["tasks"], folder)

    def write(self) -> None:
        values = {"model": self.model, "protocol": self.protocol, "tasks": self.tasks}
        path = self.folder / RESULTS_FILE
        path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (self.folder / TABLE_FILE).write_text(markdown(self.model, self.protocol, self.tasks), encoding="utf-8")


def write_results(recipe: EvalRecipe, work: Sequence["Work"], rows: Sequence[Row]) -> Results:
    """Sum up the samples of an evaluation and write results.json, results.md and index.html."""
    tasks, counted = {}, []
    for w in work:
        wanted = {problem.id: problem for problem in w.task.problems}
        mine = [row for row in rows if row["problem_id"] in wanted and row["sample"] < w.num_samples]
        if missing := len(wanted) * w.num_samples - len(mine):
            raise ValueError(
                f"{w.task.name}: {missing} samples are missing, and figures of the rest would be of another task. "
                "Call again to draw them; all processes must share the output folder."
            )
        counted += mine
        tasks[w.task.name] = {
            **task_results(mine, wanted, w.grader, groups=w.task.config.groups),
            "reward": w.task.config.reward,
            "options": w.grading_options,
            "timing": w.timing,
            "dataset": {
                "name": w.task.config.dataset_name or w.task.config.task,
                "split": w.task.config.dataset_split if w.task.config.dataset_name else "eval",
                "files": w.task.config.dataset_files,
                "where": w.task.config.where,
                "revision": None if recipe.data_dir else w.task.config.dataset_revision,
                "sha": _sha(w.task.problems),
            },
        }
    results = Results(recipe.model.model_name_or_path, _protocol(recipe), tasks, recipe.output_dir)
    results.write()
    write_page(results, counted)
    return results


def task_results(
    rows: Sequence[Row], problems: Mapping[str, Problem], grader: "Grader", *, groups: Sequence[str]
) -> dict[str, Any]:
    """Metrics, those of each group, and which problems cannot be judged."""
    samples = by_problem(rows)
    columns = {group: {key: problem.columns[group] for key, problem in problems.items()} for group in groups}
    unscored = [s[0]["problem_id"] for s in samples if all(row["verdict"] is None for row in s)]
    return {
        "metrics": summarize(samples, grader.voting),
        "groups": {group: tabulate(samples, column, grader.voting) for group, column in columns.items()},
        "unreadable": {key: grader.unreadable(problems[key]) or "the reward does not apply" for key in unscored},
    }


def _protocol(recipe: EvalRecipe) -> str:
    sampling = recipe.sampling
    samples = f", {sampling.num_samples} samples" if sampling.num_samples else ""
    return (
        f"{recipe.protocol}: template {recipe.template}, temperature {sampling.temperature:g}, "
        f"top_p {sampling.top_p:g}{samples}, up to {sampling.max_completion_length} tokens, seed {sampling.seed}, "
        f"engine {recipe.engine.name}"
    )


def _sha(problems: Sequence[Problem]) -> str:
    """Of questions and columns, so that two evaluations can be seen to have asked the same."""
    text = json.dumps([[p.id, p.prompt, p.columns] for p in problems], sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
