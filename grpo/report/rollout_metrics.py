"""A rollout's metrics: rewards and completion lengths, under TRL's names."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from grpo.report.metrics import Deviation, Max, Mean, Metric, Min, Sum, merge
from rewards.runner.score import ScoredGroup

MEMORY = 0.8  # what a round of dynamic sampling counts, relative to the next


def rollout_metrics(groups: Sequence[ScoredGroup]) -> dict[str, Metric]:
    """Reward and length metrics of this process's groups.

    `num_tokens` counts this rollout; `Totals` accumulates it over the run.
    """
    rewards = np.array([scored.rewards for scored in groups], dtype=np.float64)  # [groups, G]; NaN: no reward applied
    completions = [completion for scored in groups for completion in scored.group.completions]
    lengths = np.array([completion.num_sampled for completion in completions])
    prompt_tokens = sum(len(scored.group.prompt_ids) * len(scored.rewards) for scored in groups)
    comparable = (~np.isnan(rewards)).sum(axis=1) > 1
    deviations = np.nanstd(rewards[comparable], axis=1, ddof=1)
    metrics: dict[str, Metric] = {
        "reward": Mean.of(rewards[~np.isnan(rewards)]),
        "reward_std": Mean.of(deviations),
        "frac_reward_zero_std": Mean(float(np.isclose(deviations, 0.0).sum()), len(groups)),
        "frac_unrewarded_samples": Mean.of(np.isnan(rewards)),
        "completions/mean_length": Mean.of(lengths),
        "completions/min_length": Min(float(lengths.min())),
        "completions/max_length": Max(float(lengths.max())),
        "completions/clipped_ratio": Mean.of([c.finish_reason == "length" for c in completions]),
        "completions/empty_ratio": Mean.of([not c.text.strip() for c in completions]),
        "completions/repeated_ratio": Mean.of([_repeated(scored) for scored in groups]),
        "num_tokens": Sum(float(lengths.sum() + prompt_tokens)),
    }
    if sizes := [np.diff(completion.kept.offsets) for completion in completions if completion.kept is not None]:
        metrics["sampling/kept_tokens/mean"] = Mean.of(np.concatenate(sizes))
        metrics["sampling/kept_tokens/max"] = Max(float(np.concatenate(sizes).max()))
    for name in groups[0].breakdown:
        scores = np.array([scored.breakdown[name] for scored in groups], dtype=np.float64)  # None becomes NaN
        applicable = scores[~np.isnan(scores)]
        metrics[f"rewards/{name}/mean"] = Mean.of(applicable)
        metrics[f"rewards/{name}/std"] = Deviation.of(applicable)
    for name in groups[0].gated:
        metrics[f"rewards/{name}/gated_ratio"] = Mean.of([closed for scored in groups for closed in scored.gated[name]])
    return metrics | logged_metrics(groups, taken=metrics)


def _repeated(scored: ScoredGroup) -> float:
    """The share of a group's completions, beyond the first, whose text another one has already."""
    texts = [completion.text for completion in scored.group.completions]
    return (len(texts) - len(set(texts))) / (len(texts) - 1)


def logged_metrics(groups: Sequence[ScoredGroup], taken: Iterable[str] = ()) -> dict[str, Metric]:
    """Metrics that reward functions passed to `log_metric`: the mean over the step's calls, as in TRL."""
    logged = merge({name: Mean.of(v) for name, v in scored.metrics.items()} for scored in groups)
    if clash := logged.keys() & set(taken):
        raise ValueError(f"a reward logs the metrics {sorted(clash)}, which the run itself reports. Rename them.")
    return logged


class Totals:
    """Counts over the whole run, kept in checkpoints."""

    def __init__(self) -> None:
        self.num_tokens = 0.0
        self._groups = self._accepted = 0.0  # of dynamic sampling, older rollouts counting less

    def count(self, num_tokens: float) -> float:
        """Add a rollout's tokens over all processes; returns the run's tokens so far."""
        self.num_tokens += num_tokens
        return self.num_tokens

    def count_groups(self, groups: int, accepted: int) -> None:
        """Add a round of dynamic sampling, over all processes."""
        self._groups = groups + MEMORY * self._groups
        self._accepted = accepted + MEMORY * self._accepted

    @property
    def acceptance_rate(self) -> float | None:
        """The share of sampled groups with a signal, of late; None: nothing is known yet."""
        return self._accepted / self._groups if self._groups else None

    def state_dict(self) -> dict[str, Any]:
        return {"num_tokens": self.num_tokens, "groups": self._groups, "accepted": self._accepted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_tokens = state["num_tokens"]
        self._groups, self._accepted = state.get("groups", 0.0), state.get("accepted", 0.0)
