"""Rewards that find the answer in a completion and compare it with the reference answer."""
