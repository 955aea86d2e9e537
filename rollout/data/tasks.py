"""Generators of problems, `countdown` and `arithmetic`: functions (rng, split) -> the columns of one problem.

The splits "pretrain", "train" and "eval" are disjoint: a hash of a problem's canonical key determines its split, and
the same numbers in another order have the same key. Pure Python, no state; `rollout.data.stream` does ordering,
sharding and resuming.
"""

import random
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from itertools import combinations, product

SPLITS = ("pretrain", "train", "eval")
_SHARES = ("pretrain", "pretrain", "pretrain", "train", "eval")  # three fifths for pretraining
_MAX_DRAWS = 100_000

Pair = tuple[int, str, int, int | None, list[int]]  # left, operation, right, value, the other numbers


def split_of(key: str) -> str:
    """The split that a canonical key belongs to: the same on every machine and in every version."""
    return _SHARES[int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % len(_SHARES)]


def countdown(
    rng: random.Random,
    split: str,
    *,
    numbers: int = 3,
    low: int = 1,
    high: int = 25,
    limit: int = 99,
    operations: str = "+-*",
    max_ways: int = 2,
) -> dict:
    """Numbers to combine into a target, each once: {"prompt": "use 3,8,2 make 26", "numbers": [3, 8, 2], "target": 26}

    Always solvable by combining two of the numbers with one of `operations` and then adding or subtracting each other
    number, so a systematic search terminates; other correct expressions count too. Intermediate values stay within
    0..limit.

    Args:
        max_ways: at most this many choices of pair and operation lead to the target (0: no limit), so that a first
            guess is usually wrong. With 2, the operations +, - and * are right about equally often; with 1, - never is.
    """
    _check(split, operations, "+-*/")
    if numbers < 2 or low < 0 or high < low or limit < 1 or max_ways < 0:
        raise ValueError(
            "countdown needs numbers >= 2, 0 <= low <= high, limit >= 1 and max_ways >= 0, "
            f"not {numbers=} {low=} {high=} {limit=} {max_ways=}"
        )
    for _ in range(_MAX_DRAWS):
        drawn = [rng.randint(low, high) for _ in range(numbers)]
        ways = _ways(drawn, operations, limit)
        targets = [target for target, count in ways.items() if target not in drawn and not 0 < max_ways < count]
        if not targets:
            continue
        target = rng.choice(sorted(targets))
        if split_of(countdown_key(drawn, target)) == split:
            return {"prompt": f"use {','.join(map(str, drawn))} make {target}", "numbers": drawn, "target": target}
    remedy = "widen low..high or limit, or raise max_ways"
    raise ValueError(f"no countdown problem of split {split!r} in {_MAX_DRAWS} draws: {remedy}")


def countdown_key(numbers: list[int], target: int) -> str:
    """Canonical key: the same for every order of the numbers."""
    return f"countdown {sorted(numbers)} {target}"


def pairs(numbers: list[int], operations: str = "+-*", limit: int = 99) -> Iterator[Pair]:
    """Every way to combine two of the numbers: the candidates of a systematic search.

    For - and /, the larger number comes first. value is None unless it is a whole number within 0..limit.
    """
    for (i, a), (j, b) in combinations(enumerate(numbers), 2):
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for operation in operations:
            left, right = (b, a) if operation in "-/" and b > a else (a, b)
            yield left, operation, right, _apply(left, operation, right, limit), rest


def arithmetic(
    rng: random.Random,
    split: str,
    *,
    min_terms: int = 4,
    max_terms: int = 5,
    low: int = 1,
    high: int = 9,
    operations: str = "+-",
    limit: int = 99,
) -> dict:
    """A chain evaluated from left to right: {"prompt": "8-3+2-3=?", "answer": "4"}. Running values stay in 0..limit.

    Each operation applies to the value so far (no precedence), which only matters if `operations` contains * or /.
    """
    _check(split, operations, "+-*/")
    if not 2 <= min_terms <= max_terms or not 0 <= low <= high or high > limit:
        raise ValueError(
            "arithmetic needs 2 <= min_terms <= max_terms and 0 <= low <= high <= limit, "
            f"not {min_terms=} {max_terms=} {low=} {high=} {limit=}"
        )
    for _ in range(_MAX_DRAWS):
        value = rng.randint(low, high)
        expression = str(value)
        for _ in range(rng.randint(min_terms, max_terms) - 1):
            terms = [(o, n) for o in operations for n in range(low, high + 1)]
            options = [(o, n, v) for o, n in terms if (v := _apply(value, o, n, limit)) is not None]
            if not options:
                break
            operation = rng.choice(sorted({o for o, _, _ in options}))
            _, number, value = rng.choice([option for option in options if option[0] == operation])
            expression += f"{operation}{number}"
        else:
            if split_of(f"arithmetic {expression}") == split:
                return {"prompt": f"{expression}=?", "answer": str(value)}
    raise ValueError(f"no arithmetic problem of split {split!r} in {_MAX_DRAWS} draws: widen low..high or limit")


def _apply(left: int, operation: str, right: int, limit: int) -> int | None:
    if operation == "/":
        value = left // right if right and left % right == 0 else -1
    else:
        value = {"+": left + right, "-": left - right, "*": left * right}[operation]
    return value if 0 <= value <= limit else None


def _ways(numbers: list[int], operations: str, limit: int) -> Counter[int]:
    """target -> number of (pair, operation) choices that reach it once every other number is added or subtracted."""
    ways: Counter[int] = Counter()
    for _, _, _, value, rest in pairs(numbers, operations, limit):
        if value is None:
            continue
        reached = set()
        for signs in product((1, -1), repeat=len(rest)):
            total = value
            for sign, number in zip(signs, rest, strict=True):
                total += sign * number
                if not 0 <= total <= limit:
                    break
            else:
                reached.add(total)
        ways.update(reached)
    return ways


def _check(split: str, operations: str, known: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if not operations or set(operations) - set(known):
        raise ValueError(f"operations {operations!r} must be a non-empty choice of {known}")
