"""A run's page: one self-contained HTML file, built from the run's folder.

    write_page(Path("runs/r1_zero"))  # -> runs/r1_zero/index.html

It opens from disk, loads no external resources (a content security policy forbids it) and stays below about 2 MB for
any run length: curves are thinned to MAX_POINTS, the expert load to MAX_LOAD_CELLS, samples to MAX_SAMPLE_CHARS.
metrics.jsonl and samples.jsonl keep the full data. Model output is untrusted: it enters as escaped JSON and is shown
through textContent, never as markup.
"""

import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from grpo.report.diagnosis.run import Diagnosis, diagnose_rows
from grpo.report.records import (
    ERROR_FILE,
    METRICS_FILE,
    RECIPE_FILE,
    SAMPLES_FILE,
    Comparison,
    Estimate,
    Row,
    compare,
    held_out_counts,
    is_evaluation,
    read_rows,
)

PAGE_FILE = "index.html"
MAX_POINTS = 400  # per curve
MAX_LOAD_COLUMNS = 160  # in the heat map
MAX_LOAD_CELLS = 100_000  # columns x layers x experts
MAX_SAMPLE_CHARS = 1_000_000  # from samples.jsonl
MIN_SAMPLE_STEPS = 8  # texts are shortened until this many steps fit


def write_page(run_dir: Path) -> Path:
    """Build `index.html` from `run_dir`'s metrics.jsonl, and from its samples, recipe and error if they exist."""
    if not (run_dir / METRICS_FILE).exists():
        raise ValueError(f"{run_dir} has no {METRICS_FILE}, so it is not a run's folder. Give trainer.output_dir.")
    recipe_path = run_dir / RECIPE_FILE
    recipe_text = recipe_path.read_text(encoding="utf-8") if recipe_path.exists() else ""
    page = render(
        name=run_dir.resolve().name,
        recipe_text=recipe_text,
        rows=list(read_rows(run_dir / METRICS_FILE)),
        samples=thin_samples(run_dir / SAMPLES_FILE),
        error=next(read_rows(run_dir / ERROR_FILE), None),
    )
    path = run_dir / PAGE_FILE
    draft = path.with_name(PAGE_FILE + ".draft")
    draft.write_text(page, encoding="utf-8")
    draft.replace(path)  # a browser never sees a partial page
    return path


def render(
    *, name: str, recipe_text: str, rows: Sequence[Row], samples: Sequence[Row], error: Row | None = None
) -> str:
    """The page as a string; `error` is the row of error.json."""
    recipe: dict[str, Any] = yaml.safe_load(recipe_text) or {}
    training = [row for row in rows if not is_evaluation(row)]
    evaluations = [row for row in rows if is_evaluation(row)]
    data = {
        "train": thin_curves(training),
        "eval": thin_curves(evaluations),
        "load": thin_load(training),
        "counts": "; ".join(held_out_counts(evaluations[-1])) if evaluations else "",
        "samples": samples,
        "recipe": recipe_text,
    }
    parts = {
        "title": html.escape(recipe.get("report", {}).get("run_name") or name),
        "facts": html.escape(_facts(recipe, rows)),
        "banners": "\n".join([*_banners(error), diagnosis_section([diagnose_rows(rows, recipe)])]),
        "cards": "\n".join(_cards(compare(rows), training, is_stopped=error is not None)),
        "css": asset("page.css"),
        "js": asset("page_charts.js") + asset("page.js"),
        "data": embed(data),
    }
    return fill(asset("page_run.html"), parts)


def fill(main: str, parts: Mapping[str, str]) -> str:
    """Insert `main` into page.html, then replace each {{name}} by its part, all HTML."""
    shell = asset("page.html").replace("{{main}}\n", main)
    # In one pass, so text inside a part that looks like a placeholder is kept.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], shell)


def thin_curves(rows: Sequence[Row]) -> dict[str, Any]:
    """{"steps": [1, 2, …], "series": {"reward": [0.1, null, …], …}}, at most MAX_POINTS long.

    Neighbouring steps are merged: each metric by its mean, those named max or min by their extreme.
    """
    size = max(1, math.ceil(len(rows) / MAX_POINTS))
    buckets = [rows[start : start + size] for start in range(0, len(rows), size)]
    keys = sorted({key for row in rows for key, value in row.items() if isinstance(value, int | float)} - {"step"})
    return {
        "steps": [bucket[-1]["step"] for bucket in buckets],
        "series": {key: [_merge(key, bucket) for bucket in buckets] for key in keys},
    }


def _merge(key: str, bucket: Sequence[Row]) -> float | None:
    values = [row[key] for row in bucket if row.get(key) is not None]
    if not values:
        return None
    if "max" in key.rpartition("/")[2]:
        return _short(max(values))
    if "min" in key.rpartition("/")[2]:
        return _short(min(values))
    return _short(sum(values) / len(values))


def thin_load(rows: Sequence[Row]) -> dict[str, Any] | None:
    """`moe/load` (layers x experts, shares of routed tokens) as a percentage of a balanced expert's share.

    {"steps": [1, 2], "loads": [[[100, 96, 104, 100]], [[…]]]}: loads[column][layer][expert]; None without MoE.
    """
    loaded = [row for row in rows if row.get("moe/load")]
    if not loaded:
        return None
    cells = sum(len(layer) for layer in loaded[0]["moe/load"])
    columns = max(2, min(MAX_LOAD_COLUMNS, MAX_LOAD_CELLS // cells))
    picked = [loaded[index] for index in _spread(len(loaded), columns)]
    return {
        "steps": [row["step"] for row in picked],
        "loads": [
            [[round(100 * share * len(layer)) for share in layer] for layer in row["moe/load"]] for row in picked
        ],
    }


def thin_samples(path: Path) -> list[Row]:
    """Sample rows from as many evenly spaced steps as fit MAX_SAMPLE_CHARS, always with the first and last."""
    completions: dict[int, int] = {}  # by step
    for row in read_rows(path):
        completions[row["step"]] = completions.get(row["step"], 0) + len(row["completions"])
    if not completions:
        return []
    steps = sorted(completions)
    wanted = min(MIN_SAMPLE_STEPS, len(steps))
    # 250: characters a completion takes in addition to its text
    text_limit = max(200, MAX_SAMPLE_CHARS // (wanted * max(completions.values())) - 250)
    sizes = dict.fromkeys(steps, 0)
    for row in _shortened(path, text_limit):
        sizes[row["step"]] += len(json.dumps(row))
    count = len(steps)
    while count > 2 and sum(sizes[steps[index]] for index in _spread(len(steps), count)) > MAX_SAMPLE_CHARS:
        count = max(2, min(count - 1, int(count * 0.9)))
    chosen = {steps[index] for index in _spread(len(steps), count)}
    return [row for row in _shortened(path, text_limit) if row["step"] in chosen]


def _shortened(path: Path, limit: int) -> Iterator[Row]:
    for row in read_rows(path):
        for completion in row["completions"]:
            completion["text"] = middle_out(completion["text"], limit)
        if isinstance(row["prompt"], str):
            row["prompt"] = middle_out(row["prompt"], 4 * limit)
        yield row


def middle_out(text: str, limit: int) -> str:
    """Shorten a text to about `limit` characters: its beginning and end, with a note of how much is omitted."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit - limit * 2 // 3
    return f"{text[:head]}\n[… {len(text) - limit} characters omitted; samples.jsonl has them …]\n{text[-tail:]}"


def _spread(length: int, count: int) -> list[int]:
    """`count` evenly spaced indices of 0..length-1, including first and last."""
    if length <= count:
        return list(range(length))
    return sorted({round(index * (length - 1) / (count - 1)) for index in range(count)})


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def embed(data: Mapping[str, Any]) -> str:
    """JSON that cannot close its script element, whatever strings it contains."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str, package: str = "grpo.report.page") -> str:
    """The text of a package's file."""
    return (files(package) / name).read_text(encoding="utf-8")


def _facts(recipe: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The line below the title."""

    def get(section: str, field: str) -> Any:
        return recipe.get(section, {}).get(field)

    last = max((row["step"] for row in rows), default=0)
    model = str(get("model", "model_name_or_path"))
    max_steps = get("trainer", "max_steps")
    facts = [
        f"model {Path(model).name if model.startswith('/') else model}",  # a Hub name in full, a folder's last part
        f"{get('data', 'task') or get('data', 'dataset_name')}",
        f"{get('rollout', 'problems_per_step')} problems × {get('rollout', 'num_generations')} completions per step",
        f"loss {get('algorithm', 'loss_type')}",
        f"β {get('algorithm', 'beta')}",
        f"learning rate {get('trainer', 'learning_rate')}",
        f"seed {get('trainer', 'seed')}",
    ]
    steps = f"step {last} of {max_steps}" if max_steps and last < max_steps else f"{last} steps"
    minutes = sum(value or 0 for row in rows for key, value in row.items() if key.startswith("time/")) / 60
    known = [fact for fact in facts if "None" not in fact.split()]
    return " · ".join([*known, steps, f"{minutes:.1f} minutes"])


def _banners(error: Row | None) -> Iterator[str]:
    """The error that stopped the run."""
    if error is not None:
        text = html.escape(error["error"])
        yield f'<p class="banner error" role="alert"><b>Stopped after step {error["step"]}.</b> {text}</p>'


def diagnosis_section(diagnoses: Sequence[Diagnosis]) -> str:
    """Findings of a run, or of a pipeline's stages with their names; remedy and number are folded away."""
    looked = [one for one in diagnoses if one.looked_at]
    if not looked:
        return ""
    parts = []
    for diagnosis in looked:
        stage = f"{html.escape(diagnosis.name)}: " if len(diagnoses) > 1 else ""
        for one in diagnosis.findings:
            change = f" <code>{html.escape(one.overrides)}</code>" if one.overrides else ""
            parts.append(
                f'<details class="{one.level}"><summary>{stage}{html.escape(one.says)}</summary>'
                f'<p class="remedy">{html.escape(one.remedy)}{change}</p>'
                f"<p>{one.steps}: {html.escape(one.figure)}</p></details>"
            )
    if not parts:
        names = [f"{one.name}: " if len(diagnoses) > 1 else "Looked at: " for one in looked]
        texts = [f"{name}{', '.join(map(str, one.looked_at))}." for name, one in zip(names, looked, strict=True)]
        paragraphs = "".join(f"<p>{html.escape(text)}</p>" for text in texts)
        parts = [f"<details><summary>Nothing stands out.</summary>{paragraphs}</details>"]
    return f'<section class="diagnosis" id="diagnosis"><h2>Diagnosis</h2>{"".join(parts)}</section>'


def _cards(comparisons: Sequence[Comparison], training: Sequence[Row], *, is_stopped: bool) -> Iterator[str]:
    """Headline cards: pass@1, the largest pass@k, cons@k and length, base -> trained; reward, first -> last step.

    For each task, only pass@1. The last finite reward is marked as such if a null follows or an error stopped the run.
    """
    by_name = {comparison.name: comparison for comparison in comparisons}
    passes = [name for name in by_name if name.startswith("pass@")]
    shown = list(dict.fromkeys([*passes[:1], *passes[-1:]]))
    shown += [name for name in by_name if name.endswith("/pass@1")]
    shown += [name for name in by_name if name.startswith("cons@")]
    shown += [name for name in ("mean_length",) if name in by_name]
    for name in shown:
        comparison = by_name[name]
        label = {"mean_length": "mean length, tokens"}.get(name, f"held-out {name}")
        yield _card(label, name, comparison.base, comparison.trained)
    rewards = [(row["step"], row["reward"]) for row in training if row.get("reward") is not None]
    if rewards:
        step, last = rewards[-1]
        stale = f"last finite value, step {step}" if is_stopped or step < training[-1]["step"] else ""
        yield _card("training reward", "reward", Estimate(value=rewards[0][1]), Estimate(value=last), stale)


def _card(label: str, name: str, base: Estimate, trained: Estimate | None, stale: str = "") -> str:
    """stale: why the last value is not a result; it is then not in bold."""

    def number(estimate: Estimate) -> str:
        return f"{estimate.value:.1f}" if name.endswith("length") else f"{estimate.value:.3f}"

    def interval(estimate: Estimate) -> str:
        if estimate.low is None or estimate.high is None:
            return ""
        return f"<span>{estimate.low:.3f}–{estimate.high:.3f}</span>"

    last = trained or base
    arrow = "" if trained is None else f'<span class="from">{number(base)} →</span> '
    note = stale or " → ".join(filter(None, [interval(base), interval(last) if trained else ""]))
    tag = "span" if stale else "strong"
    return (
        f'<div class="card"><div class="label">{html.escape(label)}</div>'
        f'<div class="figure">{arrow}<{tag}>{number(last)}</{tag}></div><div class="note">{note}</div></div>'
    )
