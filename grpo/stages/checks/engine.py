"""Before the first step: the engine, given the trainer's weights, computes the trainer's log-probs."""

from dataclasses import replace

import numpy as np

from grpo.learner.batch import unweighted
from grpo.learner.policy import Policy
from rollout.data.stream import PromptStream
from rollout.engines.base import Engine, Publisher
from rollout.types import Sampling

NUM_PROMPTS = 4
MAX_TOKENS = 16


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
) -> None:
    """Publish the policy's weights and compare log-probs on a few completions.

    sampling: the rollouts', whose distribution is compared.
    has_weights: the engine has loaded the same weights itself; then they are compared before, too. Not so if it has the
        base and the policy has been trained, and never ask a server that is running: it may be in an update that an
        earlier trainer has not finished.

    Raises:
        ValueError: the mean |log p_trainer - log p_engine| exceeds `bound`.
    """
    sampling = replace(sampling, num_generations=2, max_completion_length=MAX_TOKENS, seed=0, stop=())
    before = _difference(policy, engine, problems, sampling) if has_weights else None
    publisher.publish(policy.weights(), step)
    after = _difference(policy, engine, problems, sampling)
    if after <= bound:
        return
    where = "after it received the trainer's weights"
    if before is not None and before <= bound:
        where += ", and agreed before: they arrive wrong"
    elif before is not None:
        where = "already with the weights it loaded itself: it computes the model differently"
    raise ValueError(
        f"{policy.model.config.name_or_path} ({policy.model.config.model_type}): the engine's log-probs differ from "
        f"the trainer's by {after:.2g} on average, above {bound:g}, {where}. Set rollout.engine=hf."
    )


def _difference(policy: Policy, engine: Engine, problems: PromptStream, sampling: Sampling) -> float:
    """Mean |log p_trainer - log p_engine| over the tokens of a few completions."""
    prompts = problems.first(NUM_PROMPTS)
    samples = unweighted(engine.generate(prompts, sampling))
    policy.check_routes(samples)
    ours = np.concatenate(policy.logprobs(samples))
    return float(np.abs(ours - np.concatenate([sample.per_token("sampling_logprobs") for sample in samples])).mean())
