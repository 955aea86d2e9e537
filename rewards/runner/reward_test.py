"""`grpo reward-test`: a reward function on the rows of a file, in a worker process as in training: verdicts and timing.

A row of the .jsonl file has `completion`, a string or a list of one assistant message, or `completions`, a list of them
that is one group; the columns that the function reads; and, where wanted, `prompt`, `completion_ids`, `id`, and
`expected`: what the reward should be (null: not applicable), a list of that for `completions`.
"""

import inspect
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from rewards.runner.call import Call
from rewards.runner.score import Rewards, RewardSpec, ScoredGroup
from rewards.text import completion_text
from rollout.types import Completion, Group, Message, Problem

Encode = Callable[[str], list[int]]

_OWN = ("prompt", "completion", "completions", "completion_ids", "expected", "id")
_SHOWN = 20  # completions in the table
_SLOWEST = 3


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the file."""

    group: Group
    expected: list[float | None] | None  # None: the row says nothing


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the function said of one completion."""

    row_id: str
    text: str
    value: float | None
    expected: list[float | None]  # one, or none where the row says nothing
    seconds: float  # the row's, over its completions

    @property
    def agrees(self) -> bool:
        return all(_same(self.value, wanted) for wanted in self.expected)


def reward_test(
    function: str,
    path: Path,
    options: dict[str, Any],
    *,
    columns: dict[str, str],
    tokenizer: str | None,
    console: Console,
) -> bool:
    """Print what the function says of each completion, and how long it took; returns whether it is what was expected.

    options: keyword arguments of the function.
    columns: ours -> theirs, as in a recipe: {"solution": "gold"}.
    tokenizer: folder or Hub name; makes the completion_ids of rows that have none.

    Raises:
        ValueError: no such function, file or column, or the function failed; the message says what to do.
    """
    rewards = Rewards([RewardSpec(function=function, options=options)], num_workers=1)
    try:
        loaded, _ = Call(function, function, options, None).load()
        needs_ids = "completion_ids" in inspect.signature(loaded).parameters
        encode = _encoder(tokenizer)
        rows = [_row(place, row, columns, encode, needs_ids=needs_ids) for place, row in _read(path)]
        for row in rows:
            rewards.check(row.group.problem)
        scored = track(
            rewards.score(row.group for row in rows),
            "scoring",
            total=len(rows),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        results = list(scored)
    finally:
        rewards.close()
    return _report(rewards.names[0], rows, results, console)


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The rows, each with its place, "rows.jsonl:7"."""
    if path.suffix != ".jsonl" or not path.is_file():
        raise ValueError(f"{path} is no file that ends in .jsonl. Name a file with one row of JSON in each line.")
    rows = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append((f"{path.name}:{number}", dict(json.loads(line))))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path.name}:{number} is no object of JSON: {error}.") from error
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def _encoder(tokenizer: str | None) -> Encode | None:
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    return lambda text: loaded.encode(text, add_special_tokens=False)


def _row(place: str, row: dict[str, Any], columns: dict[str, str], encode: Encode | None, *, needs_ids: bool) -> Row:
    missing = sorted({theirs for theirs in columns.values() if theirs not in row})
    if missing:
        raise ValueError(f"{place} has no column {missing[0]!r}, which `columns` names. It has: {', '.join(row)}.")
    row = row | {ours: row[theirs] for ours, theirs in columns.items()}
    if ("completion" in row) == ("completions" in row):
        raise ValueError(f"{place} must have `completion` or `completions`, one of them. It has: {', '.join(row)}.")
    given = row["completions"] if "completions" in row else [row["completion"]]
    for completion in given:
        _check_completion(place, completion)
    texts = [completion_text(completion) for completion in given]
    ids = row.get("completion_ids")
    if ids is not None and "completion" in row:
        ids = [ids]
    if ids is None and encode is not None:
        ids = [encode(text) for text in texts]
    if ids is None and needs_ids:
        raise ValueError(f"{place} has no column 'completion_ids', which the function reads. Or give --tokenizer.")
    group = Group(
        problem=Problem(
            id=str(row.get("id", place)),
            prompt=_prompt(row.get("prompt"), conversational=not all(isinstance(c, str) for c in given)),
            columns={name: value for name, value in row.items() if name not in _OWN},
        ),
        prompt_ids=[],
        completions=[
            Completion(token_ids=tokens, logprobs=[], text=text, finish_reason="stop", policy_version=0)
            for text, tokens in zip(texts, ids or [[]] * len(texts), strict=True)
        ],
    )
    if "expected" not in row:
        return Row(group, None)
    expected = row["expected"] if "completions" in row else [row["expected"]]
    if len(expected) != len(given):
        raise ValueError(f"{place} has {len(expected)} values in `expected` for {len(given)} completions.")
    return Row(group, [None if value is None else float(value) for value in expected])


def _check_completion(place: str, completion: Any) -> None:
    is_message = isinstance(completion, list) and len(completion) == 1 and "content" in completion[0]
    if not isinstance(completion, str) and not is_message:
        raise ValueError(f"{place}: a completion is a string or a list of one message, not {str(completion)[:80]!r}.")


def _prompt(prompt: Any, *, conversational: bool) -> str | list[Message]:
    if isinstance(prompt, list):
        return prompt
    text = "" if prompt is None else str(prompt)
    return [{"role": "user", "content": text}] if conversational else text


def _same(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)


def _report(name: str, rows: Sequence[Row], results: Sequence[ScoredGroup], console: Console) -> bool:
    verdicts = [
        Verdict(
            row.group.problem.id,
            completion.text,
            scored.breakdown[name][i],
            [] if row.expected is None else [row.expected[i]],
            scored.seconds[name] / len(row.group.completions),
        )
        for row, scored in zip(rows, results, strict=True)
        for i, completion in enumerate(row.group.completions)
    ]
    wrong = [verdict for verdict in verdicts if not verdict.agrees]
    console.print(_table(wrong or verdicts))
    if len(wrong or verdicts) > _SHOWN:
        console.print(f"… and {len(wrong or verdicts) - _SHOWN} more", style="dim")
    for line in (_values(verdicts), *_logged(results), _timing(verdicts, len(rows[0].group.completions))):
        console.print(line, highlight=False, soft_wrap=True)
    judged = sum(bool(verdict.expected) for verdict in verdicts)
    if judged:
        said = f"{judged - len(wrong)} of {judged} as expected" + (f", {len(wrong)} not" if wrong else "")
        console.print(said, style="bold red" if wrong else "bold green", highlight=False)
    return not wrong


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True)
    table.add_column("row", no_wrap=True, max_width=24)
    table.add_column("completion", ratio=1, no_wrap=True)
    for title in ("reward", "expected", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for verdict in verdicts[:_SHOWN]:
        text = " ".join(verdict.text.split())
        table.add_row(
            Text(verdict.row_id),
            Text(text if len(text) <= 200 else f"{text[:90]} … {text[-90:]}"),
            Text(_show(verdict.value), "" if verdict.agrees else "bold red"),
            Text(" ".join(_show(value) for value in verdict.expected)),
            f"{verdict.seconds * 1e3:.1f}",
        )
    return table


def _show(value: float | None) -> str:
    return "None" if value is None else f"{value:.4g}"


def _values(verdicts: Sequence[Verdict]) -> str:
    present = [verdict.value for verdict in verdicts if verdict.value is not None]
    mean = f"mean {fmean(present):.4g}" if present else "no value"
    counts = Counter(_show(verdict.value) for verdict in verdicts).most_common(5)
    return f"{len(verdicts)} completions: {mean}; " + ", ".join(f"{count} x {value}" for value, count in counts)


def _logged(results: Sequence[ScoredGroup]) -> list[str]:
    """The means of what the function gave to log_metric."""
    values: dict[str, list[float]] = {}
    for scored in results:
        for name, logged in scored.metrics.items():
            values.setdefault(name, []).extend(logged)
    return [f"{name}: mean {fmean(logged):.4g}" for name, logged in sorted(values.items())]


def _timing(verdicts: Sequence[Verdict], size_of_first: int) -> str:
    """Milliseconds of a completion. The first row loads what the function needs and is told apart."""
    first, rest = f"{verdicts[0].seconds * size_of_first * 1e3:.1f} ms", verdicts[size_of_first:]
    if len(rest) < 2:
        return f"time: {first}, loading included"
    times = [verdict.seconds * 1e3 for verdict in rest]
    slowest = sorted(rest, key=lambda verdict: -verdict.seconds)[:_SLOWEST]
    shown = ", ".join(f"{verdict.row_id} {verdict.seconds * 1e3:.1f} ms" for verdict in slowest)
    p99 = quantiles(times, n=100, method="inclusive")[98]
    return f"time: mean {fmean(times):.2f} ms, p99 {p99:.1f} ms; slowest: {shown}; the first row, which loads: {first}"
