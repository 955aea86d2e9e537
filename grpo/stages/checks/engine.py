"""Before the first step: the engine, given the trainer's weights, computes the trainer's log-probs."""

from dataclasses import replace
from math import inf

import numpy as np

from grpo.learner.batch import Sample, unweighted
from grpo.learner.policy import Policy
from grpo.model.adapters import perturbed
from rollout.data.stream import PromptStream
from rollout.engines.base import Engine, Publisher
from rollout.types import Sampling

NUM_PROMPTS = 4
MAX_TOKENS = 16
GROWTH = 3.0  # of the difference, once the engine has received the weights that it had
NEGLIGIBLE = 1e-3  # a difference that no wrong weights make


def verify_engine(
    policy: Policy,
    engine: Engine,
    publisher: Publisher,
    problems: PromptStream,
    *,
    step: int,
    sampling: Sampling,
    bound: float,
    has_weights: bool,
    records_routes: bool = False,
) -> None:
    """Publish the policy's weights and compare log-probs on a few completions.

    Of adapters, others are compared first: new ones change nothing, and an engine that ignores some would agree.

    sampling: the rollouts', whose distribution is compared.
    has_weights: the engine has loaded the same weights itself; then they are compared before, too. Not so if it has the
        base and the policy has been trained, and never ask a server that is running: it may be in an update that an
        earlier trainer has not finished.
    records_routes: the engine is to return the experts that it took, which are replayed.

    Raises:
        ValueError: it returns none. Or the mean |log p_trainer - log p_engine| exceeds `bound`, or clearly what it was
            before the same weights were sent: in bfloat16, experts that arrive exchanged can stay below the bound.
    """
    sampling = replace(sampling, num_generations=2, max_completion_length=MAX_TOKENS, seed=0, stop=())
    before = _difference(policy, _sampled(engine, problems, sampling)) if has_weights else None
    if policy.send_adapters:
        with perturbed(policy.model):
            publisher.publish(policy.weights(), step)
            after = _difference(policy, _sampled(engine, problems, sampling))
        if not after <= bound:
            raise ValueError(
                f"rollout.adapters=send: with adapters that differ from 0, the engine's log-probs differ from the "
                f"trainer's by {after:.2g} on average, above {bound:.2g}: it does not apply them all as peft does. Set "
                "rollout.adapters=merge."
            )
    publisher.publish(policy.weights(), step)
    samples = _sampled(engine, problems, sampling)
    if records_routes and all(sample.routes is None for sample in samples):
        raise ValueError(
            "algorithm.routing_replay='R3': the engine returned no experts with its completions, so nothing can be "
            "replayed. Set algorithm.routing_replay=none, or R2."
        )
    after, widest = _difference(policy, samples), inf
    if before is not None and before <= bound:
        widest = max(GROWTH * before, NEGLIGIBLE)
    if after <= min(bound, widest):
        return
    where = "after it received the trainer's weights"
    if before is not None and before <= bound:
        where += ", and agreed before: they arrive wrong"
    elif before is not None:
        where = "already with the weights it loaded itself: it computes the model differently"
    lower = "; if the engine is meant to compute in lower precision, raise algorithm.max_logp_difference"
    raise ValueError(
        f"{policy.model.config.name_or_path} ({policy.model.config.model_type}): the engine's log-probs differ from "
        f"the trainer's by {after:.2g} on average, above {min(bound, widest):.2g}, {where}. Set "
        f"rollout.engine=hf{lower if bound < widest else ''}."
    )


def _sampled(engine: Engine, problems: PromptStream, sampling: Sampling) -> list[Sample]:
    """A few completions."""
    return unweighted(engine.generate(problems.first(NUM_PROMPTS), sampling))


def _difference(policy: Policy, samples: list[Sample]) -> float:
    """Mean |log p_trainer - log p_engine| over their tokens."""
    policy.check_routes(samples)
    ours = np.concatenate(policy.logprobs(samples))
    return float(np.abs(ours - np.concatenate([sample.per_token("sampling_logprobs") for sample in samples])).mean())
