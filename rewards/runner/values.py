"""What a reward function returned, as one finite number or None per completion."""

import math
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Any

Values = list[float | None]  # one per completion; None: the reward does not apply

LARGEST = 1e18  # of a value: its square is finite in float32


def as_values(name: str, returned: Any, count: int, describe: Callable[[int], str]) -> Values:
    """The values a reward returned, from a list, a NumPy array or a torch tensor. NaN means None, as in TRL.

    Args:
        name: the reward's, for errors.
        count: number of completions.
        describe: names the completion with this index, for errors.

    Raises:
        ValueError: it did not return one number or None per completion, or a number is infinite or above LARGEST.
    """
    if hasattr(returned, "tolist"):  # a tensor or an array
        returned = returned.tolist()
    if not isinstance(returned, Iterable):
        raise ValueError(_wrong(name, repr(returned), count, describe))
    values = list(returned)
    if len(values) != count:
        raise ValueError(_wrong(name, f"{len(values)} values", count, describe))
    return [_as_value(name, value, index, describe) for index, value in enumerate(values)]


def _as_value(name: str, value: Any, index: int, describe: Callable[[int], str]) -> float | None:
    plain = value.tolist() if hasattr(value, "tolist") else value  # a NumPy scalar or a tensor without dimensions
    if plain is None or (isinstance(plain, float) and math.isnan(plain)):
        return None
    if not isinstance(plain, int | float | Fraction) or not -LARGEST <= plain <= LARGEST:
        raise ValueError(
            f"reward {name!r} returned {_short(plain)} ({type(value).__name__}) for {describe(index)}. "
            f"A reward must be a number between -{LARGEST:.0e} and {LARGEST:.0e}, or None if it does not apply."
        )
    return float(plain)


def _wrong(name: str, what: str, count: int, describe: Callable[[int], str]) -> str:
    return (
        f"reward {name!r} returned {what} for {count} completions. It must return a list with one number or None per "
        f"completion. It was given {describe(0)}."
    )


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print very long integers
        return "an integer of more than 300 digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
