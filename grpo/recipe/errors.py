"""Errors that end a run with a sentence for its user instead of a traceback."""

from rollout.support.errors import RunError

__all__ = ["NonFiniteError", "RefusedError", "RunError"]


class RefusedError(RunError, ValueError):
    """A run that cannot be right, refused before its first step."""


class NonFiniteError(RunError, ValueError):
    """A weight, loss or gradient is NaN or infinite. Raised before the optimizer step that would spread it."""
