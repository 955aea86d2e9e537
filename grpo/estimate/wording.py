"""How sizes, times and assumptions are written."""

from grpo.estimate.machine import machine_flops
from grpo.estimate.shape import MTPShape
from grpo.estimate.stage import SAMPLING_UTILISATION, UPDATE_UTILISATION

NOT_COUNTED = "rewards, judges, evaluations during training, start-up"


def assumed_speed(dtype: str, num_processes: int) -> str:
    """How FLOPs become time."""
    return (
        f"Time assumes {UPDATE_UTILISATION:.0%} (updates) and {SAMPLING_UTILISATION:.0%} (sampling) of the "
        f"{machine_flops(dtype, num_processes):.2g} FLOP/s that a {dtype} matrix product reached here just now."
    )


def duration(seconds: float) -> str:
    """`3.2 minutes`"""
    units = ((31_557_600, "years"), (86_400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    size, name = next((unit for unit in units if seconds >= 1.5 * unit[0]), units[-1])
    return f"{seconds / size:,.{1 if seconds < 100 * size else 0}f} {name}"


def gib(size: int) -> str:
    """Bytes as `1,234.50` GiB."""
    return f"{size / 2**30:,.2f}"


def count(number: int) -> str:
    """`671.03B`"""
    unit, name = next((u, n) for u, n in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if number >= u)
    return f"{number / unit:.2f}{name}"


def further(mtp: MTPShape | None) -> str:
    """`, and 11.51B in a multi-token prediction, trained`; empty without one."""
    if mtp is None:
        return ""
    return f", and {count(mtp.total)} in a multi-token prediction, {'trained' if mtp.trained else 'frozen'}"
