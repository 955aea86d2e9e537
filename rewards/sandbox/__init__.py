"""Running code that nobody trusts. docs/sandbox.md describes it; `rewards.code` is what uses it."""

from rewards.sandbox.probe import self_test

__all__ = ["self_test"]
