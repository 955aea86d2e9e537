"""Reward by chance: the control run whose curve must not rise."""

import hashlib
from collections.abc import Sequence
from typing import Any

from rewards.text import Text, completion_text


def random_reward(
    prompts: Sequence[Text], completions: Sequence[Text], *, p: float = 0.5, seed: int = 0, **kwargs: Any
) -> list[float | None]:
    """1.0 with probability p, else 0.0, whatever the answer (the control of "Spurious Rewards", 2506.10947).

    A hash of seed, prompt, completion and position in the group decides, so that a resumed run repeats it exactly,
    while equal completions of a group are drawn apart: no answer is worth more than another.
    """
    return [
        float(_uniform(f"{seed}\0{prompt}\0{index}\0{completion_text(completion)}") < p)
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def _uniform(key: str) -> float:
    """A number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big") / 2**64
