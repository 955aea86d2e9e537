"""Warnings about a run that wastes its compute: what is seen, why it matters, what to do.

    alarms = Alarms(max_logp_difference=0.5)
    alarms.update({"step": 10, "frac_reward_zero_std": 1.0, …})  # -> ["no group has had a reward signal for …"]

Each warning is given once per run. A pure function of the rows: replaying them restores the state after a resume.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from grpo.report.hacking import HackingWatch

ROWS_IN_A_ROW = 10  # without signal, or with every completion truncated
FIRST_ROWS = 5  # whose mean entropy and length are the baseline
MIN_ENTROPY_RATIO = 0.1  # of the baseline
MIN_LENGTH_RATIO = 0.2  # of the baseline
ZERO_RATE_ROWS = 2  # a warm-up's first step has learning rate 0
NEAR_BOUND = 0.5  # of algorithm.max_logp_difference
ZERO = 1e-8  # reward deviations below it are rounding, as in frac_reward_zero_std


class Alarms:
    """Watches a run's rows; `max_logp_difference` is the bound at which the run stops."""

    def __init__(self, max_logp_difference: float, hacking: HackingWatch | None = None) -> None:
        self._hacking = hacking or HackingWatch()
        self._max_logp_difference = max_logp_difference
        self._in_a_row: defaultdict[str, int] = defaultdict(int)
        self._first: defaultdict[str, list[float]] = defaultdict(list)
        self._given: set[str] = set()

    def update(self, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that this training row is the first to justify. Missing, null and NaN values all mean null."""
        return self._new([*self._found(metrics), *self._hacking.training(_finite(metrics))])

    def update_evaluation(self, metrics: Mapping[str, Any]) -> list[str]:
        """The warnings that this held-out evaluation is the first to justify."""
        return self._new(self._hacking.evaluation(_finite(metrics)))

    def _new(self, messages: Iterable[tuple[str, str]]) -> list[str]:
        found = dict(messages)
        new = [message for kind, message in found.items() if kind not in self._given]
        self._given |= found.keys()
        return new

    def _found(self, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(kind, message) of everything wrong in a row."""
        row = _finite(metrics)
        if self._lasts("signal", "reward_std" in metrics and row.get("reward_std", 0.0) < ZERO, ROWS_IN_A_ROW):
            yield (
                "signal",
                f"no group has had a reward signal for {ROWS_IN_A_ROW} rollouts: all completions of a problem score "
                "the same, so every advantage is zero and the policy does not learn. Read samples.jsonl; fix the "
                "reward, choose problems that are solved sometimes, or raise rollout.num_generations.",
            )
        if self._lasts("truncated", row.get("completions/clipped_ratio", 0.0) >= 1.0, ROWS_IN_A_ROW):
            yield (
                "truncated",
                f"every completion has been truncated for {ROWS_IN_A_ROW} rollouts: none ends on its own, so few "
                "contain a final answer. Raise rollout.max_completion_length, or check that the template and the "
                "tokenizer's EOS token match the model.",
            )
        if fall := self._fall("entropy", row, MIN_ENTROPY_RATIO):
            yield (
                "entropy",
                f"entropy has collapsed, {fall}: completions of a problem become the same, which ends exploration. "
                "Lower trainer.learning_rate, raise algorithm.epsilon_high or algorithm.beta, or stop here.",
            )
        if fall := self._fall("completions/mean_length", row, MIN_LENGTH_RATIO):
            yield (
                "length",
                f"completion length has collapsed, {fall} tokens: the policy may have found a short text that is "
                "rewarded without reasoning. Read samples.jsonl and check the reward.",
            )
        if self._lasts("rate", row.get("learning_rate") == 0.0, ZERO_RATE_ROWS):
            yield (
                "rate",
                "the learning rate is zero, so the weights do not change. Check trainer.learning_rate, "
                "trainer.lr_scheduler_type and trainer.warmup_steps against trainer.max_steps.",
            )
        mean, bound = row.get("sampling/sampling_logp_difference/mean", 0.0), self._max_logp_difference
        if NEAR_BOUND * bound < mean <= bound:
            yield (
                "mismatch",
                f"mean |log p_trainer - log p_engine| is {mean:.2g}, near algorithm.max_logp_difference={bound:g}, "
                "where the run stops: the engine samples from a different policy than the one trained. Compare with "
                "rollout.engine=hf, or use model.dtype=float32.",
            )
        missing = row.get("frac_unrewarded_samples", float("reward" in metrics and "reward" not in row))
        if missing > 0:
            yield (
                "rewards",
                f"{missing:.1%} of the completions have no reward (NaN): no reward function applied to them, so they "
                "are not trained on. Check the rewards' data_sources and the problems' columns.",
            )

    def _lasts(self, name: str, holds: bool, rows: int) -> bool:
        """Whether a condition has held for this many rows in a row, this one included."""
        self._in_a_row[name] = self._in_a_row[name] + 1 if holds else 0
        return self._in_a_row[name] >= rows

    def _fall(self, name: str, row: Mapping[str, float], ratio: float) -> str | None:
        """ "from 0.8 to 0.05" if the metric is below `ratio` of its baseline."""
        if name not in row:
            return None
        first = self._first[name]
        if len(first) < FIRST_ROWS:
            first.append(row[name])
            return None
        baseline = sum(first) / len(first)
        return f"from {baseline:.3g} to {row[name]:.3g}" if row[name] < ratio * baseline else None


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and math.isfinite(value)}
