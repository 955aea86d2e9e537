"""What the trainer and the evaluator ask of a rollout engine."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from rollout.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor


class Engine(Protocol):
    """Generates groups of completions with the newest weights it was given."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield one Group per prompt as it finishes, in no particular order."""
        ...

    def load_weights(self, weights: Iterable[tuple[str, "Tensor"]], policy_version: int) -> None:
        """Replace the weights, in memory. Names are those of the checkpoint on disk (Hugging Face layout)."""
        ...

    def close(self) -> None:
        """Free the engine's memory and processes."""
        ...


def request_seed(sampling: Sampling, prompt: Prompt) -> int:
    """A 63-bit seed for one prompt's group: equal on every machine, process count and order of prompts."""
    key = f"{sampling.seed}/{prompt.problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1
