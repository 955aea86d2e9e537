"""Sampling from a part of the vocabulary, and its rules."""

from collections.abc import Iterator, Sequence

from pydantic import NonNegativeInt

from grpo.recipe.optimizer import Fraction, PositiveFraction
from grpo.recipe.section import Section


class Truncation(Section):
    """Which tokens a rollout draws from. The order is vLLM's: min_p, top_k, top_p."""

    top_p: PositiveFraction = 1.0  # the likeliest tokens with this probability together; 1: all
    top_k: NonNegativeInt = 0  # the likeliest; 0: no limit
    min_p: Fraction = 0.0  # with this share of the likeliest one's probability; 0: no limit


def truncation_conflicts(
    rollout: Truncation, engine: str, able: Sequence[str], *, masked: bool, learns_rewards: bool
) -> Iterator[str]:
    """able: the engines that return what they kept. masked: `algorithm.sampling_mask`."""
    changed = [
        f"rollout.{name}={value}"
        for name, field in Truncation.model_fields.items()
        if (value := getattr(rollout, name)) != field.default
    ]
    if changed and not learns_rewards:
        yield (
            f"{', '.join(changed)}: a teacher's log-probs are those over all tokens, and the student would sample from "
            "a part. Remove it."
        )
    elif changed and not masked:
        yield (
            f"{', '.join(changed)} without algorithm.sampling_mask: the engine would sample from a part of the tokens, "
            "and the trainer's log-probs would be those over all. Set algorithm.sampling_mask=true, or remove it."
        )
    elif masked and not changed:
        yield (
            "algorithm.sampling_mask=true, but nothing is left out of a rollout. Set rollout.top_p, top_k or min_p, or "
            "remove it."
        )
    if masked and engine not in able:
        yield (
            f"algorithm.sampling_mask=true with rollout.engine={engine!r}: this engine does not return the tokens that "
            f"it kept. Set rollout.engine to one of {', '.join(able)}, or remove it and rollout.top_p, top_k and min_p."
        )
