"""Helpers for all three packages: suggestions for misspelt names, values for declared types, loading functions by
reference, HTTP with retries.

Uses only the standard library and httpx; imports neither `rewards` nor `grpo`.
"""
