"""Rules about completions and problems: truncation, length, repetition, held-out accuracy, the data."""

from collections.abc import Iterator

from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import FEW, PENALTIES, PREFERENCES, WINDOW, History

MOSTLY = 0.5  # share of completions
MIN_LENGTH_RATIO = 0.2  # of the first values
MAX_LENGTH_RATIO = 1.5  # of the first values, without better answers
BETTER = 0.02  # a rise of a rule's reward or of held-out accuracy, which are 0 to 1
REPEATED = 0.95  # of completions that could repeat another one of their group
GAP = 0.15  # of a reward between training and held-out problems
GAP_GROWTH = 0.1  # of that gap since the first evaluation
MAX_DROPPED = 0.1  # share of prompts
MAX_EPOCHS = 10.0


def truncated(run: History) -> Iterator[Finding]:
    """Every completion, or most, are cut off."""
    key, limit = "completions/clipped_ratio", run.setting("rollout.max_completion_length")
    changes = {"rollout.max_completion_length": 2 * limit} if limit else {}
    if run.lasts(lambda row: (row.get(key) or 0.0) >= 1.0):
        yield Finding(
            kind="truncated",
            level="alarm",
            says=f"Every completion has been truncated for {WINDOW} rollouts: none ends on its own, so few contain a "
            "final answer.",
            metric=key,
            value=1.0,
            rule=f"1 for {WINDOW} rollouts in a row",
            first_step=run.since(WINDOW),
            last_step=run.step,
            remedy="Raise rollout.max_completion_length, or check that the template and the tokenizer's EOS token "
            "match the model.",
            changes=changes,
        )
    elif (share := run.last(key, WINDOW)) is not None and share >= MOSTLY:
        yield Finding(
            kind="mostly_truncated",
            level="note",
            says=f"{share:.0%} of the completions are truncated: their answers are missing, and they count as wrong.",
            metric=key,
            value=share,
            rule=f"mean of {WINDOW} rollouts at least {MOSTLY:g}",
            first_step=run.since(WINDOW),
            last_step=run.step,
            remedy="Raise rollout.max_completion_length, add soft_overlong_punishment, or set "
            "algorithm.mask_truncated_completions.",
            changes=changes,
        )


def empty(run: History) -> Iterator[Finding]:
    """Most completions have no text."""
    key = "completions/empty_ratio"
    if (share := run.last(key)) is not None and share >= MOSTLY:
        yield Finding(
            kind="empty_completions",
            level="alarm",
            says=f"{share:.0%} of the completions are empty: the model ends its turn at once.",
            metric=key,
            value=share,
            rule=f"mean of {FEW} rollouts at least {MOSTLY:g}",
            first_step=run.since(FEW),
            last_step=run.step,
            remedy="Check data.template and rollout.stop: the prompt may already end the turn, or a stop text may come "
            "first.",
        )


def length_collapse(run: History) -> Iterator[Finding]:
    """Completions have become very short."""
    key = "completions/mean_length"
    if fall := run.fall(key, MIN_LENGTH_RATIO):
        before, now = fall
        yield Finding(
            kind="length_collapse",
            level="alarm",
            says=f"Completion length has collapsed from {before:.3g} to {now:.3g} tokens: the policy may have found a "
            "short text that is rewarded without reasoning.",
            metric=key,
            value=now,
            rule=f"below {MIN_LENGTH_RATIO:.0%} of the mean of its first {FEW} values",
            first_step=run.step,
            last_step=run.step,
            remedy="Read samples.jsonl and check the reward.",
        )


def longer_without_better(run: History) -> Iterator[Finding]:
    """Completions grow and no rule's reward nor held-out accuracy rises."""
    key, skipped = "completions/mean_length", (*PREFERENCES, *PENALTIES)
    length = run.change(key)
    if length is None or not length[1] > MAX_LENGTH_RATIO * length[0] or run.problems_change or not run.learns_rewards:
        return
    rules = [f"rewards/{one['name']}/mean" for one in run.rewards if one["function"] not in skipped]
    watched = [change for name in rules or ["reward"] if (change := run.change(name))]
    first, last = (run.evaluations or [{}])[0], (run.evaluations or [{}])[-1]
    watched += [(first[name], last[name]) for name in first if name.endswith("pass@1") and name in last]
    if not watched or any(now - before > BETTER for before, now in watched):
        return
    yield Finding(
        kind="longer_without_better",
        level="alarm",
        says=f"Completions grew from {length[0]:.3g} to {length[1]:.3g} tokens and no reward rose with them: length "
        "itself may be what is learnt.",
        metric=key,
        value=length[1],
        rule=f"mean of {FEW} rollouts above {MAX_LENGTH_RATIO:g} times that of the first {FEW}, and no rule's reward "
        f"or held-out pass@1 up by {BETTER:g}",
        first_step=run.since(FEW),
        last_step=run.step,
        remedy="Use a loss that does not favour long wrong answers (2503.20783), or add the reward "
        "soft_overlong_punishment; read samples.jsonl for filler.",
        changes={} if run.setting("algorithm.loss_type") == "dr_grpo" else {"algorithm.loss_type": "dr_grpo"},
    )


def repeated(run: History) -> Iterator[Finding]:
    """The completions of a problem are all the same text."""
    key, temperature = "completions/repeated_ratio", run.setting("rollout.temperature")
    if (share := run.last(key, WINDOW)) is not None and share >= REPEATED:
        yield Finding(
            kind="repeated_completions",
            level="alarm",
            says=f"{share:.1%} of the completions repeat another one of their group word for word: there is nothing to "
            "compare.",
            metric=key,
            value=share,
            rule=f"mean of {WINDOW} rollouts at least {REPEATED:g}",
            first_step=run.since(WINDOW),
            last_step=run.step,
            remedy="Raise rollout.temperature, or go back to a checkpoint with more entropy.",
            changes={"rollout.temperature": 1.0} if temperature is not None and temperature < 1 else {},
        )


def held_out_gap(run: History) -> Iterator[Finding]:
    """A reward is higher on training problems than on held-out ones, and more so than at first."""
    first, last = run.evaluations[0], run.evaluations[-1]
    for reward in run.rewards:
        name = reward["name"]
        key, held_out = f"rewards/{name}/mean", f"eval/rewards/{name}/mean"
        change = run.change(key)
        if change is None or held_out not in first or held_out not in last or reward.get("data_sources") is not None:
            continue
        before, now = change[0] - first[held_out], change[1] - last[held_out]
        if now <= GAP or now - before <= GAP_GROWTH:
            continue
        best = max(run.evaluations, key=lambda row, key=held_out: row.get(key, float("-inf")))
        yield Finding(
            kind="held_out_gap",
            subject=name,
            level="alarm",
            says=f"The reward {name!r} is {change[1]:.3g} on training problems and {last[held_out]:.3g} on held-out "
            f"ones; the gap grew from {before:.3g} to {now:.3g}: the policy learns these problems by heart.",
            metric=f"{key} minus {held_out}",
            value=now,
            rule=f"above {GAP:g}, and {GAP_GROWTH:g} above that at the first evaluation",
            first_step=run.since(FEW),
            last_step=run.step,
            remedy="Train on more problems or for fewer steps: held-out it was best at step "
            f"{best['step']:g}, with {best[held_out]:.3g}.",
            changes={"trainer.max_steps": int(best["step"])} if 0 < best["step"] < last["step"] else {},
        )


def dropped_prompts(run: History) -> Iterator[Finding]:
    """Many rows of the data cannot be used."""
    key, per_step = "data/dropped_prompts", run.setting("rollout.problems_per_step")
    dropped = run.now(key)
    if not dropped or not per_step:
        return
    sampled = run.values["dynamic_sampling/sampled_groups"][-WINDOW:]  # more than are trained on
    read = sum(sampled) / len(sampled) * len(run.steps) if sampled else per_step * run.step
    share = dropped / (dropped + read)
    if share > MAX_DROPPED:
        yield Finding(
            kind="dropped_prompts",
            level="alarm" if share > MOSTLY else "note",
            says=f"{share:.0%} of the problems were dropped ({dropped:g} so far), most likely because their prompts "
            "are longer than data.max_prompt_length: the run trains on the short ones.",
            metric=key,
            value=dropped,
            rule=f"above {MAX_DROPPED:.0%} of the problems read",
            first_step=run.step,
            last_step=run.step,
            remedy="Raise data.max_prompt_length; the run's last line counts dropped problems by reason.",
            changes={"data.max_prompt_length": 2 * limit} if (limit := run.setting("data.max_prompt_length")) else {},
        )


def repeated_problems(run: History) -> Iterator[Finding]:
    """Few distinct problems: each is seen many times."""
    key = "data/epochs"
    if (epochs := run.now(key)) is not None and epochs > MAX_EPOCHS:
        yield Finding(
            kind="repeated_problems",
            level="note",
            says=f"Each problem has been used {epochs:.3g} times: there are few distinct ones, and the policy can "
            "learn their answers by heart.",
            metric=key,
            value=epochs,
            rule=f"above {MAX_EPOCHS:g}",
            first_step=run.step,
            last_step=run.step,
            remedy="Add problems, or compare held-out accuracy and stop when it no longer rises.",
        )
