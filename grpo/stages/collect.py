"""Collecting a rollout: take problems, sample and score them, keep what is trained on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack

from rewards.runner.score import Rewards, ScoredGroup
from rollout.data.stream import PromptStream
from rollout.engines.base import Engine
from rollout.types import Group, Prompt, Sampling

Phase = Callable[[str], AbstractContextManager[None]]  # times a block under a name


def collect(
    problems: PromptStream, engine: Engine, rewards: Rewards, sampling: Sampling, *, count: int, phase: Phase
) -> list[ScoredGroup]:
    """This process's share of the next `count` problems (over all processes), sampled and scored."""
    prompts = problems.take(count)
    scored = score(prompts, engine, rewards, sampling, phase)
    return keep(prompts, scored)


def score(
    prompts: Sequence[Prompt], engine: Engine, rewards: Rewards, sampling: Sampling, phase: Phase
) -> list[ScoredGroup]:
    """Groups in the order in which they are finished; reward workers score while the engine generates."""
    with ExitStack() as phases:
        phases.enter_context(phase("generate"))

        def generated() -> Iterator[Group]:
            yield from engine.generate(prompts, sampling)
            phases.close()
            phases.enter_context(phase("reward"))  # what scoring takes beyond generation

        return list(rewards.score(generated()))


def keep(prompts: Sequence[Prompt], scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """All of them, in the order of the prompts: which group finished first must not decide anything."""
    order = {prompt.problem.id: i for i, prompt in enumerate(prompts)}
    return sorted(scored, key=lambda group: order[group.group.problem.id])
