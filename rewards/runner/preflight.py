"""Checks before training: can the rewards grade every problem of the dataset?"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice

from rich.console import Console
from rich.progress import track

from rewards.runner.score import Rewards
from rollout.types import Problem

_SHOWN = 10  # problem ids per reason


def check_problems(
    problems: Iterable[Problem], size: int | None, held_out: Iterable[Problem], rewards: Rewards, console: Console
) -> None:
    """Run every reward's check on the training and held-out problems; warn about those that cannot be graded.

    Args:
        problems: the training problems, at least `size` of them.
        size: how many to check; None: the problems are generated without end, and only the first is checked, for its
            columns.

    Raises:
        ValueError: a column is missing, a reward can grade none of its problems, or a name in `data_sources` does not
            occur in the dataset.
    """
    first = islice(problems, 1 if size is None else size)
    if size is not None and console.is_terminal:
        first = track(first, "checking problems", total=size, console=console, transient=True)
    seen = _check(first, rewards, console) | _check(held_out, rewards, console)
    unknown = sorted(rewards.data_sources - seen)
    if unknown and size is not None:
        raise ValueError(
            f"rewards: data_sources names {', '.join(unknown)}, but no problem has that data_source. "
            f"The dataset has: {', '.join(sorted(seen)) or 'none'}."
        )


def _check(problems: Iterable[Problem], rewards: Rewards, console: Console) -> set[str]:
    """Warn or raise; returns the values of the column data_source."""
    reasons: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )  # reward -> why -> problem ids
    checked: Counter[str] = Counter()  # reward -> problems it applies to
    sources: set[str] = set()
    for problem in problems:
        sources.add(str(problem.columns.get("data_source")))
        for name, reason in rewards.check(problem).items():
            checked[name] += 1
            if reason is not None:
                reasons[name][reason].append(problem.id)
    for name, found in reasons.items():
        count = sum(map(len, found.values()))
        lines = [f"reward {name!r} cannot grade {count} of {checked[name]} problems:"]
        for reason, ids in sorted(found.items(), key=lambda item: -len(item[1])):
            more = ", …" if len(ids) > _SHOWN else ""
            lines.append(f"  {len(ids)}: {reason} ({', '.join(ids[:_SHOWN])}{more})")
        if count == checked[name]:
            lines.append("It would always return None. Correct the columns, or remove it from the recipe.")
            raise ValueError("\n".join(lines))
        console.print("\n".join(lines), style="yellow", highlight=False, markup=False, soft_wrap=True)
    unrewarded = sorted(sources - rewards.data_sources) if rewards.only_for_sources else []
    if unrewarded:
        message = f"no reward applies to data_source {', '.join(unrewarded)}: training ignores those problems."
        console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return sources
