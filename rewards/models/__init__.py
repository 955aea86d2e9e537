"""Rewards computed by a model: a reward model in this process, or a judge behind an API."""
