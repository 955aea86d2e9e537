"""Rewards: plain functions with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`.

Each works alone: accuracy(["1+1?"], [r"\\boxed{2}"], ["2"]) == [1.0]. `rewards.score` runs those that a recipe lists.
"""

from rewards.accuracy import accuracy
from rewards.code import code
from rewards.countdown import countdown
from rewards.exact_match import exact_match
from rewards.format import format
from rewards.gym import reasoning_gym
from rewards.judge import judge
from rewards.language import language
from rewards.length import cosine_scaled, relative_length, soft_overlong_punishment
from rewards.model import reward_model
from rewards.multiple_choice import multiple_choice
from rewards.random_reward import random_reward
from rewards.repetition import repetition_penalty
from rewards.text import answer_text

__all__ = [
    "accuracy",
    "answer_text",
    "code",
    "cosine_scaled",
    "countdown",
    "exact_match",
    "format",
    "judge",
    "language",
    "multiple_choice",
    "random_reward",
    "reasoning_gym",
    "relative_length",
    "repetition_penalty",
    "reward_model",
    "soft_overlong_punishment",
]
