"""Families over the whole numbers: solutions with a parameter, angles, residues.

Whether two are equal is known by counting: the points in a window, or the residues modulo a common multiple.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from random import Random

from benchmarks.verifier.pairs.pair import Case, unique
from benchmarks.verifier.pairs.writing import coefficient, total

_WINDOW = range(-60, 61)


def _declared(rng: Random, value: str, k: str) -> str:
    form = rng.choice(
        [
            r"{}, {} \in \mathbb{{Z}}",
            r"{}, \ {} \in \mathbb Z",
            r"{} \text{{ where }} {} \in \mathbb{{Z}}",
            r"{} \text{{ for any integer }} {}",
            r"{}, \text{{ where }} {} \text{{ is an integer}}",
            r"{} \ ({} \in \mathbb{{Z}})",
        ]
    )
    return form.format(value, k)


def _linear(offset: int, step: int, k: str) -> str:
    return total([str(offset), coefficient(Random(0), Fraction(step)) + k]) if step else str(offset)


def a_solution_family(rng: Random) -> Case:
    """(7 + 4k, 9 - 3k) in other letters, shifted and turned round."""
    offset = [rng.randint(-15, 15) for _ in range(2)]
    steps = [rng.choice([n for n in range(-9, 10) if n]) for _ in range(2)]

    def points(offset: list[int], steps: list[int]) -> set[tuple[int, ...]]:
        found = {tuple(o + k * s for o, s in zip(offset, steps, strict=True)) for k in range(-400, 401)}
        return {point for point in found if all(c in _WINDOW for c in point)}

    def write(offset: list[int], steps: list[int], k: str, style: int) -> str:
        first, second = (_linear(o, s, k) for o, s in zip(offset, steps, strict=True))
        value = [f"({first}, {second})", f"(x, y) = ({first}, {second})", f"x = {first}, y = {second}"][style % 3]
        return _declared(rng, value, k) if style < 3 else f"({first}, {second})"

    shift = rng.choice([-2, -1, 1, 2, 5])
    moved = [o + shift * s for o, s in zip(offset, steps, strict=True)]
    turned = [-s for s in steps]
    equal = [
        ("other letter", write(offset, steps, "n", 0)),
        ("other letter, no domain", write(offset, steps, "n", 3)),
        ("shifted", write(moved, steps, "t", rng.randrange(3))),
        ("turned round", write(offset, turned, "m", rng.randrange(3))),
        ("shifted and turned round", write(moved, turned, "k", rng.randrange(3))),
        ("named", write(offset, steps, "k", 2)),
    ]
    variants = [
        ("step twice as long", offset, [2 * s for s in steps]),
        ("a sign", offset, [steps[0], -steps[1]]),
        ("offset", [offset[0] + 1, offset[1]], steps),
        ("another step", offset, [steps[0], steps[1] + rng.choice([-1, 1])]),
        ("coordinates swapped", offset[::-1], steps[::-1]),
    ]
    own = points(offset, steps)
    unequal = [(why, write(o, s, rng.choice("kn"), rng.randrange(4))) for why, o, s in variants if points(o, s) != own]
    unequal.append(("one solution", f"({offset[0]}, {offset[1]})"))
    return Case(write(offset, steps, "k", rng.choice([0, 1, 3])), equal, unequal)


def some_angles(rng: Random) -> Case:
    """π/6 + 2kπ, and unions of such families."""
    parts = rng.choice([1, 1, 2])
    step = Fraction(rng.choice([2, 1, 2]))
    offsets = unique(rng, lambda r: Fraction(r.randint(-11, 12), r.choice([2, 3, 4, 6])), parts)

    def angle(value: Fraction) -> str:
        top = coefficient(rng, Fraction(abs(value.numerator))) + r"\pi"
        sign = "-" if value < 0 else ""
        return f"{sign}{top}" if value.denominator == 1 else rf"{sign}\frac{{{top}}}{{{value.denominator}}}"

    def residues(offsets: list[Fraction], step: Fraction) -> set[Fraction]:
        return {(offset + j * step) % 12 for offset in offsets for j in range(48)}

    def write(offsets: list[Fraction], step: Fraction, k: str, x: str = "") -> str:
        every = coefficient(rng, step) + rf"{k}\pi"
        values = [f"{angle(o)} + {every}" if o else every for o in offsets]
        joined = rf" \text{{ or }} {x}".join(values) if x else ", ".join(values)
        return rf"{x}{joined}, {k} \in \mathbb{{Z}}"

    own = residues(offsets, step)
    moved = [o + rng.choice([-2, -1, 1, 3]) * step for o in offsets]
    halves = [o + j * step for o in offsets for j in (0, 1)]
    equal = [
        ("other letter", write(offsets, step, "n")),
        ("named", write(offsets, step, "k", "x = ")),
        ("shifted", write(moved, step, "k")),
        ("shifted", write(moved, step, "n", "x = ")),
        ("two for one", write(halves, 2 * step, "k")),
    ]
    variants = [
        ("offset", [offsets[0] + Fraction(1, 12), *offsets[1:]], step),
        ("half the step", offsets, step / 2),
        ("twice the step", offsets, 2 * step),
        ("a sign", [-o for o in offsets], step),
        ("one missing", offsets[1:], step),
    ]
    unequal = [(why, write(o, s, rng.choice("kn"))) for why, o, s in variants if o and residues(o, s) != own]
    unequal.append(("one value", angle(offsets[0])))
    return Case(write(offsets, step, "k", rng.choice(["", "x = "])), equal, unequal)


def some_residues(rng: Random) -> Case:
    """n = 3k+1 or n = 3k+2, n ≡ 1, 2 (mod 3), n is not divisible by 3."""
    modulus = rng.randint(2, 9)
    rests = sorted(rng.sample(range(modulus), rng.randint(1, max(1, min(3, modulus - 1)))))
    x = rng.choice("nm")

    def numbers(modulus: int, rests: list[int]) -> set[int]:
        return {n for n in range(2520) if n % modulus in {rest % modulus for rest in rests}}

    def families(modulus: int, rests: list[int], k: str = "k") -> str:
        joint = rng.choice([r" \text{ or } ", ", "])
        return joint.join(f"{x} = {total([f'{modulus}{k}', str(rest)]) if rest else f'{modulus}{k}'}" for rest in rests)

    def congruent(modulus: int, rests: list[int]) -> str:
        listed = rng.choice([", ", r" \text{ or } "]).join(map(str, rests))
        return rf"{x} \equiv {listed} \pmod{{{modulus}}}"

    def words(modulus: int, rests: list[int]) -> str:
        return rf"\text{{integers with remainder {' or '.join(map(str, rests))} when divided by {modulus}}}"

    own = numbers(modulus, rests)
    equal = [
        ("families", _declared(rng, families(modulus, rests), "k")),
        ("congruent", congruent(modulus, rests)),
        ("congruent", congruent(modulus, [rest - modulus for rest in rests])),
        ("twice the modulus", congruent(2 * modulus, [r + j * modulus for r, j in product(rests, (0, 1))])),
        ("words", words(modulus, rests)),
    ]
    if rests == [0]:
        equal.append(("divisible", rf"{x} \text{{ is divisible by }} {modulus}"))
    elif rests == list(range(1, modulus)):
        equal.append(("not divisible", rf"\text{{all integers not divisible by {modulus}}}"))
    variants = [
        ("one missing", modulus, rests[1:]),
        ("one too many", modulus, [*rests, (rests[-1] + 1) % modulus]),
        ("another modulus", modulus + 1, rests),
        ("another rest", modulus, [(rests[0] + 1) % modulus, *rests[1:]]),
    ]
    unequal = [
        (why, rng.choice([congruent, families, words])(m, r)) for why, m, r in variants if r and numbers(m, r) != own
    ]
    unequal.append(("divisible", rf"{x} \text{{ is divisible by }} {modulus + 10}"))
    reference = rng.choice([congruent(modulus, rests), _declared(rng, families(modulus, rests), "k")])
    return Case(reference, equal, unequal)


KINDS: dict[str, Callable[[Random], Case]] = {
    "solution family": a_solution_family,
    "angles": some_angles,
    "residues": some_residues,
}
