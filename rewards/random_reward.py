"""A random reward, for control runs whose learning curve must stay flat."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from rewards.runner.load import checked_by
from rewards.text import Text, completion_text


def _check(columns: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    p = options.get("p", 0.5)
    if not 0 <= p <= 1:
        raise ValueError(f"reward 'random' has p={p!r}, but p is a probability. Choose 0 <= p <= 1.")


@checked_by(_check)
def random_reward(
    prompts: Sequence[Text], completions: Sequence[Text], *, p: float = 0.5, seed: int = 0, **kwargs: Any
) -> list[float | None]:
    """1.0 with probability p, else 0.0, independent of the answer (the control in "Spurious Rewards", 2506.10947).

    The draw is a hash of seed, prompt, completion and position in the group, so a resumed run repeats it exactly. The
    position makes equal completions in a group independent, so that no answer is worth more than another.
    """
    return [
        float(_uniform(f"{seed}\0{prompt}\0{index}\0{completion_text(completion)}") < p)
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
    ]


def _uniform(key: str) -> float:
    """A uniform number in [0, 1)."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "big") / 2**64
