"""What the rewards cannot judge, found on the dataset before training instead of by a reward that is missing there."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import track

from rewards.runner.score import Rewards
from rollout.data.sources import Source
from rollout.types import Problem, Prompt

_SHOWN = 10  # ids of problems for each reason


def check_problems(source: Source, held_out: Sequence[Prompt], rewards: Rewards, console: Console) -> None:
    """Have the rewards look at every row of a dataset and at the held-out problems; warn of those they cannot judge.

    Of an endless source only the first problem is looked at, for its columns.

    Raises:
        ValueError: a column is missing, a reward can judge no problem that it is for, or a name in `data_sources` is no
            problem's.
    """
    size = source.size
    indices = range(1 if size is None else size)
    if size is not None and console.is_terminal:
        indices = track(indices, "reading golds", console=console, transient=True)
    problems = (source[index] for index in indices)
    seen = _check(problems, rewards, console) | _check((p.problem for p in held_out), rewards, console)
    unknown = sorted(rewards.data_sources - seen)
    if unknown and size is not None:
        raise ValueError(
            f"rewards: data_sources names {', '.join(unknown)}, and no problem has that data_source. "
            f"There are: {', '.join(sorted(seen)) or 'none'}."
        )


def _check(problems: Iterable[Problem], rewards: Rewards, console: Console) -> set[str]:
    """Warn or raise; returns the values of the column data_source."""
    reasons: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )  # reward -> why -> ids
    judged: Counter[str] = Counter()  # reward -> problems that it is for
    sources: set[str] = set()
    for problem in problems:
        sources.add(str(problem.columns.get("data_source")))
        for name, reason in rewards.check(problem).items():
            judged[name] += 1
            if reason is not None:
                reasons[name][reason].append(problem.id)
    for name, found in reasons.items():
        count = sum(map(len, found.values()))
        lines = [f"reward {name!r} cannot judge {count} of {judged[name]} problems:"]
        for reason, ids in sorted(found.items(), key=lambda item: -len(item[1])):
            more = ", …" if len(ids) > _SHOWN else ""
            lines.append(f"  {len(ids)}: {reason} ({', '.join(ids[:_SHOWN])}{more})")
        if count == judged[name]:
            lines.append("It would never say anything. Correct the columns, or take it out of the recipe.")
            raise ValueError("\n".join(lines))
        console.print("\n".join(lines), style="yellow", highlight=False, markup=False, soft_wrap=True)
    unrewarded = sorted(sources - rewards.data_sources) if rewards.only_for_sources else []
    if unrewarded:
        message = f"no reward is for the data_source {', '.join(unrewarded)}: those problems train nothing."
        console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
    return sources
