"""Rules for `rollout.dynamic_sampling`."""

from collections.abc import Iterator, Mapping


def dynamic_sampling_conflicts(
    *, learns_rewards: bool, advantage_estimator: str, late_sources: Mapping[str, int]
) -> Iterator[str]:
    """late_sources: those of a mixture that do not join at step 0, and their steps."""
    if not learns_rewards:
        yield (
            "rollout.dynamic_sampling=true: it leaves out groups whose rewards teach nothing, and here every token has "
            "a teacher. Remove it."
        )
    elif advantage_estimator == "reinforce_plus_plus":
        yield (
            "rollout.dynamic_sampling=true with algorithm.advantage_estimator='reinforce_plus_plus': it compares with "
            "the batch's mean, so groups of equal rewards teach too. Remove it, or use another estimator, such as "
            "reinforce_plus_plus_baseline."
        )
    for name, step in late_sources.items():
        yield (
            f"data.mixture: {name!r} has from_step={step}, which counts problems_per_step problems a step; with "
            "rollout.dynamic_sampling=true a step takes more. Set from_step=0, or dynamic_sampling=false."
        )
