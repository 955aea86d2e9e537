"""The coefficient of the entropy bonus: fixed, or moved after every update towards a target (Skywork-OR1, 2505.22312).

    c_k+1 = min(c_k + delta, max)    if the entropy e_k of update k was at most the target
            max(c_k - delta, 0)      otherwise
    the loss of update k + 1 has the coefficient c_k+1 if e_k was at most the target, else 0

so that a policy with enough entropy is left alone. TRL's `use_adaptive_entropy`, which has a lower bound beside it.
"""

import math
from typing import Any

from grpo.recipe.algorithm import AlgorithmConfig


class EntropyBonus:
    """What the next update's loss multiplies the entropy with. Kept in checkpoints."""

    def __init__(self, algorithm: AlgorithmConfig) -> None:
        self.follow(algorithm)
        self.controlled = algorithm.entropy_coef  # c
        self.entropy = math.inf  # of the last update

    def follow(self, algorithm: AlgorithmConfig) -> None:
        """Take the recipe's numbers, which a schedule may change. With a target, the coefficient goes its own way."""
        self.target = algorithm.entropy_target
        self.delta, self.max = algorithm.entropy_coef_delta, algorithm.entropy_coef_max
        if self.target is None:
            self.controlled = algorithm.entropy_coef

    @property
    def coef(self) -> float:
        return self.controlled if self.target is None or self.entropy <= self.target else 0.0

    def observe(self, entropy: float | None) -> None:
        """Take the mean entropy of an update's tokens, over all processes, in nats; None: it had no tokens."""
        if self.target is None or entropy is None:
            return
        self.entropy = entropy
        if entropy <= self.target:
            self.controlled = min(self.controlled + self.delta, self.max)
        else:
            self.controlled = max(self.controlled - self.delta, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"controlled": self.controlled, "entropy": self.entropy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.target is not None:  # a fixed coefficient is the recipe's
            self.controlled, self.entropy = state["controlled"], state["entropy"]
