"""Rollouts ahead of the update: the engine generates and workers score while the policy is trained.

    next(step):  ask for groups, as many as shall be ahead
                 wait for enough finished ones; for each that is taken, ask for another
    meanwhile, in the engine's thread:  group generated -> reward workers -> finished

Between one and `max_staleness` rollouts' worth of groups is asked for or finished and not taken: as few as keep the
trainer from waiting, since a group that waits grows stale. Weights arrive while groups are sampled: every token
carries the version that sampled it. The staleness of a group is the number of updates that its oldest token has missed,
counted in rollouts.

Left out: engines in the trainer's process, whose generation cannot run beside the update.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from threading import Condition

import numpy as np

from grpo.report.metrics import Max, Mean, Metric, Sum
from grpo.stages.rollouts.tracked import TrackedStream
from rewards.runner.score import Rewards, ScoredGroup, Submitted
from rollout.engines.base import Streaming
from rollout.types import Completion, Group, Prompt, Sampling


@dataclass(slots=True, eq=False)
class _Asked:
    """A group that has been asked for and not been taken; the engine's thread fills in what became of it."""

    prompt: Prompt
    number: int
    step: int  # of the weights when it was asked for
    generation: Future[Group]
    scoring: Submitted | None = None
    error: BaseException | None = None

    @property
    def is_finished(self) -> bool:
        return self.scoring is not None and self.scoring.future.done()


class Ahead:
    """`Rollouts` whose generation runs ahead.

    Args:
        count: problems of a rollout, over all processes.
        share: of them, this process's.
        steps: optimizer steps per rollout.
        max_staleness: most rollouts that may be ahead, and updates that a group may have missed when it is trained on.
        phase: times the trainer's waiting.
    """

    def __init__(
        self,
        problems: TrackedStream,
        engine: Streaming,
        rewards: Rewards,
        sampling: Sampling,
        *,
        count: int,
        share: int,
        steps: int,
        max_staleness: int,
        phase: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._problems, self._engine, self._rewards, self._sampling = problems, engine, rewards, sampling
        self._count, self._share, self._steps, self._max_staleness = count, share, steps, max_staleness
        self._phase = phase
        self._step = self._number = 0
        self._prompts: deque[Prompt] = deque()  # to be asked for next
        self._asked: list[_Asked] = []  # the oldest first
        self._depth = share  # how many groups shall be ahead
        self._taken: list[ScoredGroup] = []
        self._dropped = 0
        self._changed = Condition()  # of what follows, and of `_asked`
        self._generating = 0
        self._clock = _Clock()

    def next(self, step: int) -> list[ScoredGroup]:
        """Groups that are at most `max_staleness` updates old, in the order in which they were asked for."""
        self._step, self._dropped = step, 0
        with self._changed:
            self._clock.start()
        self._ask()
        taken: list[tuple[int, ScoredGroup]] = []
        with self._phase("generate"), self._clock.trainer_waits():
            while len(taken) < self._share:
                asked, scoring = self._wait(self._share - len(taken))
                scored = self._rewards.result(scoring)
                if self._age(scored) > self._max_staleness:
                    self._dropped += 1
                    self._prompts.appendleft(asked.prompt)
                else:
                    taken.append((asked.number, scored))
                self._ask()
        self._taken = [scored for _, scored in sorted(taken, key=itemgetter(0))]
        return self._taken

    def trained(self) -> dict[str, Metric]:
        """Remember the groups' problems; returns staleness, what was dropped and how long each side has rested."""
        self._problems.trained([scored.group.problem.id for scored in self._taken])
        ahead = self._depth / self._share
        self._set_depth()
        with self._changed:
            trainer, generator = self._clock.shares()
        metrics: dict[str, Metric] = {
            "rollout/dropped_stale": Sum(self._dropped),
            "rollout/ahead": Mean(ahead),
            "rollout/idle_trainer": Mean(trainer),
            "rollout/idle_generator": Mean(generator),
        }
        completions = [completion for scored in self._taken for completion in scored.group.completions]
        ages = np.concatenate([(self._step - versions(one)) // self._steps for one in completions])
        if len(ages):
            metrics |= {"rollout/staleness_mean": Mean.of(ages), "rollout/staleness_max": Max(float(ages.max()))}
        for age in range(self._max_staleness + 1):
            metrics[f"rollout/staleness_share_{age}"] = Mean.of(ages == age)
        return metrics

    def close(self) -> None:
        """Cancel what is being generated."""
        for asked in self._asked:
            asked.generation.cancel()

    def _age(self, scored: ScoredGroup) -> int:
        oldest = min(int(versions(one).min(initial=self._step)) for one in scored.group.completions)
        return (self._step - oldest) // self._steps

    def _set_depth(self) -> None:
        """Fewer groups ahead if many are finished when the trainer is about to take some, more if it would wait.

        A quarter more than it takes shall be finished. The depth moves by half of what is missing, as the next count
        may still be of groups that were asked for before. Evaluations and saving come later, and count for nothing.
        """
        missing = self._share + self._share // 4 - sum(asked.is_finished for asked in self._asked)
        depth = self._depth + missing - int(missing / 2)
        self._depth = min(max(depth, self._share), self._max_staleness * self._share)

    def _ask(self) -> None:
        """Ask for as many groups as shall be ahead."""
        while len(self._asked) < self._depth:
            while not self._prompts:  # all of a take may have been trained on before the run was resumed
                self._prompts.extend(self._problems.take(self._count))
            prompt = self._prompts.popleft()
            with self._changed:
                self._generating += 1
                self._clock.generator_works()
            self._number += 1
            asked = _Asked(prompt, self._number, self._step, self._engine.submit(prompt, self._sampling))
            self._asked.append(asked)
            asked.generation.add_done_callback(partial(self._generated, asked))

    def _generated(self, asked: _Asked, generation: Future[Group]) -> None:
        """In the engine's thread: send a group to the workers."""
        try:
            asked.scoring = self._rewards.submit(generation.result())
            asked.scoring.future.add_done_callback(lambda _: self._notify())
        except Exception as error:  # for the trainer, which takes the group
            asked.error = error
        with self._changed:
            self._generating -= 1
            if not self._generating:
                self._clock.generator_rests()
            self._changed.notify_all()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait(self, missing: int) -> tuple[_Asked, Submitted]:
        """The oldest finished group, taken out; `missing`: how many this rollout still needs.

        A group that would be too old for the next rollout is waited for: younger ones do not take its place.
        """
        with self._changed:
            while True:
                for asked in self._asked:
                    if asked.error is not None:
                        raise asked.error
                last_chance = self._step - self._max_staleness * self._steps
                late = sum(asked.step <= last_chance and not asked.is_finished for asked in self._asked)
                finished = next((asked for asked in self._asked if asked.is_finished), None)
                if finished and finished.scoring and (finished.step <= last_chance or late < missing):
                    self._asked.remove(finished)
                    return finished, finished.scoring
                self._changed.wait()


class _Clock:
    """How long each side has rested since the rollout was asked for."""

    def __init__(self) -> None:
        self._resting: float | None = time.perf_counter()  # since when the generator rests; None: it works
        self.start()

    def start(self) -> None:
        """A new rollout is asked for."""
        self._started = time.perf_counter()
        self._waited = self._rested = 0.0
        if self._resting is not None:
            self._resting = self._started

    @contextmanager
    def trainer_waits(self) -> Iterator[None]:
        """The block is the trainer's waiting."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def generator_rests(self) -> None:
        """Nothing is being generated from now on."""
        self._resting = time.perf_counter()

    def generator_works(self) -> None:
        """Something is."""
        if self._resting is not None:
            self._rested += time.perf_counter() - self._resting
            self._resting = None

    def shares(self) -> tuple[float, float]:
        """Of the time since `start`: how much the trainer waited, and the generator rested."""
        now = time.perf_counter()
        resting = 0.0 if self._resting is None else now - self._resting
        return self._waited / (now - self._started), (self._rested + resting) / (now - self._started)


def versions(completion: Completion) -> np.ndarray:
    """The policy version that sampled each token: [n]."""
    return np.broadcast_to(np.asarray(completion.policy_version), len(completion.token_ids))
