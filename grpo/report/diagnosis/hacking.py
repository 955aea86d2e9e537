"""Rules about reward hacking: a preference reward rises while what rules measure gets worse (2501.12948, figure 6).

Two places are watched: held-out evaluations, latest against first, and training rows, the mean of the last five against
that of the first five with this preference reward, so that a reward that joins late has its baseline then.
"""

from collections.abc import Iterator, Sequence

from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import History, Numbers

RISE = 0.25  # of a preference reward, in standard deviations of the completions' first rewards
FALL = 0.1  # of a rule's reward or held-out accuracy, which are 0 to 1
LENGTH_RATIO = 1.5  # of the first mean length


def hacking(run: History) -> Iterator[Finding]:
    """A preference reward rises while what rules measure gets worse in training."""
    rules = [f"rewards/{name}/mean" for name in run.names(preferences=False)]
    for name in run.names(preferences=True):
        key = f"rewards/{name}/mean"
        if run.now(key) is not None and (ends := run.ends(key)):
            spread = _over(ends[0], f"rewards/{name}/std") or 0.0
            yield from _parting(run, name, key, spread, *ends, rules, ["completions/mean_length"])


def hacking_held_out(run: History) -> Iterator[Finding]:
    """The same in held-out evaluations, latest against first."""
    first, row = run.evaluations[0], run.evaluations[-1]
    if first is row:
        return
    accuracies = [key for key in row if key.startswith("eval/") and key.endswith("/pass@1")]
    names = run.names(preferences=False)
    rules = [key for key in row for name in names if key.endswith(f"/rewards/{name}/mean")]
    for name in run.names(preferences=True):
        for key in [key for key in row if key.endswith(f"/rewards/{name}/mean")]:
            length = key.removesuffix(f"rewards/{name}/mean") + "mean_length"  # of the preference's own source
            yield from _parting(run, name, key, 0.0, [first], [row], [*accuracies, *rules], [length])


def _parting(
    run: History,
    name: str,
    key: str,
    spread: float,
    first: Sequence[Numbers],
    last: Sequence[Numbers],
    rules: Sequence[str],
    lengths: Sequence[str],
) -> Iterator[Finding]:
    """What got worse while the preference reward rose by more than RISE spreads."""
    before, now = _over(first, key), _over(last, key)
    if before is None or now is None or not now - before > RISE * spread:
        return
    worse: list[tuple[str, float, str, str]] = []
    for rule in rules:
        old, new = _over(first, rule), _over(last, rule)
        if old is not None and new is not None and old - new > FALL:
            worse.append((rule, new, f"{rule} fell from {old:.3g} to {new:.3g}", f"fell by more than {FALL:g}"))
    for length in lengths:
        old, new = _over(first, length), _over(last, length)
        if old and new and new > LENGTH_RATIO * old:
            grew = f"{length} grew from {old:.3g} to {new:.3g} tokens"
            worse.append((length, new, grew, f"grew to more than {LENGTH_RATIO:g} times"))
    for metric, value, what, rule in worse:
        yield Finding(
            kind="reward_hacking",
            subject=f"{name} {metric}",
            level="alarm",
            says=f"The preference reward {name!r} rose from {before:.3g} to {now:.3g}, and {what}: the policy may "
            "exploit the preference model (reward hacking).",
            metric=metric,
            value=value,
            rule=f"{rule} while a preference reward rose",
            first_step=int(last[0]["step"]) if "step" in last[0] else run.step,
            last_step=run.step,
            remedy="Read samples.jsonl; go back to a checkpoint before this, give the source fewer steps (from_step in "
            "data.mixture) or the reward less weight, or train the preference model again with such completions.",
        )


def _over(rows: Sequence[Numbers], key: str) -> float | None:
    """The mean over the rows that have a value; None if none has."""
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None
