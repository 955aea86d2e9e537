"""The values that flow out of generation.

Each is frozen: a later stage returns a new value instead of filling in an old one.
Plain Python throughout, so that rewards and tests need no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Message = dict[str, str]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question, as the dataset or the task gives it.

    Problem(
        id="countdown/train/17",
        prompt="use 3,8,2 make 26",                   # or a list of chat messages
        columns={"numbers": [3, 8, 2], "target": 26},  # everything else; reaches the reward functions by name
    )
    """

    id: str
    prompt: str | list[Message]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the engine sees it: the template applied, then tokenized.

    Prompt(problem=Problem(...), token_ids=[1, 40, 17], prefix="<think>\\n")
    """

    problem: Problem
    token_ids: Sequence[int]
    prefix: str = ""  # end of the prompt that already belongs to the completion: an open <think> or a prefilled answer

    def group(self, completions: Sequence["Completion"]) -> "Group":
        """The Group of these completions."""
        return Group(
            problem=self.problem,
            prompt_ids=self.token_ids,
            completions=completions,
            completion_prefix=self.prefix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer.

    Completion(
        token_ids=[5, 9, 2],           # ends with EOS when finish_reason is "stop"; empty is possible
        logprobs=[-0.1, -2.3, -0.01],  # the engine's log-prob of each sampled token, at the sampling temperature
        text="<think>…</answer>",      # without special tokens such as EOS
        finish_reason="stop",          # "length": cut at the token budget
        policy_version=3,              # optimizer steps behind the weights that sampled it
        mask=None,                     # None: the policy sampled every token; else False for a tool's tokens
    )
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    finish_reason: FinishReason
    policy_version: int
    mask: Sequence[bool] | None = None

    @property
    def num_sampled(self) -> int:
        """Tokens that the policy sampled itself."""
        return len(self.token_ids) if self.mask is None else sum(self.mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The completions sampled for one prompt; advantages are relative within it."""

    problem: Problem
    prompt_ids: Sequence[int]
    completions: Sequence[Completion]
    completion_prefix: str = ""  # text in the prompt that belongs to every completion; Completion.text lacks it


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How completions are drawn. Names as in transformers' GenerationConfig and TRL.

    `seed` and the problem's id determine the random numbers of a group, so that a resumed run draws what the
    uninterrupted one would have drawn.
    """

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts that end a completion as an end token does; the text goes up to the first
    logprobs: bool = True  # False: an engine may leave Completion.logprobs empty, which costs less
