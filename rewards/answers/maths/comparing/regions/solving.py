"""sympy, where it decides what our own rules cannot: inequalities in one letter and systems of linear equations.

Only expressions we have read are handed over, built object by object; sympy never reads text. It is imported when first
needed, which takes about a second, so that a worker that only sees numbers and intervals never does.

Not solved: inequalities that are not rational in their letter (apart from absolute values), nonlinear systems.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rewards.answers.maths.comparing.regions.sets import INFINITY, MINUS_INFINITY
from rewards.answers.maths.nodes import (
    Interval,
    Named,
    Node,
    Num,
    Op,
    Relation,
    Seq,
    Sym,
    Union,
    children,
    symbols,
)
from rewards.runner.child import uncounted

_MAX_DEGREE = 8
_MAX_NODES = 200

_BUILD: dict[str, Callable[..., Any]] = {
    "add": lambda _, a, b: a + b,
    "mul": lambda _, a, b: a * b,
    "neg": lambda _, a: -a,
    "div": lambda _, a, b: a / b,
    "abs": lambda sympy, a: sympy.Abs(a),
    "π": lambda sympy: sympy.pi,
    "degree": lambda sympy, a: a * sympy.pi / 180,
    "radian": lambda _, a: a,
    "e": lambda sympy: sympy.E,
    "root": lambda sympy, a, index: sympy.root(a, index),
}


@lru_cache(maxsize=1)
def _sympy() -> Any:
    with uncounted():
        import sympy
    return sympy


def expression(node: Node, *, opaque: bool = False) -> Any | None:
    """The node as a sympy expression with real letters; None if it uses other operations or large powers.

    opaque: stand a symbol for each such part that has no letters.
    """
    sympy = _sympy()

    found = _built(sympy, node, opaque)
    if found is None and opaque and isinstance(node, Op) and not symbols(node):
        return sympy.Symbol(repr(node), real=True)
    return found


def _built(sympy: Any, node: Node, opaque: bool) -> Any | None:
    match node:
        case Num(number):
            return sympy.Rational(number.numerator, number.denominator)
        case Sym(name):
            return sympy.Symbol(name, real=True)
        case Op("pow", (base, Num(exponent))) if exponent.denominator == 1 and abs(exponent) <= _MAX_DEGREE:
            below = expression(base, opaque=opaque)
            return None if below is None else below ** int(exponent)
        case Op("root", (_, index)) if index != Num(Fraction(2)):
            return None
        case Op(name, parts) if name in _BUILD:
            below = [expression(part, opaque=opaque) for part in parts]
            return None if None in below else _BUILD[name](sympy, *below)
    return None


def _node(expression: Any) -> Node | None:
    """The node of an end that sympy found: a real algebraic number."""
    if expression.is_Rational:
        return Num(Fraction(int(expression.p), int(expression.q)))
    if expression.is_Add or expression.is_Mul:
        parts = [_node(part) for part in expression.args]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return None
        total = found[0]
        for part in found[1:]:
            total = Op("add" if expression.is_Add else "mul", (total, part))
        return total
    if expression.is_Pow:
        base, exponent = _node(expression.base), _node(expression.exp)
        return None if base is None or exponent is None else Op("pow", (base, exponent))
    names = {"Pi": "π", "Exp1": "e", "Infinity": "∞"}
    if type(expression).__name__ == "NegativeInfinity":
        return MINUS_INFINITY
    return Op(names[type(expression).__name__]) if type(expression).__name__ in names else None


@lru_cache(maxsize=256)  # one reference answer, a group of answers
def solution_set(relation: Relation) -> Node | None:
    """The set of numbers that satisfy an inequality in one letter; None if it cannot be found."""
    sympy = _sympy()

    if _size(relation) > _MAX_NODES:
        return None
    left, right = (expression(part) for part in relation.parts)
    if left is None or right is None or (left - right).has(sympy.zoo, sympy.nan, sympy.I):
        return None
    [letter] = symbols(relation)
    x = sympy.Symbol(letter, real=True)
    inside = list((left - right).atoms(sympy.Abs))
    numerator = sympy.fraction(sympy.together((left - right).subs({a: a.args[0] for a in inside})))
    if not all(part.is_polynomial(x) and sympy.Poly(part, x).degree() <= _MAX_DEGREE for part in numerator):
        return None
    kinds = {"<": sympy.StrictLessThan, ">": sympy.StrictGreaterThan, "≤": sympy.LessThan, "≥": sympy.GreaterThan}
    inequality = kinds[relation.signs[0]](left, right)
    if inequality in (True, False):
        return Interval(MINUS_INFINITY, INFINITY, False, False) if inequality else Union(())
    try:
        return _region(sympy.solve_univariate_inequality(inequality, x, relational=False))
    except NotImplementedError:
        return None


def _size(node: Node) -> int:
    return 1 + sum(map(_size, children(node)))


def _region(found: Any) -> Node | None:
    sympy = _sympy()

    match found:
        case sympy.Interval():
            left, right = _node(found.start), _node(found.end)
            if left is None or right is None:
                return None
            return Interval(left, right, not found.left_open, not found.right_open)
        case sympy.FiniteSet():
            points = [_node(point) for point in found]
            known = [point for point in points if point is not None]
            return Union(tuple(Interval(p, p, True, True) for p in known)) if len(known) == len(points) else None
        case sympy.Union():
            parts = [_region(part) for part in found.args]
            known = tuple(part for part in parts if part is not None)
            return Union(known) if len(known) == len(parts) else None
    if found is sympy.S.Reals:
        return Interval(MINUS_INFINITY, INFINITY, False, False)
    return Union(()) if found is sympy.S.EmptySet else None


# -- linear equations


def _matrix(equations: Sequence[Relation], letters: list[str]) -> Any | None:
    """The augmented matrix of linear equations with rational coefficients; None if they are not linear."""
    sympy = _sympy()

    rows = []
    for equation in equations:
        left, right = (expression(part) for part in equation.parts)
        if left is None or right is None or _size(equation) > _MAX_NODES:
            return None
        names = [sympy.Symbol(letter, real=True) for letter in letters]
        try:
            polynomial = sympy.Poly(sympy.expand(left - right), *names, domain="QQ")
        except sympy.polys.polyerrors.BasePolynomialError:  # not a polynomial, or irrational coefficients
            return None
        if polynomial.total_degree() > 1:
            return None
        rows.append([*(polynomial.coeff_monomial(name) for name in names), -polynomial.coeff_monomial(1)])
    return sympy.Matrix(rows)


def same_row_space(wanted: Sequence[Relation], answer: Sequence[Relation]) -> bool:
    """Whether two systems of linear equations have the same solutions, at least one."""
    letters = sorted(set().union(*map(symbols, wanted)))
    if letters != sorted(set().union(*map(symbols, answer))):
        return False
    one, other = _matrix(wanted, letters), _matrix(answer, letters)
    if one is None or other is None:
        return False
    (left, pivots), (right, others) = one.rref(), other.rref()
    rank = len(pivots)
    return pivots == others and len(letters) not in pivots and left[:rank, :] == right[:rank, :]


def solution(equations: Sequence[Relation]) -> Node | None:
    """x = 2, y = 1 for a system of linear equations with one solution; None for others."""
    letters = sorted(set().union(*map(symbols, equations)))
    matrix = _matrix(equations, letters)
    if matrix is None:
        return None
    reduced, pivots = matrix.rref()
    if pivots != tuple(range(len(letters))):
        return None
    values = [_node(reduced[row, len(letters)]) for row in range(len(letters))]
    return Seq("list", tuple(Named(n, (), v) for n, v in zip(letters, values, strict=True) if v is not None))
