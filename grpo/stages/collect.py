"""Collecting a rollout: take problems, sample and score them, keep what is trained on.

take --Prompt--> engine.generate --Group--> rewards.score --ScoredGroup--> keep
  ^                                                                         |
  +---- dynamic sampling: until there are enough groups with a signal ------+
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Protocol

from accelerate.utils import gather_object

from grpo.algorithm.plan import Plan, Shapes
from grpo.evaluation.training import deciding_reward
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

Sampled = tuple[Prompt, ScoredGroup]


@dataclass(frozen=True, slots=True)
class Rollout:
    """Rollout(groups, {"dynamic_sampling/rounds": Max(2.0), "reward": Mean(0.3, 512), …}, {0: (prompt, group), …})"""

    groups: list[ScoredGroup]  # this process's share: groups p, p + P, … of the batch
    metrics: dict[str, Metric]  # of how it was collected; those of all groups sampled replace those of `groups`
    used: Mapping[int, Sampled]  # this process's share of the problems it moved the stream by, by their place


def collect(parts: Parts, step: int) -> Rollout:
    """This process's share of the groups to train on after `step` optimizer steps. All processes call it together.

    Raises:
        EngineLostError: in all processes, if one has lost its engine.
    """
    recipe, problems, processes = parts.recipe.at(step), parts.problems, parts.accelerator
    sampling = recipe.rollout_sampling(step // recipe.policy_gradient.steps_per_generation)

    def sample(prompts: Sequence[Prompt]) -> list[ScoredGroup]:
        return keep(prompts, score(prompts, parts.engine, parts.rewards, sampling, parts.report.phase))

    for stream in problems.streams.values():
        stream.begin(step)
    if recipe.rollout.dynamic_sampling:
        rollout = refill(
            problems,
            sample,
            lambda group: teaches(group, recipe.policy_gradient, parts.rewards.reward_weights),
            count=recipe.problems_per_rollout,
            max_rounds=recipe.rollout.max_num_gen_batches,
            totals=parts.totals,
            processes=processes,
        )
    else:
        prompts = problems.take(recipe.problems_per_rollout)
        groups, lost = list[ScoredGroup](), ""
        try:
            groups = sample(prompts)
        except EngineLostError as error:
            lost = str(error)
        if lost := next(filter(None, gather_object([lost])), ""):
            raise EngineLostError(lost)
        places = range(processes.process_index, recipe.problems_per_rollout, processes.num_processes)
        rollout = Rollout(groups, {}, dict(zip(places, zip(prompts, groups, strict=True), strict=True)))
    if recipe.data.curriculum is None:
        return rollout
    return replace(
        rollout,
        metrics=rollout.metrics | observe(problems, rollout.used, parts.rewards, recipe.evaluation.reward, step),
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


def observe(
    problems: PromptStream,
    used: Mapping[int, Sampled],
    rewards: Rewards,
    reward: str | None,
    step: int,
    *,
    gather: Gather = gather_object,
) -> dict[str, Metric]:
    """Tell the curricula of the pass rates of problems sampled after `step` optimizer steps; returns their metrics.

    reward: the one that decides what passes (> 0.5), as in `evaluation`.
    """
    streams = problems.streams
    rates: list[tuple[int, str, int, float]] = []  # place, source, position in its stream, pass rate
    for place, (prompt, scored) in used.items():
        source = "" if "" in streams else prompt.problem.columns["data_source"]
        if source and not rewards.count_for(source):
            continue
        values = [v for v in scored.breakdown[deciding_reward(rewards, reward, source)] if v is not None]
        if values:
            rates.append((place, source, prompt.position, sum(value > 0.5 for value in values) / len(values)))
    everyone = sorted(gather(rates))
    for name, stream in streams.items():
        stream.observe([(position, rate) for _, source, position, rate in everyone if source == name], step)
    curricula = [stream.curriculum for stream in streams.values() if stream.curriculum is not None]
    known = [rate for curriculum in curricula for rate in curriculum.rates.values()]
    return {
        "curriculum/skipped_rows": Max(float(sum(curriculum.skipped for curriculum in curricula))),
        "curriculum/pass_rate": Mean.of(known),
    }


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
    return bool((alone.has_advantage & (alone.token_weights > 0)).any())


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
    before, own, accepted = problems.state_dict(), dict[int, Sampled](), list[bool]()
    rounds = 0
    while (missing := count - sum(accepted)) > 0 and rounds < max_rounds:
        rounds += 1
        rate = totals.acceptance_rate
        size = missing if rate is None else ceil(missing / max(rate, LOWEST_RATE))
        prompts, groups, lost = problems.take(size), list[ScoredGroup](), ""
        try:
            groups = sample(prompts)
        except EngineLostError as error:
            lost = str(error)
        shares = gather([([has_signal(group) for group in groups], lost)])
        if lost := next((lost for _, lost in shares if lost), ""):
            raise EngineLostError(lost)
        for place, pair in enumerate(zip(prompts, groups, strict=True)):
            own[len(accepted) + index + place * world] = pair
        accepted += [shares[i % world][0][i // world] for i in range(size)]
        totals.count_groups(size, sum(accepted[-size:]))
    with_signal = [place for place, ok in enumerate(accepted) if ok]
    kept = (with_signal + [place for place, ok in enumerate(accepted) if not ok])[:count]
    used = len(accepted) if missing > 0 else kept[-1] + 1
    if missing <= 0:
        problems.load_state_dict(before)
        problems.take(used)
    elif processes.is_main_process:
        print(
            f"warning: dynamic sampling found {len(with_signal)} of {count} groups with a signal among {len(accepted)} "
            f"in {rounds} rounds (rollout.max_num_gen_batches); the step trains on these.",
            file=sys.stderr,
            flush=True,
        )
    metrics = rollout_metrics([group for _, group in own.values()]) | {
        "dynamic_sampling/acceptance_rate": Mean.of([accepted[place] for place in own]),
        "dynamic_sampling/sampled_groups": Sum(float(len(own))),
        "dynamic_sampling/rounds": Max(float(rounds)),
        "dynamic_sampling/missing_groups": Max(float(max(missing, 0))),
    }
    groups = _share(kept, {place: group for place, (_, group) in own.items()}, index, world, gather)
    return Rollout(groups, metrics, {place: pair for place, pair in own.items() if place < used})


def _share(
    kept: Sequence[int], own: Mapping[int, ScoredGroup], index: int, world: int, gather: Gather
) -> list[ScoredGroup]:
    """Groups p, p + P, … of those kept; what other processes sampled is sent."""
    sent = {place: own[place] for number, place in enumerate(kept) if place in own and number % world != index}
    everyone = dict(own)
    for part in gather([sent]):
        everyone |= part
    return [everyone[place] for place in kept[index::world]]
