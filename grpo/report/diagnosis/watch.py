"""Applies the rules to a run's rows, one after the other.

    watch = Watch(recipe.model_dump())
    watch.update({"step": 10, "reward_std": 0.0, …})  # -> [Finding(kind="no_signal", …)], only those that are new
    watch.findings()                                  # all so far, alarms first, with those of the whole run

A pure function of the rows: replaying them restores the state after a resume, and diagnoses a finished run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from grpo.report.diagnosis import completions, experts, hacking, optimization, rewards
from grpo.report.diagnosis.finding import Finding
from grpo.report.diagnosis.history import History
from grpo.report.records import Row, is_evaluation

Rule = Callable[[History], Iterator[Finding]]

TRAINING: tuple[Rule, ...] = (  # after every training row
    rewards.no_signal,
    rewards.constant_rewards,
    rewards.unrewarded,
    hacking.hacking,
    completions.truncated,
    completions.empty,
    completions.length_collapse,
    completions.longer_without_better,
    completions.repeated,
    completions.dropped_prompts,
    completions.repeated_problems,
    optimization.entropy_collapse,
    optimization.learning_rate_too_large,
    optimization.stale_reference,
    optimization.mismatch,
)
ANY_STAGE: tuple[Rule, ...] = (  # of any stage that trains
    optimization.learning_rate_zero,
    optimization.gradient_clipped,
    experts.dead_experts,
    experts.imbalance,
    experts.missing_routes,
)
EVALUATION: tuple[Rule, ...] = (hacking.hacking_held_out, completions.held_out_gap)  # after every held-out evaluation
WORSE = {"weak_signal": "no_signal", "mostly_truncated": "truncated"}  # left out if the other one is found
WHOLE: tuple[Rule, ...] = (rewards.flat_reward,)  # once, over all rows


class Watch:
    """A run's findings so far; `recipe` as plain values, {} if unknown."""

    def __init__(self, recipe: Mapping[str, Any]) -> None:
        self.history = History(recipe)
        self._found: dict[tuple[str, str], Finding] = {}
        self._on_policy = recipe.get("stage", "grpo") in ("grpo", "opd")

    @classmethod
    def of(cls, rows: Iterable[Row], recipe: Mapping[str, Any]) -> "Watch":
        """After these rows of a run."""
        watch = cls(recipe)
        for row in rows:
            (watch.update_evaluation if is_evaluation(row) else watch.update)(row)
        return watch

    def update(self, row: Mapping[str, Any]) -> list[Finding]:
        """The findings that this training row is the first to justify. Missing, null and NaN values all mean null."""
        self.history.add(row)
        return self._new((*TRAINING, *ANY_STAGE) if self._on_policy else ANY_STAGE)

    def update_evaluation(self, row: Mapping[str, Any]) -> list[Finding]:
        """The findings that this held-out evaluation is the first to justify."""
        self.history.add_evaluation(row)
        return self._new(EVALUATION if self._on_policy else ())

    def findings(self) -> list[Finding]:
        """All so far, alarms first, then by step; with those that need the whole run."""
        whole = [finding for rule in WHOLE if self.history.steps for finding in rule(self.history)]
        kinds = {kind for kind, _ in self._found}
        found = [one for one in self._found.values() if WORSE.get(one.kind) not in kinds]
        return sorted([*found, *whole], key=lambda one: (one.level != "alarm", one.first_step))

    def _new(self, rules: Iterable[Rule]) -> list[Finding]:
        new = []
        for finding in (finding for rule in rules for finding in rule(self.history)):
            key = finding.kind, finding.subject
            if before := self._found.get(key):
                finding = replace(finding, first_step=min(before.first_step, finding.first_step))
            if before is None or (before.level, finding.level) == ("note", "alarm"):
                new.append(finding)
            self._found[key] = finding
        return new
