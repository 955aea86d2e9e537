"""Rewards for a completion's form: tags, language, length, repetition. None of them grades the answer."""
