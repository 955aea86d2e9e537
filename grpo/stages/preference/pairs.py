"""Stage `pairs`: preference pairs from a model's own candidates.

    problems -> engine -> candidates -> judge, order swapped -> margin -> chunk on disk
    all chunks -> as many pairs with the longer as with the shorter answer chosen -> data/train-*.parquet

A chunk is written when it is complete, with the state of the problem stream after it: a run that was killed continues
with the next one, and ends with the same pairs. Left out: candidates of several models.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.preference import JudgeEndpoint, PairsConfig, PairsRecipe
from grpo.report.records import METRICS_FILE, cut_after
from grpo.stages import parts
from grpo.stages.checks.prompts import check_prompts
from grpo.stages.preference.judging import Comparison, Judge, check_judge, load_judge, mean_scores
from grpo.stages.problems import stream_of
from grpo.stages.rejection.candidates import question
from rewards.text import after_thinking
from rollout.data.stream import ProblemStream
from rollout.engines.base import Engine, load_tokenizer
from rollout.types import Group, Sampling

CHUNKS = "chunks"
COUNTS_FILE = "counts.json"
Pair = dict[str, Any]


def run_pairs(recipe: PairsRecipe) -> Path:
    """Write a dataset's folder with the columns prompt, chosen, rejected, judge_mean, problem_id, and counts.json.

    Raises:
        RefusedError: a row cannot become a prompt, or all are too long; the judge lacks a column or returns a score out
            of range; the weights have changed since the run began; no pairs are left by the margin; or all have the
            longer answer chosen, or the shorter.
    """
    accelerator, model, rollout = parts.accelerator(recipe.model), recipe.model, recipe.rollout
    with parts.refusals():
        tokenizer = load_tokenizer(model.model_name_or_path, model.revision, model.trust_remote_code)
        problems = stream_of(recipe.data, tokenizer, seed=recipe.seed)
        check_prompts("data", problems.source, problems.prompter, accelerator)
        check_judge(recipe.judge, problems.first(1)[0].problem.columns)
        output = recipe.output_dir
        done = sorted((output / CHUNKS).glob("*.jsonl"))
        head = _read(done[-1])[0] if done else None
        weights = parts.same_weights(model, output, head)
        if head:
            problems.load_state_dict(head["stream"])
    if accelerator.is_main_process:
        cut_after(output / METRICS_FILE, len(done))
    chunks = range(len(done), -(-recipe.pairs.num_problems // recipe.pairs.chunk_size))
    if chunks:
        with parts.refusals():
            engine = parts.engine(
                rollout.engine, rollout, model, max_model_len=recipe.max_model_len, device=accelerator.device
            )
        with closing(engine):
            for index in chunks:
                _write_chunk(recipe, output, index, problems, engine, load_judge(recipe.judge), weights, accelerator)
    if accelerator.is_main_process:
        _finish(recipe, output)
    accelerator.wait_for_everyone()
    return output


def _write_chunk(
    recipe: PairsRecipe,
    output: Path,
    index: int,
    problems: ProblemStream,
    engine: Engine,
    judge: Judge,
    weights: str | None,
    accelerator: Accelerator,
) -> None:
    """Sample and compare one chunk, every process its share; the main process writes it."""
    settings, rollout = recipe.pairs, recipe.rollout
    size = min(settings.chunk_size, settings.num_problems - index * settings.chunk_size)
    before = problems.num_dropped
    prompts = problems.take(size)
    sampling = Sampling(
        num_generations=rollout.num_generations,
        max_completion_length=rollout.max_completion_length,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        stop=tuple(rollout.stop),
        seed=recipe.seed,
        logprobs=False,
    )
    groups = list(engine.generate(prompts[accelerator.process_index :: accelerator.num_processes], sampling))
    concurrency = recipe.judge.max_concurrency if isinstance(recipe.judge, JudgeEndpoint) else 1
    pairs, counts = compared(groups, judge, settings, concurrency, recipe.seed)
    place = {prompt.problem.id: i for i, prompt in enumerate(prompts)}
    pairs = sorted(_gathered(pairs, accelerator), key=lambda pair: place[pair["problem_id"]])
    counts = sum(_gathered([counts], accelerator), Counter(skipped_rows=problems.num_dropped - before))
    if accelerator.is_main_process:
        head = {"stream": problems.state_dict(), "weights": weights, "counts": counts}
        path = output / CHUNKS / f"{index:06}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in [head, *pairs]), encoding="utf-8")
        row = {"step": index + 1, **counts}
        with (output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        draft.replace(path)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def compared(
    groups: Sequence[Group], judge: Judge, settings: PairsConfig, max_concurrency: int, seed: int
) -> tuple[list[Pair], Counter[str]]:
    """The pairs above the margin, and what became of everything else."""
    counts = Counter(problems=len(groups), candidates=sum(len(group.completions) for group in groups))
    asked = [pair for group in groups for pair in _comparisons(group, settings, counts, seed)]
    shown = [Comparison(pair.problem, _shown(pair.first, settings), _shown(pair.second, settings)) for pair in asked]
    means = mean_scores(judge, shown, settings.num_comparisons, max_concurrency)
    pairs = []
    for pair, seen, mean in zip(asked, shown, means, strict=True):
        if mean is None:
            counts["unreadable"] += 1
        elif abs(mean) <= settings.margin:
            counts["within_margin"] += 1
        else:
            pairs.append(_pair(pair, seen, mean))
    counts["compared"] += len(asked)
    return pairs, counts


def _comparisons(group: Group, settings: PairsConfig, counts: Counter[str], seed: int) -> Iterator[Comparison]:
    """Some pairs of the group's finished candidates with different texts, in random order."""
    finished = [completion.text for completion in group.completions if completion.finish_reason == "stop"]
    counts["truncated"] += len(group.completions) - len(finished)
    texts = {_shown(group.completion_prefix + text, settings): group.completion_prefix + text for text in finished}
    texts.pop("", None)
    if len(texts) < 2:
        counts["too_few_different"] += 1
        return
    rng = random.Random(f"{seed}/pairs/{group.problem.id}")
    pairs = list(combinations(texts.values(), 2))
    for pair in rng.sample(pairs, min(settings.pairs_per_problem, len(pairs))):
        first, second = rng.sample(pair, 2)
        yield Comparison(group.problem, first, second)


def _shown(text: str, settings: PairsConfig) -> str:
    """What judge and length count; empty if thinking is never closed."""
    return (after_thinking(text) or "").strip() if settings.summary_only else text


def _pair(pair: Comparison, seen: Comparison, mean: float) -> Pair:
    chosen, rejected = (pair.first, pair.second) if mean > 0 else (pair.second, pair.first)
    longer = (len(seen.first) - len(seen.second)) * (1 if mean > 0 else -1)
    if not isinstance(pair.problem.prompt, str):  # TRL's conversational format
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    return {
        "prompt": question(pair.problem),
        "chosen": chosen,
        "rejected": rejected,
        "judge_mean": abs(mean),
        "problem_id": pair.problem.id,
        "longer": longer,  # characters by which the chosen answer is longer
    }


def balanced(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """As many pairs with the longer answer chosen as with the shorter, so that length alone predicts nothing.

    The surplus is dropped at random; pairs of equal length stay.

    Raises:
        RefusedError: there is no balance, because all chosen answers are longer, or all shorter.
    """
    longer = [i for i, pair in enumerate(pairs) if pair["longer"] > 0]
    shorter = [i for i, pair in enumerate(pairs) if pair["longer"] < 0]
    if bool(longer) != bool(shorter):
        kind = "longer" if longer else "shorter"
        raise RefusedError(
            f"in all {len(longer or shorter)} pairs of different lengths the chosen answer is the {kind} one, so the "
            "reward model would learn length, and no balance is possible. Sample more candidates, or change the judge."
        )
    rng = random.Random(f"{seed}/balance")
    few = min(len(longer), len(shorter))
    kept = {*rng.sample(longer, few), *rng.sample(shorter, few)}
    return [pair for i, pair in enumerate(pairs) if pair["longer"] == 0 or i in kept]


def _finish(recipe: PairsRecipe, output: Path) -> None:
    from datasets import Dataset

    chunks = [_read(path) for path in sorted((output / CHUNKS).glob("*.jsonl"))]
    counts = sum((Counter(head["counts"]) for head, *_ in chunks), Counter())
    pairs = [pair for _, *rows in chunks for pair in rows]
    if not pairs:
        raise RefusedError(
            f"none of {counts['compared']} compared pairs is above pairs.margin={recipe.pairs.margin:g} "
            f"({dict(counts)}). Lower it, or sample more different candidates."
        )
    kept = balanced(pairs, recipe.seed)
    counts.update(dropped_for_length=len(pairs) - len(kept), kept=len(kept))
    rows = [{name: value for name, value in pair.items() if name != "longer"} for pair in kept]
    shutil.rmtree(output / "data", ignore_errors=True)  # of an interrupted attempt
    (output / "data").mkdir()
    Dataset.from_list(rows).to_parquet(output / "data" / "train-00000-of-00001.parquet")
    (output / COUNTS_FILE).write_text(json.dumps(counts, indent=2) + "\n", encoding="utf-8")
    print("  ".join(f"{name} {value}" for name, value in counts.items()), flush=True)


def _gathered(mine: list[Any], accelerator: Accelerator) -> list[Any]:
    return gather_object(mine) if accelerator.num_processes > 1 else mine


def _read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
