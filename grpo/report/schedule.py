"""What is due at which optimizer step: pure functions of step counts. An interval of 0 means never."""


def is_due(step: int, every: int) -> bool:
    """Whether `step` is a multiple of `every`. Asked at every optimizer step."""
    return every > 0 and step % every == 0


def due_within(before: int, after: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, after]. Asked once per rollout, which takes several steps."""
    return every > 0 and after // every > before // every
