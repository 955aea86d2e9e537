"""Helpers for all three packages: suggestions for misspelt names, loading functions by reference, HTTP with retries.

Uses only the standard library and httpx; imports neither `rewards` nor `grpo`.
"""
