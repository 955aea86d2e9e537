"""Rewards for the form of a completion: tags, language, length, repetition."""
