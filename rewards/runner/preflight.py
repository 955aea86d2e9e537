"""Checks before training: can the rewards grade every problem of the dataset?

Each process inspects its share of the problems; every process then reports the findings of all.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from rewards.runner.score import Rewards
from rollout.types import Problem

_SHOWN = 10  # problem ids per reason


@dataclass(slots=True)
class Ungradable:
    """Problems that a reward cannot grade for one reason: Ungradable(12, [(0, "gsm8k/train/0"), …])."""

    count: int = 0
    first: list[tuple[int, str]] = field(default_factory=list)  # position among the inspected problems, id

    def add(self, position: int, id: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append((position, id))


@dataclass(slots=True)
class Findings:
    """What the rewards say of some problems; it can be pickled.

    Findings(
        checked=Counter(accuracy=24),                              # problems each reward applies to
        ungradable={"accuracy": {"no reference answer": Ungradable(…)}},
        sources={"gsm8k"},                                         # values of the column data_source
        unread={("code", "language")},                             # reward and column with the name of its option
        error="",                                                  # why the inspection stopped: a missing column
    )
    """

    checked: Counter[str] = field(default_factory=Counter)
    ungradable: dict[str, dict[str, Ungradable]] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    unread: set[tuple[str, str]] = field(default_factory=set)
    error: str = ""

    def add(self, position: int, problem: Problem, rewards: Rewards) -> None:
        self.sources.add(str(problem.columns.get("data_source")))
        for name, reason in rewards.check(problem).items():
            self.checked[name] += 1
            if reason is not None:
                self.ungradable.setdefault(name, {}).setdefault(reason, Ungradable()).add(position, problem.id)


def inspect_problems(problems: Iterable[Problem], rewards: Rewards) -> Findings:
    """Run every reward's check on these problems. An error is part of the findings, so that no process waits for it."""
    findings, columns = Findings(), None
    try:
        for position, problem in enumerate(problems):
            findings.add(position, problem, rewards)
            if problem.columns.keys() != columns:
                columns = problem.columns.keys()
                findings.unread |= rewards.unread_columns(columns)
    except ValueError as error:
        findings.error = str(error)
    return findings


def report_findings(
    training: Sequence[Findings],
    held_out: Sequence[Findings],
    rewards: Rewards,
    console: Console | None,
    *,
    complete: bool,
) -> None:
    """Warn about problems that cannot be graded.

    Args:
        training: one per process; process r of n inspected the problems r, r + n, r + 2n, …
        held_out: likewise.
        console: prints the warnings; None: nowhere, in all processes but one.
        complete: whether all training problems were inspected, not only the first of an endless source.

    Raises:
        ValueError: a column is missing, a reward can grade none of its problems, or a name in `data_sources` does not
            occur in the dataset.
    """
    ours, others = _merged(training), _merged(held_out)
    for name, column in sorted({pair for found in (ours, others) for pair in found.unread}):
        _warn(
            console,
            f"reward {name!r}: the dataset's column {column!r} does not set the option or argument of that name. "
            "Set the option in the recipe, or rename the column.",
        )
    seen = _report(ours, rewards, console) | _report(others, rewards, console)
    unknown = sorted(rewards.data_sources - seen)
    if unknown and complete:
        raise ValueError(
            f"rewards: data_sources names {', '.join(unknown)}, but no problem has that data_source. "
            f"The dataset has: {', '.join(sorted(seen)) or 'none'}."
        )


def _merged(shares: Sequence[Findings]) -> Findings:
    merged = Findings(error=next((share.error for share in shares if share.error), ""))
    for rank, share in enumerate(shares):
        merged.checked += share.checked
        merged.sources |= share.sources
        merged.unread |= share.unread
        for name, reasons in share.ungradable.items():
            for reason, found in reasons.items():
                whole = merged.ungradable.setdefault(name, {}).setdefault(reason, Ungradable())
                whole.count += found.count
                whole.first += [(position * len(shares) + rank, id) for position, id in found.first]
    return merged


def _report(findings: Findings, rewards: Rewards, console: Console | None) -> set[str]:
    """Warn or raise; returns the values of the column data_source."""
    if findings.error:
        raise ValueError(findings.error)
    for name, reasons in findings.ungradable.items():
        count = sum(found.count for found in reasons.values())
        lines = [f"reward {name!r} cannot grade {count} of {findings.checked[name]} problems:"]
        for reason, found in sorted(reasons.items(), key=lambda item: -item[1].count):
            ids = ", ".join(id for _, id in sorted(found.first)[:_SHOWN])
            lines.append(f"  {found.count}: {reason} ({ids}{', …' if found.count > _SHOWN else ''})")
        if count == findings.checked[name]:
            lines.append("It would always return None. Correct the columns, or remove it from the recipe.")
            raise ValueError("\n".join(lines))
        _warn(console, "\n".join(lines))
    unrewarded = sorted(findings.sources - rewards.data_sources) if rewards.only_for_sources else []
    if unrewarded:
        _warn(console, f"no reward applies to data_source {', '.join(unrewarded)}: training ignores those problems.")
    return findings.sources


def _warn(console: Console | None, message: str) -> None:
    if console is not None:
        console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
