"""Errors that need no traceback."""


class RunError(Exception):
    """The message states value, rule and remedy."""
