"""Rewards: plain functions with TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`.

Each works alone: accuracy(["1+1?"], [r"\\boxed{2}"], ["2"]) == [1.0]. `rewards.runner` runs those
a recipe lists. Imports of `rollout` are limited to its types and support; nothing here knows a trainer or an engine.
"""

from rewards.answers.accuracy import accuracy
from rewards.answers.countdown import countdown
from rewards.answers.exact_match import exact_match
from rewards.answers.gym import reasoning_gym
from rewards.answers.multiple_choice import multiple_choice
from rewards.models.judge import judge
from rewards.models.reward_model import reward_model
from rewards.programs.code import code
from rewards.random_reward import random_reward
from rewards.style.format import format
from rewards.style.language import language
from rewards.style.length import cosine_scaled, relative_length, soft_overlong_punishment
from rewards.style.repetition import repetition_penalty
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
