"""The values that flow out of generation.

Each is frozen: a later stage returns a new value instead of filling in an old one.
Plain Python throughout, so that rewards and tests need no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np

Message = dict[str, str]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One question, as provided by the dataset or task.

    Problem(
        id="countdown/train/17",
        prompt="use 3,8,2 make 26",                   # or a list of chat messages
        columns={"numbers": [3, 8, 2], "target": 26},  # everything else, passed to the reward functions by name
    )
    """

    id: str
    prompt: str | list[Message]
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A problem as the engine sees it: rendered with the template and tokenized.

    Prompt(problem=Problem(...), token_ids=[1, 40, 17], prefix="<think>\\n", position=17)
    """

    problem: Problem
    token_ids: Sequence[int]
    prefix: str = ""  # end of the prompt that already belongs to the completion: an open <think> or a prefilled answer
    position: int = 0  # in the stream that it was taken from

    def group(self, completions: Sequence["Completion"]) -> "Group":
        """The Group of these completions."""
        return Group(
            problem=self.problem,
            prompt_ids=self.token_ids,
            completions=completions,
            completion_prefix=self.prefix,
        )


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """What top-p, top-k and min-p left to draw each token of a completion from, in no particular order.

    KeptTokens(ids=[5, 9, 7, 2], offsets=[0, 1, 4])  # token 0 was drawn from {5}, token 1 from {9, 7, 2}
    """

    ids: "np.ndarray"  # [K] int32
    offsets: "np.ndarray"  # [tokens + 1] int64


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer.

    Completion(
        token_ids=[5, 9, 2],           # ends with EOS if finish_reason is "stop"; may be empty
        logprobs=[-0.1, -2.3, -0.01],  # the engine's log-prob of each token, at the sampling temperature
        text="<think>…</answer>",      # without EOS, BOS and PAD; other special tokens are kept
        finish_reason="stop",          # "length": truncated at the token budget
        policy_version=3,              # optimizer steps taken before the weights that sampled it were published;
                                       # one per token if new ones arrived while it was sampled: [3, 3, 4]
        mask=None,                     # None: the policy sampled every token; False: a tool's token, not trained on
        routes=None,                   # of a mixture of experts, if the engine was asked for them: see below
        kept=None,                     # the KeptTokens of a truncated distribution, if the engine was asked for them
    )

    routes: [R, layers, k] uint8 (uint16 beyond 256 experts), which experts each MoE layer took for the R tokens of
    prompt and completion before the last one, which is never fed. A prompt's beginning may be missing.
    """

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    text: str
    finish_reason: FinishReason
    policy_version: int | Sequence[int]
    mask: Sequence[bool] | None = None
    routes: "np.ndarray | None" = field(default=None, compare=False, repr=False)
    kept: KeptTokens | None = field(default=None, compare=False, repr=False)

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
    completion_prefix: str = ""  # text of the prompt that already belongs to the answer, such as "<think>\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters, named as in transformers' GenerationConfig and TRL.

    `seed` and the problem's id determine a group's random numbers, so a resumed run samples the same completions as an
    uninterrupted one. The order is vLLM's: temperature, min_p, top_k, top_p, each on what the ones before have left.
    """

    num_generations: int
    max_completion_length: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    min_p: float = 0.0  # tokens less likely than this share of the likeliest one's probability are left out
    seed: int = 0
    stop: tuple[str, ...] = ()  # texts that end a completion; `text` stops before the first one
    logprobs: bool = True  # False: the engine may leave Completion.logprobs empty, which is cheaper

    @property
    def truncates(self) -> bool:
        """Whether tokens are drawn from a part of the vocabulary."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)
