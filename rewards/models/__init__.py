"""Rewards computed by a model: a reward model in the scoring process, or an LLM judge behind an API."""
