"""`grpo reward-test`: score a file of completions and time the reward, in a worker process as in training.

Each line of the .jsonl file has `completion`, a string or a list of one assistant message, or `completions`, a list of
these that forms one group, and the columns the function reads. Optional: `prompt`, `completion_ids`, `id`;
`completion_prefix`, the end of the prompt that already belongs to the answer, such as "<think>"; and `expected`, the
expected reward (null: not applicable), or a list of them with `completions`.
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

_OWN = ("prompt", "completion", "completions", "completion_ids", "completion_prefix", "expected", "id")
_SHOWN = 20  # completions in the table
_SLOWEST = 3


@dataclass(frozen=True, slots=True)
class Example:
    """One line of the file."""

    group: Group
    expected: list[float | None] | None  # None: not given


@dataclass(frozen=True, slots=True)
class Result:
    """The reward of one completion."""

    id: str
    text: str
    value: float | None
    expected: list[float | None]  # one value; empty if not given
    seconds: float  # of its group, divided by the number of completions

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
    """Print each completion's reward and the timing; returns whether all rewards are as expected.

    Args:
        function: the reward, as a recipe names it.
        path: the .jsonl file.
        options: keyword arguments of the function.
        columns: our name -> the file's, as in a recipe: {"solution": "answer"}.
        tokenizer: folder or Hub name; computes completion_ids for lines without them.

    Raises:
        ValueError: no such function, file or column, or the function failed.
    """
    rewards = Rewards([RewardSpec(function=function, options=options)], num_workers=1)
    try:
        loaded, _ = Call(function, function, options, None).load()
        needs_ids = "completion_ids" in inspect.signature(loaded).parameters
        encode = _encoder(tokenizer)
        examples = [_example(place, line, columns, encode, needs_ids=needs_ids) for place, line in _read(path)]
        for example in examples:
            rewards.check(example.group.problem)
        scored = track(
            rewards.score(example.group for example in examples),
            "scoring",
            total=len(examples),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        groups = list(scored)
    finally:
        rewards.close()
    return _report(rewards.names[0], examples, groups, console)


def _read(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines, each with its place, "rows.jsonl:7"."""
    if path.suffix != ".jsonl" or not path.is_file():
        problem = "is not a .jsonl file" if path.exists() else "does not exist"
        raise ValueError(f"{path} {problem}. Give an existing .jsonl file with one JSON object per line.")
    lines = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                lines.append((f"{path.name}:{number}", dict(json.loads(line))))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path.name}:{number} is not a JSON object: {error}.") from error
    if not lines:
        raise ValueError(f"{path} is empty. Give a file with at least one JSON object.")
    return lines


def _encoder(tokenizer: str | None) -> Encode | None:
    if tokenizer is None:
        return None
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(" :.")
        raise ValueError(
            f"--tokenizer {tokenizer}: {reason}. Name a folder with a tokenizer, or a Hub model."
        ) from None
    return lambda text: loaded.encode(text, add_special_tokens=False)


def _example(
    place: str, line: dict[str, Any], columns: dict[str, str], encode: Encode | None, *, needs_ids: bool
) -> Example:
    missing = sorted({theirs for theirs in columns.values() if theirs not in line})
    if missing:
        raise ValueError(f"{place} has no column {missing[0]!r}, which `columns` names. It has: {', '.join(line)}.")
    line = line | {ours: line[theirs] for ours, theirs in columns.items()}
    if ("completion" in line) == ("completions" in line):
        raise ValueError(f"{place} must have either `completion` or `completions`. It has: {', '.join(line)}.")
    given = line["completions"] if "completions" in line else [line["completion"]]
    if not isinstance(given, list):
        raise ValueError(f"{place}: `completions` must be a list, not {str(given)[:80]!r}. For one, use `completion`.")
    for completion in given:
        _check_completion(place, completion)
    texts = [completion_text(completion) for completion in given]
    ids = line.get("completion_ids")
    if ids is not None and "completion" in line:
        ids = [ids]
    if ids is None and encode is not None:
        ids = [encode(text) for text in texts]
    if ids is None and needs_ids:
        raise ValueError(f"{place} has no column 'completion_ids', which the function needs. Add it or --tokenizer.")
    group = Group(
        problem=Problem(
            id=str(line.get("id", place)),
            prompt=_prompt(line.get("prompt"), conversational=not all(isinstance(c, str) for c in given)),
            columns={name: value for name, value in line.items() if name not in _OWN},
        ),
        prompt_ids=[],
        completions=[
            Completion(token_ids=tokens, logprobs=[], text=text, finish_reason="stop", policy_version=0)
            for text, tokens in zip(texts, ids or [[]] * len(texts), strict=True)
        ],
        completion_prefix=str(line.get("completion_prefix", "")),
    )
    if "expected" not in line:
        return Example(group, None)
    expected = line["expected"] if "completions" in line else [line["expected"]]
    if not isinstance(expected, list) or len(expected) != len(given):
        count = len(expected) if isinstance(expected, list) else "no list of"
        raise ValueError(
            f"{place} has {count} values in `expected` for {len(given)} completions. Give a list, one per completion."
        )
    for value in expected:
        if not isinstance(value, int | float | None):
            raise ValueError(f"{place}: `expected` has {value!r}. Each must be a number, or null for None.")
    return Example(group, [None if value is None else float(value) for value in expected])


def _check_completion(place: str, completion: Any) -> None:
    is_message = isinstance(completion, list) and len(completion) == 1 and "content" in completion[0]
    if not isinstance(completion, str) and not is_message:
        raise ValueError(
            f"{place}: a completion must be a string or a list of one message, not {str(completion)[:80]!r}."
        )


def _prompt(prompt: Any, *, conversational: bool) -> str | list[Message]:
    if isinstance(prompt, list):
        return prompt
    text = "" if prompt is None else str(prompt)
    return [{"role": "user", "content": text}] if conversational else text


def _same(value: float | None, expected: float | None) -> bool:
    if value is None or expected is None:
        return value is expected
    return math.isclose(value, expected, rel_tol=1e-6, abs_tol=1e-6)


def _report(name: str, examples: Sequence[Example], groups: Sequence[ScoredGroup], console: Console) -> bool:
    results = [
        Result(
            example.group.problem.id,
            completion.text,
            scored.breakdown[name][i],
            [] if example.expected is None else [example.expected[i]],
            scored.seconds[name] / len(example.group.completions),
        )
        for example, scored in zip(examples, groups, strict=True)
        for i, completion in enumerate(example.group.completions)
    ]
    wrong = [result for result in results if not result.agrees]
    console.print(_table(wrong or results))
    if len(wrong or results) > _SHOWN:
        console.print(f"… and {len(wrong or results) - _SHOWN} more", style="dim")
    for line in (_values(results), *_logged(groups), _timing(results, len(examples[0].group.completions))):
        console.print(line, highlight=False, soft_wrap=True)
    compared = sum(bool(result.expected) for result in results)
    if compared:
        summary = f"{compared - len(wrong)} of {compared} as expected" + (f", {len(wrong)} not" if wrong else "")
        console.print(summary, style="bold red" if wrong else "bold green", highlight=False)
    return not wrong


def _table(results: Sequence[Result]) -> Table:
    table = Table(box=SIMPLE_HEAD, expand=True)
    table.add_column("row", no_wrap=True, max_width=24)
    table.add_column("completion", ratio=1, no_wrap=True)
    for title in ("reward", "expected", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results[:_SHOWN]:
        text = " ".join(result.text.split())
        table.add_row(
            Text(result.id),
            Text(text if len(text) <= 200 else f"{text[:90]} … {text[-90:]}"),
            Text(_show(result.value), "" if result.agrees else "bold red"),
            Text(" ".join(_show(value) for value in result.expected)),
            f"{result.seconds * 1e3:.1f}",
        )
    return table


def _show(value: float | None) -> str:
    return "None" if value is None else f"{value:.4g}"


def _values(results: Sequence[Result]) -> str:
    present = [result.value for result in results if result.value is not None]
    mean = f"mean {fmean(present):.4g}" if present else "no value"
    counts = Counter(_show(result.value) for result in results).most_common(5)
    return f"{len(results)} completions: {mean}; " + ", ".join(f"{count} x {value}" for value, count in counts)


def _logged(groups: Sequence[ScoredGroup]) -> list[str]:
    """Means of the values passed to log_metric."""
    values: dict[str, list[float]] = {}
    for scored in groups:
        for name, logged in scored.metrics.items():
            values.setdefault(name, []).extend(logged)
    return [f"{name}: mean {fmean(logged):.4g}" for name, logged in sorted(values.items())]


def _timing(results: Sequence[Result], size_of_first: int) -> str:
    """Milliseconds per completion. The first group is reported apart, since its time includes loading."""
    first, rest = f"{results[0].seconds * size_of_first * 1e3:.1f} ms", results[size_of_first:]
    if len(rest) < 2:
        return f"time: {first}, with loading"
    times = [result.seconds * 1e3 for result in rest]
    slowest = sorted(rest, key=lambda result: -result.seconds)[:_SLOWEST]
    shown = ", ".join(f"{result.id} {result.seconds * 1e3:.1f} ms" for result in slowest)
    p99 = quantiles(times, n=100, method="inclusive")[98]
    return f"time: mean {fmean(times):.2f} ms, p99 {p99:.1f} ms; slowest: {shown}; first row, with loading: {first}"
