"""Resuming an evaluation: which samples exist already, and whether they may be combined with new ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.evaluation.config import EvalRecipe
from grpo.evaluation.engines import fingerprint
from grpo.evaluation.results.graded import key_of
from grpo.evaluation.results.samples import PROBLEMS_FILE, as_line, problem_rows, read_manifest, read_samples
from grpo.evaluation.results.store import Results
from grpo.evaluation.work import Work
from grpo.report.records import RECIPE_FILE, Row, read_rows

# Settings that samples depend on, so they must not change on resume. Tasks, limit and num_samples may grow.
SAMPLE_SETTINGS = (
    "stage",
    "model",
    "template",
    "system_prompt",
    "chat_template_kwargs",
    "engine.name",
    "engine.base_url",
    "engine.vllm_options",
    "engine.max_model_len",
    "sampling.temperature",
    "sampling.top_p",
    "sampling.top_k",
    "sampling.max_completion_length",
    "sampling.seed",
)


def resume(recipe: EvalRecipe, work: Sequence[Work]) -> None:
    """Mark the samples that an earlier run left in `output` as done.

    Raises:
        ValueError: they were sampled with other settings, weights or prompts, or graded differently.
    """
    folder = recipe.output_dir
    _check_settings(recipe)
    rows, manifest = read_samples(folder), read_manifest(folder)
    if rows and not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"output={recipe.output!r} has samples of another evaluation, graded again. Choose another output."
        )
    if rows and (weights := fingerprint(recipe.model)) != manifest["weights"]:
        raise ValueError(
            f"output={recipe.output!r} has samples from other weights than those now in "
            f"{recipe.model.model_name_or_path!r} (hash {manifest['weights']}, now {weights}). Choose another output."
        )
    earlier = _earlier_tasks(folder)
    problems = {row["problem_id"]: as_line(row) for row in read_rows(folder / PROBLEMS_FILE)}
    for w in work:
        w.timing = earlier.get(w.task.name, {}).get("timing", {})
        _check_grading(recipe, w, manifest["tasks"].get(w.task.name))
        _mark_done(recipe, w, rows, problems)


def _earlier_tasks(folder: Path) -> dict[str, Any]:
    """Of results.json, which has the timing so far; without the file, or with one that was cut off, none."""
    try:
        return Results.read(folder).tasks
    except ValueError:
        return {}


def _check_settings(recipe: EvalRecipe) -> None:
    path = recipe.output_dir / RECIPE_FILE
    if not path.is_file():
        return
    before, now = yaml.safe_load(path.read_text(encoding="utf-8")), recipe.model_dump(mode="json")
    changed = [
        f"{name}: {_at(before, name)!r}, now {_at(now, name)!r}"
        for name in SAMPLE_SETTINGS
        if _at(before, name) != _at(now, name) and (name != "engine.base_url" or recipe.engine.name == "server")
    ]
    if changed:
        raise ValueError(
            f"output={recipe.output!r} has samples from other settings ({'; '.join(changed)}). "
            "Choose another output, or restore the settings."
        )


def _check_grading(recipe: EvalRecipe, w: Work, earlier: Mapping[str, Any] | None) -> None:
    """ValueError if a task's samples were graded by another reward, or with other options."""
    now = {"reward": w.task.config.reward, "options": w.grading_options}
    before = {name: (earlier or now)[name] for name in now}
    if before != now:
        raise ValueError(
            f"output={recipe.output!r}: the samples of {w.task.name} were graded by {before}, now by {now}. "
            "Regrade them first (grpo regrade), or choose another output."
        )


def _mark_done(recipe: EvalRecipe, w: Work, rows: Sequence[Row], problems: Mapping[str, str]) -> None:
    """Mark this task's samples as done; ValueError if their prompt or their problem has changed.

    problems: problem id -> line of problems.jsonl.
    """
    texts = {prompt.problem.id: text for prompt, text in zip(w.prompts, w.texts, strict=True)}
    now = {row["problem_id"]: as_line(row) for row in problem_rows(w.task.name, w.task.problems)}
    for row in rows:
        key = row["problem_id"]
        if key in texts and row["sample"] < w.num_samples:
            if row["prompt"] != texts[key] or problems.get(key) != now[key]:
                raise ValueError(
                    f"output={recipe.output!r}: {key} was sampled from a different prompt or had different columns "
                    "(such as its reference answer), so the dataset or the task has changed. Choose another output."
                )
            w.done.add(key_of(row))


def _at(values: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        values = values.get(part, {})
    return values
