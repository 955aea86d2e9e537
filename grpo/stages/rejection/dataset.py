"""The kept samples as a Hugging Face dataset: data/train-*.parquet, a dataset card and filters.json."""

import json
import shutil
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from grpo.recipe.config import EngineSection
from grpo.recipe.errors import RunError
from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.stages.rejection.candidates import FOLDER, Candidates
from grpo.stages.rejection.rewrite import DECIDES_ANSWER
from grpo.stages.rejection.select import Counts, select
from grpo.stages.rejection.verify import ORIGINAL, SecondVerification

COUNTS_FILE = "filters.json"
DATA = "data"
_FILE = "train-00000-of-00001.parquet"


def write_dataset(recipe: RejectionRecipe) -> Counts:
    """Filter and select the candidates in the run's folder, rewrite them if the recipe says so, and write the dataset.

    Raises:
        RunError: no sample is left (the message says which filter took how many), or the model that rewrites does not
            answer.
    """
    folder = recipe.output_dir
    candidates = Candidates(folder / FOLDER)
    kept, counts = select(candidates, recipe.filters, recipe.select, recipe.seed)
    if not counts.kept:
        raise RunError(_nothing_left(counts, folder))
    partial = folder / f"{DATA}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    path, provenance = partial / _FILE, {"model": recipe.model.model_name_or_path, "seed": recipe.seed}
    if recipe.rewrite is None:
        _write_rows(candidates.at(kept), path, **provenance)
    else:
        second = SecondVerification(recipe)
        with closing(second.tables(candidates, kept)) as tables:
            _write_rows(tables, path, **provenance)
        counts = second.counts(counts)
        if not counts.kept:
            raise RunError(_nothing_left(counts, folder))
    counts_text = json.dumps(asdict(counts), indent=2, ensure_ascii=False) + "\n"
    shutil.rmtree(folder / DATA, ignore_errors=True)
    partial.rename(folder / DATA)
    (folder / "README.md").write_text(_card(recipe, counts), encoding="utf-8")
    (folder / COUNTS_FILE).write_text(counts_text, encoding="utf-8")
    return counts


def _write_rows(tables: Iterable[pa.Table], path: Path, *, model: str, seed: int) -> None:
    """Write kept rows, one row group per batch; no file if there are none."""
    writer: pq.ParquetWriter | None = None
    for table in tables:
        rows = table.drop_columns(["finished"])
        rows = rows.append_column("model", pa.array([model] * len(rows), pa.string()))
        rows = rows.append_column("seed", pa.array([seed] * len(rows), pa.int64()))
        if len(rows):
            writer = writer or pq.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows)
    if writer is not None:
        writer.close()


def recipe_hash(recipe: RejectionRecipe) -> str:
    """Of all that decides which samples are kept; not of where they are written and how fast."""
    free = {"output", "resume", "num_reward_workers", "reward_timeout"}
    decides = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in free}
    if recipe.rewrite is not None:
        decides["rewrite"] = {key: decides["rewrite"][key] for key in DECIDES_ANSWER}
    decides["rollout"] = {k: v for k, v in decides["rollout"].items() if k not in EngineSection.model_fields}
    return sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


def _nothing_left(counts: Counts, folder: Path) -> str:
    took = ", ".join(f"{r.by} took {r.removed} of {r.seen}" for r in counts.removals if r.removed)
    return (
        f"rejection kept none of {counts.sampled} samples of {counts.problems} problems: "
        f"{took or 'nothing was sampled'}. Loosen these filters and run again (the samples in {folder / FOLDER} are "
        "used again), or start a run with more samples per problem (rollout.num_generations) or a stronger model."
    )


def _card(recipe: RejectionRecipe, counts: Counts) -> str:
    """The dataset card. Without `configs`: with them, `load_dataset` would go on to read a folder's first rows from its
    cache after the files have changed. It finds data/train-00000-of-00001 by its name.
    """
    rollout, data = recipe.rollout, recipe.data
    removals = "\n".join(f"| {r.by} | {r.seen} | {r.removed} | {r.seen - r.removed} |" for r in counts.removals)
    sources = "\n".join(f"| {name} | {kept} |" for name, kept in counts.sources.items())
    written, original, rewritten_by = "as the model wrote it", "", ""
    if recipe.rewrite is not None:
        written, original = "rewritten", f"`{ORIGINAL}` (as the model wrote it), "
        rewritten_by = f"| rewritten by | {recipe.rewrite.model} |\n"
    problems = data.task or f"{data.dataset_name}, split {data.dataset_split}"
    return f"""---
tags:
- rejection-sampling
---

# {counts.kept} samples of {counts.problems_covered} problems, by rejection sampling

| | |
|---|---|
| model | {recipe.model.model_name_or_path} |
| problems | {problems} |
| sampling | {rollout.num_generations} per problem, temperature {rollout.temperature:g}, top_p {rollout.top_p:g}, \
at most {rollout.max_completion_length} tokens |
| rewards | {", ".join(reward.name for reward in recipe.rewards)} |
| seed | {recipe.seed} |
{rewritten_by}| recipe | recipe.yaml (hash {recipe_hash(recipe)}) |
| sampled | {counts.sampled} samples of {counts.problems} problems |

Columns: `prompt`, `completion` ({written}, with what the prompt began of it), `data_source`, `problem_id`,
`sample` (its number among the problem's samples), `num_tokens`, one per reward (`rewards/<name>`), \
{original}`model`, `seed`.

| filter | samples before | removed | left |
|---|---:|---:|---:|
{removals}

| source | samples kept |
|---|---:|
{sources}
"""
