"""Collecting a rollout: take problems, sample and score them, keep what is trained on.

    take --Prompt--> engine.generate --Group--> rewards.score --ScoredGroup--> keep
      ^                                                                         |
      +---- dynamic sampling: until there are enough groups with a signal ------+
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from math import ceil
from typing import Any, Protocol

from accelerate.utils import gather_object

from grpo.algorithm.plan import Plan, Shapes
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import Max, Mean, Metric, Sum
from grpo.report.rollout_metrics import Totals, rollout_metrics
from grpo.stages.build import Parts
from rewards.runner.score import Rewards, ScoredGroup
from rollout.data.stream import PromptStream
from rollout.engines.base import Engine, EngineLostError
from rollout.types import Group, Prompt, Sampling

Phase = Callable[[str], AbstractContextManager[None]]  # times a block under a name
Gather = Callable[[list[Any]], list[Any]]  # accelerate's gather_object
LOWEST_RATE = 0.25  # a round samples at most 1 / LOWEST_RATE times the groups that are missing
ROUNDING = 1e-9  # an advantage below it is that of equal rewards


@dataclass(frozen=True, slots=True)
class Rollout:
    """Rollout(groups, {"dynamic_sampling/rounds": Max(2.0), "reward": Mean(0.3, 512), …})"""

    groups: list[ScoredGroup]  # this process's share: groups p, p + P, … of the batch
    metrics: dict[str, Metric]  # of dynamic sampling, and of all groups that it sampled; they replace those of `groups`


def collect(parts: Parts, step: int) -> Rollout:
    """This process's share of the groups to train on after `step` optimizer steps. All processes call it together.

    Raises:
        EngineLostError: the engine is gone.
    """
    recipe = parts.recipe
    sampling = recipe.rollout_sampling(step // recipe.policy_gradient.steps_per_generation)

    def sample(prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        return keep(prompts, score(prompts, parts.engine, parts.rewards, sampling, parts.report.phase))

    if not recipe.rollout.dynamic_sampling:
        return Rollout(sample(parts.problems.take(recipe.problems_per_rollout)), {})
    return refill(
        parts.problems,
        sample,
        lambda group: teaches(group, recipe.policy_gradient, parts.rewards.reward_weights),
        count=recipe.problems_per_rollout,
        max_rounds=recipe.rollout.max_num_gen_batches,
        totals=parts.totals,
        processes=parts.accelerator,
    )


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


# -- dynamic sampling


class Processes(Protocol):
    """Of an Accelerator."""

    @property
    def process_index(self) -> int: ...
    @property
    def num_processes(self) -> int: ...
    @property
    def is_main_process(self) -> bool: ...


def teaches(group: ScoredGroup, algorithm: AlgorithmConfig, reward_weights: Sequence[float]) -> bool:
    """Whether rewards give any completion of the group a gradient: by the rule that decides what is trained on."""
    alone = Plan.of(
        Shapes.of([group]),
        algorithm.model_copy(update={"steps_per_generation": 1}),
        max_completion_length=1,  # it scales token weights
        seed=0,
        reward_weights=reward_weights,
    )
    return bool(((abs(alone.advantages) > ROUNDING) & (alone.token_weights > 0)).any())


def refill(
    problems: PromptStream,
    sample: Callable[[Sequence[Prompt]], list[ScoredGroup]],
    has_signal: Callable[[ScoredGroup], bool],
    *,
    count: int,
    max_rounds: int,
    totals: Totals,
    processes: Processes,
    gather: Gather = gather_object,
) -> Rollout:
    """DAPO's dynamic sampling (2503.14476 section 3.2, eq. 11): the stream's next `count` groups with a signal.

    Rounds sample as many problems as the running acceptance rate makes necessary. Those beyond the last one kept go
    back to the stream, and the next rollout samples them again with its newer weights: so a batch is always on-policy,
    and depends neither on how many were sampled at once nor on the number of processes. After `max_rounds` rounds
    groups without a signal fill the batch, which makes the step a smaller one.

    Raises:
        EngineLostError: in all processes, if one has lost its engine.
    """
    index, world = processes.process_index, processes.num_processes
    before, own, accepted = problems.state_dict(), dict[int, ScoredGroup](), list[bool]()
    rounds = 0
    while (missing := count - sum(accepted)) > 0 and rounds < max_rounds:
        rounds += 1
        rate = totals.acceptance_rate
        size = missing if rate is None else ceil(missing / max(rate, LOWEST_RATE))
        groups, lost = list[ScoredGroup](), ""
        try:
            groups = sample(problems.take(size))
        except EngineLostError as error:
            lost = str(error)
        shares = gather([([has_signal(group) for group in groups], lost)])
        if lost := next((lost for _, lost in shares if lost), ""):
            raise EngineLostError(lost)
        own |= {len(accepted) + index + place * world: group for place, group in enumerate(groups)}
        accepted += [shares[i % world][0][i // world] for i in range(size)]
        totals.count_groups(size, sum(accepted[-size:]))
    with_signal = [number for number, ok in enumerate(accepted) if ok]
    kept = (with_signal + [number for number, ok in enumerate(accepted) if not ok])[:count]
    if len(with_signal) >= count:
        problems.load_state_dict(before)
        problems.take(kept[-1] + 1)
    elif processes.is_main_process:
        print(
            f"warning: dynamic sampling found {len(with_signal)} of {count} groups with a signal among {len(accepted)} "
            f"in {rounds} rounds (rollout.max_num_gen_batches); the step trains on these.",
            file=sys.stderr,
            flush=True,
        )
    return Rollout(
        _share(kept, own, index, world, gather),
        _metrics(own, [accepted[number] for number in own], rounds=rounds, missing=max(missing, 0)),
    )


def _share(
    kept: Sequence[int], own: dict[int, ScoredGroup], index: int, world: int, gather: Gather
) -> list[ScoredGroup]:
    """Groups p, p + P, … of those kept; what other processes sampled is sent."""
    sent = {number: own[number] for place, number in enumerate(kept) if number in own and place % world != index}
    everyone = dict(own)
    for part in gather([sent]):
        everyone |= part
    return [everyone[number] for number in kept[index::world]]


def _metrics(
    own: dict[int, ScoredGroup], accepted: Sequence[bool], *, rounds: int, missing: int
) -> dict[str, Metric]:
    """Of all groups that this process sampled, those not kept too: else the mean reward would be that of a selection."""
    name = "dynamic_sampling"
    return rollout_metrics(list(own.values())) | {
        f"{name}/acceptance_rate": Mean.of(accepted),
        f"{name}/sampled_groups": Sum(float(len(own))),
        f"{name}/rounds": Max(float(rounds)),
        f"{name}/missing_groups": Max(float(missing)),
    }
