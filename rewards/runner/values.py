"""What a reward function returned, as one finite number or None per completion, and the tokens that spans end at."""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

from rollout.types import Completion

Values = list[float | None]  # one per completion; None: the reward does not apply

Span = tuple[int, int, float]  # characters start … end - 1 of a completion's text, and their reward

Steps = list[tuple[int, float]]  # (token that a step ends at, its reward or advantage), in order
Decode = Callable[[Sequence[int]], str]  # token ids -> their text, without end tokens, as in Completion.text

LAST = 2**31  # the completion's last token, whatever its length
LARGEST = 1e18  # of a value: its square is finite in float32


class Spans(float):
    """The reward of a completion that was given in spans: as a number, their sum."""

    spans: tuple[Span, ...]

    def __new__(cls, spans: Sequence[Span]) -> "Spans":
        made = super().__new__(cls, sum(value for _, _, value in spans))
        made.spans = tuple(spans)
        return made

    def __getnewargs__(self) -> tuple[tuple[Span, ...]]:  # for pickle, on the way out of a worker
        return (self.spans,)


def as_values(
    name: str, returned: Any, lengths: Sequence[int], describe: Callable[[int], str], *, spans: bool
) -> Values:
    """The values a reward returned, from a list, a NumPy array or a torch tensor. NaN means None, as in TRL.

    Args:
        name: the reward's, for errors.
        lengths: characters of each completion's text.
        describe: names the completion with this index, for errors.
        spans: whether it declares that it returns spans.

    Raises:
        ValueError: it did not return one number, list of spans or None per completion, a number is infinite or above
            LARGEST, or a span is not declared or not one of the completion's text.
    """
    count = len(lengths)
    if hasattr(returned, "tolist"):  # a tensor or an array
        returned = returned.tolist()
    if not isinstance(returned, Iterable):
        raise ValueError(_wrong(name, repr(returned), count, describe))
    values = list(returned)
    if len(values) != count:
        raise ValueError(_wrong(name, f"{len(values)} values", count, describe))
    found = [_as_value(name, value, lengths[index], index, describe) for index, value in enumerate(values)]
    undeclared = None if spans else next((i for i, value in enumerate(found) if isinstance(value, Spans)), None)
    if undeclared is not None:
        raise ValueError(
            f"reward {name!r} returned spans for {describe(undeclared)}, and does not say so beforehand, when the run "
            "checks that its algorithm takes them. Mark the function with @returns_spans of rewards.runner.load."
        )
    return found


def _as_value(name: str, value: Any, length: int, index: int, describe: Callable[[int], str]) -> float | None:
    plain: Any = _plain(value)
    if isinstance(plain, list | tuple) and all(isinstance(part, list | tuple) for part in plain):
        return Spans([_as_span(name, part, length, index, describe) for part in plain])
    if plain is None or (isinstance(plain, float) and math.isnan(plain)):
        return None
    if not _is_value(plain):
        raise ValueError(
            f"reward {name!r} returned {_short(plain)} ({type(value).__name__}) for {describe(index)}. "
            f"A reward must be a number between -{LARGEST:.0e} and {LARGEST:.0e}, or None if it does not apply."
        )
    return float(plain)  # type: ignore[arg-type]


def _as_span(name: str, part: Sequence[Any], length: int, index: int, describe: Callable[[int], str]) -> Span:
    match [_plain(item) for item in part]:
        case [int(start), int(end), value] if 0 <= start < end <= length and _is_value(value):
            return start, end, float(value)
    raise ValueError(
        f"reward {name!r} returned the span {_short(part)} for {describe(index)}. A span is (start, end, value): whole "
        f"numbers with 0 <= start < end <= {length}, the characters of the completion's text, and a number between "
        f"-{LARGEST:.0e} and {LARGEST:.0e}."
    )


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # a NumPy scalar or a tensor without dimensions


def _is_value(plain: Any) -> bool:
    return isinstance(plain, int | float | Fraction) and -LARGEST <= plain <= LARGEST


def _wrong(name: str, what: str, count: int, describe: Callable[[int], str]) -> str:
    return (
        f"reward {name!r} returned {what} for {count} completion{'s' * (count != 1)}. It must return a list with one "
        f"number or None per completion. It was given {describe(0)}."
    )


def _short(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to print very long integers
        return "an integer of more than 300 digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def steps_of(completion: Completion, values: Sequence[float | None], weights: Sequence[float], decode: Decode) -> Steps:
    """A completion's rewards by the token that they end at, times their weights; values: one of each function.

    A span ends at the token that completes its last character, and with the text also the completion: after it come an
    end token or a stop text only. A plain number is a reward at the end. What ends at the same token is one step.
    """
    ends: dict[int, int] = {len(completion.text): LAST}
    steps: dict[int, float] = {}
    for value, weight in zip(values, weights, strict=True):
        if value is None or not weight:
            continue
        spans = value.spans if isinstance(value, Spans) else [(0, len(completion.text), value)]
        for _, end, reward in spans:
            if end not in ends:
                ends[end] = last_token(completion, end, decode)
            steps[ends[end]] = steps.get(ends[end], 0.0) + weight * reward
    return sorted(steps.items())


def last_token(completion: Completion, end: int, decode: Decode) -> int:
    """Index of the token with which the text's first `end` characters are complete."""
    ids, beginning = completion.token_ids, completion.text[:end]
    return bisect_left(range(len(ids)), True, key=lambda i: decode(ids[: i + 1]).startswith(beginning))
