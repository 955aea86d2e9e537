"""Rules about rewards: no signal, rewards that are constant or missing, a reward that does not rise."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from grpo.report.diagnosis.finding import Finding, rounded
from grpo.report.diagnosis.history import PENALTIES, WINDOW, History
from grpo.report.records import Row

ZERO = 1e-8  # reward deviations below it are rounding, as in frac_reward_zero_std
MOSTLY_WITHOUT = 0.8  # share of groups without signal
FLAT_ROWS = 20  # rollouts before a flat reward means something
NOISE = 2.0  # standard errors
MOVED = 1e-3  # relative change of the weights over a run, summed over its steps, below which a policy has not moved


def no_signal(run: History) -> Iterator[Finding]:
    """Every group's completions score the same, or most groups' do."""
    if not run.compares_within_groups:
        return

    def without(row: Row) -> bool:
        return "reward_std" in row and (row["reward_std"] is None or not row["reward_std"] >= ZERO)

    generations = run.setting("rollout.num_generations")
    more = {"rollout.num_generations": 2 * generations} if generations else {}
    if run.lasts(without):
        score = run.now("reward")
        spread = [key for key in run.recent[-1] if key.startswith("rewards/") and key.endswith("/std")]
        constant = not any((run.now(key) or 0.0) > ZERO for key in spread)
        if score is None:
            seen, remedy, changes = "no completion has a reward", "Fix the reward function.", {}
        elif not constant:
            seen = "each problem is always or never solved"
            remedy, changes = "Choose problems that are solved sometimes, or raise rollout.num_generations.", more
        elif score > ZERO:
            seen = f"every completion scores {score:.3g}, so all are right or the reward is a constant"
            remedy, changes = "Choose harder problems; if the answers in samples.jsonl are wrong, fix the reward.", {}
        else:
            seen = f"every completion scores {score:.3g}, so all are wrong or the reward is a constant"
            remedy = (
                "Read samples.jsonl; fix the reward if right answers are there, else choose easier problems or raise "
                "rollout.num_generations."
            )
            changes = more
        yield Finding(
            kind="no_signal",
            level="alarm",
            says=f"No group has had a reward signal for {WINDOW} rollouts: {seen}; every advantage is zero and the "
            "policy does not learn.",
            metric="reward_std",
            value=run.now("reward_std"),
            rule=f"0 or null for {WINDOW} rollouts in a row",
            first_step=run.since(WINDOW),
            last_step=run.step,
            remedy=remedy,
            changes=changes,
        )
    elif (share := run.last("frac_reward_zero_std", WINDOW)) is not None and share >= MOSTLY_WITHOUT:
        yield Finding(
            kind="weak_signal",
            level="note",
            says=f"{share:.0%} of the groups have no reward signal: their completions all score the same, so the "
            f"policy learns from the other {1 - share:.0%}.",
            metric="frac_reward_zero_std",
            value=share,
            rule=f"mean of {WINDOW} rollouts at least {MOSTLY_WITHOUT:g}",
            first_step=run.since(WINDOW),
            last_step=run.step,
            remedy="Choose problems that are solved sometimes, or stop here if held-out accuracy no longer rises.",
        )


def constant_rewards(run: History) -> Iterator[Finding]:
    """A single reward that is 0 or null for every completion."""
    if not run.learns_rewards:
        return
    for reward in run.rewards:
        name, key = reward["name"], f"rewards/{reward['name']}/mean"
        built_in = ":" not in reward["function"]
        if reward["function"] in PENALTIES:
            continue
        if run.lasts(lambda row, key=key: row.get(key) == 0.0) and not (run.now(f"rewards/{name}/std") or 0.0) > ZERO:
            gate = reward.get("requires")
            hint = f" It counts only where {gate!r} scores above 0.5: check rewards/{name}/gated_ratio." if gate else ""
            yield Finding(
                kind="zero_reward",
                subject=name,
                level="alarm" if built_in else "note",  # 0 may be the best value of somebody's penalty
                says=f"The reward {name!r} has been 0 for every completion of {WINDOW} rollouts: it is never earned, "
                "so it teaches nothing.",
                metric=key,
                value=0.0,
                rule=f"0 for {WINDOW} rollouts in a row",
                first_step=run.since(WINDOW),
                last_step=run.step,
                remedy="Score completions from samples.jsonl with `grpo reward-test`; if they deserve 0, show what is "
                f"wanted in data.template or data.system_prompt, or start from a fine-tuned model.{hint}",
            )
        if reward.get("data_sources") is None and run.lasts(lambda row, key=key: key in row and row[key] is None):
            yield Finding(
                kind="null_reward",
                subject=name,
                level="alarm",
                says=f"The reward {name!r} has been null for {WINDOW} rollouts: the function returned no number for "
                "any completion.",
                metric=key,
                value=None,
                rule=f"null for {WINDOW} rollouts in a row",
                first_step=run.since(WINDOW),
                last_step=run.step,
                remedy="Check that the function finds its columns, or remove the reward.",
            )


def unrewarded(run: History) -> Iterator[Finding]:
    """Completions to which no reward function applies."""
    row = run.recent[-1]
    nothing = "reward" in row and run.now("reward") is None
    share = run.now("frac_unrewarded_samples")
    share = float(nothing) if share is None else share
    if share > 0:
        yield Finding(
            kind="unrewarded",
            level="alarm",
            says=f"{share:.1%} of the completions have no reward (NaN): no reward function applied to them, so they "
            "are not trained on.",
            metric="frac_unrewarded_samples",
            value=share,
            rule="above 0",
            first_step=run.step,
            last_step=run.step,
            remedy="Check the rewards' data_sources and the problems' columns.",
        )


def flat_reward(run: History) -> Iterator[Finding]:
    """The reward did not rise over the run although groups had signal. Looks at the whole run."""
    rewards, moves = run.values["reward"], run.values["weight_change"]
    without = run.last("frac_reward_zero_std", WINDOW)
    if len(rewards) < FLAT_ROWS or without is None or without >= 0.5 or run.problems_change:
        return
    third = len(rewards) // 3
    (before, error_before), (now, error_now) = _estimate(rewards[:third]), _estimate(rewards[-third:])
    noise = NOISE * math.hypot(error_before, error_now)
    if now - before > noise:
        return
    says = f"from {before:.3g} in the first third of the run to {now:.3g} in the last, with a noise of ±{noise:.2g}"
    rate, generations = run.setting("trainer.learning_rate"), run.setting("rollout.num_generations")
    metric, value = "reward, last third minus first", now - before
    rule = f"not above {NOISE:g} standard errors over at least {FLAT_ROWS} rollouts"
    moved = sum(moves) * (run.setting("algorithm.steps_per_generation") or 1)
    changes: dict[str, Any] = {}
    if now - before < -noise:
        kind, says = "falling_reward", f"The reward has fallen, {says}."
        remedy = "Lower trainer.learning_rate, and go back to a checkpoint from before the fall."
        changes = {"trainer.learning_rate": rounded(rate / 3)} if rate else {}
    elif len(moves) == len(rewards) and moved < MOVED:
        kind, metric, value = "learning_rate_too_small", "weight_change, summed over steps", moved
        says = (
            f"The reward is flat ({says}), and all steps together moved the weights by at most {moved:.1e} of their "
            "size: the learning rate is too small, or the run too short, to rise above the noise."
        )
        rule = f"below {MOVED:g} while the reward is flat"
        remedy = "Raise trainer.learning_rate or trainer.max_steps."
        if rate and moved:
            changes = {"trainer.learning_rate": rounded(rate * min(100.0, 10 * MOVED / moved))}
    else:
        kind, says = "flat_reward", f"The reward is flat although groups have signal: {says}."
        remedy = (
            "Average out more noise with a larger rollout.num_generations or rollout.problems_per_step; check in "
            "samples.jsonl that higher rewards are better answers; then raise trainer.learning_rate."
        )
        changes = {"rollout.num_generations": 2 * generations} if generations else {}
    yield Finding(
        kind=kind,
        level="alarm",
        says=says,
        metric=metric,
        value=value,
        rule=rule,
        first_step=run.steps[0],
        last_step=run.step,
        remedy=remedy,
        changes=changes,
    )


def _estimate(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
