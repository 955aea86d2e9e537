r"""Sums of multiples of matrices and vectors, such as the points of a line, p + t v.

Of products, inverses and powers only the transpose is read.
"""

from collections.abc import Callable
from fractions import Fraction

from rewards.answers.maths.nodes import Matrix, Node, Num, Op, Scalar, Unreadable
from rewards.answers.maths.reading.scalar import CLOSING, OPENING, scalar
from rewards.answers.maths.reading.tokens import Token, matching

Tokens = list[Token]


def combination(tokens: Tokens, read: Callable[[Tokens], Node]) -> Matrix | None:
    """The sum, entry by entry; None if the tokens are a single matrix or something else."""
    terms = _terms(tokens)
    if not all(_begins(term) for _, term in terms) or (len(terms) == 1 and terms[0][0] == "+" and _begins(tokens) == 1):
        return None
    total: Matrix | None = None
    for sign, term in terms:
        start = _begins(term) - 1
        matrix = read(term[start:])
        if not isinstance(matrix, Matrix):
            return None
        factor = scalar(_without_times(term[:start])) if _without_times(term[:start]) else Num(Fraction(1))
        scaled = _scaled(Op("neg", (factor,)) if sign == "-" else factor, matrix)
        total = scaled if total is None else _sum(total, scaled)
    return total


def before_transpose(tokens: Tokens) -> Tokens | None:
    r"""The one matrix or vector before a final ^T, ^{T} or ^\top; None without."""
    place = max((i for i, token in enumerate(tokens) if token.kind == "^"), default=0)
    exponent = [token.text for token in tokens[place + 1 :] if token.kind not in "{}"]
    if not place or exponent not in (["T"], ["top"]):
        return None
    before = tokens[:place]
    if before[0].kind in ("(", "["):
        is_vector = matching(before, 0) == place - 1 and any(token.kind == "," for token in before)
        return before if is_vector else None
    begins = [i for i, token in enumerate(before) if token[:2] == ("cmd", "begin")]
    return before if begins == [0] and before[-1].kind == "}" else None


def _terms(tokens: Tokens) -> list[tuple[str, Tokens]]:
    """The terms of a sum with their signs."""
    terms: list[tuple[str, Tokens]] = [("+", [])]
    depth = 0
    for token in tokens:
        name = token.text if token.kind == "cmd" else token.kind
        depth += (name in OPENING or name == "begin") - (name in CLOSING or name == "end")
        if depth == 0 and token.kind in ("+", "-"):
            if terms[-1][1]:
                terms.append((token.kind, []))
            else:
                terms[-1] = (token.kind, [])
        else:
            terms[-1][1].append(token)
    return terms


def _begins(term: Tokens) -> int:
    r"""One more than the place of the first \begin, or of the bracket around it; 0 without one."""
    place = next((i for i, token in enumerate(term) if token[:2] == ("cmd", "begin")), None)
    if place is None:
        return 0
    return place if place and term[place - 1].kind in ("(", "[") else place + 1


def _without_times(tokens: Tokens) -> Tokens:
    return tokens[:-1] if tokens and tokens[-1].text in ("cdot", "times", "*") else tokens


def _scaled(factor: Scalar, matrix: Matrix) -> Matrix:
    return Matrix(tuple(tuple(Op("mul", (factor, entry)) for entry in row) for row in matrix.rows))


def _sum(one: Matrix, other: Matrix) -> Matrix:
    if [len(row) for row in one.rows] != [len(row) for row in other.rows]:
        raise Unreadable("a sum of matrices of different sizes")
    rows = zip(one.rows, other.rows, strict=True)
    return Matrix(tuple(tuple(Op("add", pair) for pair in zip(*both, strict=True)) for both in rows))
