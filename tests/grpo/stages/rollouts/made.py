"""Rollouts over real problems and rewards, and an engine whose groups finish when a test says so."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from grpo.stages.rollouts.ahead import Ahead
from grpo.stages.rollouts.tracked import TrackedStream
from rewards.runner.score import Rewards, RewardSpec, ScoredGroup
from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import ProblemStream
from rollout.types import Completion, Group, Prompt, Sampling
from tests.conftest import byte_tokenizer


def problems(process_index: int = 0, num_processes: int = 1) -> TrackedStream:
    """Countdown problems countdown/train/0, 1, 2, …"""
    source = load_source(task="countdown", split="train", seed=0)
    prompter = Prompter(byte_tokenizer(), template="{prompt} :", max_prompt_length=40)
    shard = {"process_index": process_index, "num_processes": num_processes}
    return TrackedStream(ProblemStream(source, prompter, seed=0, **shard))


def number(prompt: Prompt | Group | ScoredGroup) -> int:
    """The problem's number."""
    group = prompt.group if isinstance(prompt, ScoredGroup) else prompt
    return int(group.problem.id.rpartition("/")[2])


class Hand:
    """An engine (`Streaming`) whose groups are finished at once, those in `held` when they are released."""

    def __init__(self) -> None:
        self.version = 0
        self.held: set[int] = set()
        self.pending: dict[int, tuple[Prompt, Future[Group]]] = {}
        self.asked: list[int] = []
        self.after: Callable[[Future[Group], Group], object] = Future.set_result

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Group]:
        self.asked.append(number(prompt))
        future: Future[Group] = Future()
        if number(prompt) in self.held:
            self.pending[number(prompt)] = prompt, future
        else:
            self.after(future, group(prompt, self.version))
        return future

    def release(self, one: int, version: int | list[int]) -> None:
        """Finish a held group, whose tokens these weights have sampled."""
        self.held.discard(one)
        prompt, future = self.pending.pop(one)
        future.set_result(group(prompt, version))


def group(prompt: Prompt, version: int | list[int]) -> Group:
    """Two completions of two tokens."""
    completion = Completion(
        token_ids=[65, 66], logprobs=[-1.0, -1.0], text="AB", finish_reason="stop", policy_version=version
    )
    return prompt.group([completion] * 2)


def length(prompts: list, completions: list[str], **_: object) -> list[float]:
    return [float(len(text)) for text in completions]


@contextmanager
def untimed(_: str) -> Iterator[None]:
    yield


def ahead(
    engine: Hand, stream: TrackedStream, rewards: Rewards | None = None, *, max_staleness: int, count: int = 2
) -> Ahead:
    """Rollouts of `count` problems with one optimizer step each."""
    return Ahead(
        stream,
        engine,
        rewards or Rewards([RewardSpec(function=length)], num_workers=0),
        Sampling(num_generations=2, max_completion_length=2),
        count=count,
        share=count,
        steps=1,
        max_staleness=max_staleness,
        phase=untimed,
    )


def without_deadlock(work: Callable[[], object]) -> None:
    """Run the work in a thread; AssertionError if it hangs, which no busy machine makes it do for so long."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(900)
    assert not thread.is_alive(), "deadlock"
