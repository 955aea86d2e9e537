"""Running code that nobody trusts. docs/sandbox.md describes it; `rewards.programs.code` is what uses it."""

from rewards.programs.sandbox.probe import self_test

__all__ = ["self_test"]
