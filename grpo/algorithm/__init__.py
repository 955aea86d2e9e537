"""Advantages, token weights and losses: pure functions of arrays, without model or collectives."""
