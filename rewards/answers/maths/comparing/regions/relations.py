"""Equations, inequalities and systems of these: 2x + 4y = 6 equals x + 2y = 3, and x > 2 equals (2, ∞)."""

from itertools import pairwise

from rewards.answers.maths.comparing import value
from rewards.answers.maths.comparing.regions.sets import ends_equal, equal_sets, is_set, region
from rewards.answers.maths.comparing.regions.solving import same_row_space, solution, solution_set
from rewards.answers.maths.nodes import (
    Named,
    Node,
    Op,
    Relation,
    Scalar,
    Seq,
    Sym,
    Union,
    replaced,
    reversed_sign,
    symbols,
)


def equal_relations(wanted: Node, answer: Node) -> bool:
    """The same equation up to a factor, the same inequality, or the same set of numbers."""
    if isinstance(wanted, Relation) and isinstance(answer, Scalar):
        return _solves(wanted, answer)
    if isinstance(wanted, Relation) and isinstance(answer, Seq) and answer.kind == "list":
        return set(wanted.signs) == {"<"} and _in_order(wanted.parts, answer.items)  # b < a < c, answered as b, a, c
    if not (isinstance(wanted, Relation) and isinstance(answer, Relation)):
        return _has_set(wanted, answer) and equal_sets(wanted, answer)
    if region(wanted) is not None and region(answer) is not None:
        return symbols(wanted) == symbols(answer) and equal_sets(wanted, answer)
    if len(wanted.signs) == 1 and len(answer.signs) == 1:
        return _equal_single(wanted, answer)
    return _equal_chains(wanted, answer)


def _solves(wanted: Relation, answer: Scalar) -> bool:
    """Whether substituting the answer for one letter makes the equation an identity: 6/x for xy = 6."""
    if wanted.signs != ("=",) or not symbols(answer) or not all(isinstance(part, Scalar) for part in wanted.parts):
        return False
    left, right = wanted.parts
    return any(
        value.same(replaced(left, letter, answer), replaced(right, letter, answer))
        for letter in sorted(symbols(wanted) - symbols(answer))
    )


def _has_set(wanted: Node, answer: Node) -> bool:
    """Whether one side is a set of numbers: only then is a relation read as a set, never for a single value."""
    other = answer if isinstance(wanted, Relation) else wanted
    return is_set(other) or (isinstance(other, Seq) and other.kind == "tuple" and len(other.items) == 2)


def _equal_single(wanted: Relation, answer: Relation) -> bool:
    sides = [Op("add", (r.parts[0], Op("neg", (r.parts[1],)))) for r in (wanted, answer)]
    if not all(isinstance(part, Scalar) for r in (wanted, answer) for part in r.parts):
        return wanted.signs == answer.signs and _in_order(wanted.parts, answer.parts)
    if not symbols(sides[0]):
        return False
    factor = value.ratio(sides[0], sides[1])
    if factor == 0:
        return False
    sign = answer.signs[0] if factor > 0 else reversed_sign(answer.signs[0])
    return wanted.signs[0] == sign


def _equal_chains(wanted: Relation, answer: Relation) -> bool:
    if wanted.signs == answer.signs and _in_order(wanted.parts, answer.parts):
        return True
    turned = tuple(reversed_sign(sign) for sign in answer.signs[::-1])
    return wanted.signs == turned and _in_order(wanted.parts, answer.parts[::-1])


def equation(named: Named) -> Relation:
    """The relation y = 2x for the named value."""
    return Relation((Sym(named.name), named.value), ("=",))


def _in_order(wanted: tuple[Node, ...], answer: tuple[Node, ...]) -> bool:
    return len(wanted) == len(answer) and all(map(ends_equal, wanted, answer))


# -- systems


def is_system(node: Node) -> bool:
    return isinstance(node, Seq) and node.kind == "system"


def equal_systems(wanted: Node, answer: Node) -> bool:
    """The same relations in any order, or linear equations with the same solutions."""
    one, other = _relations(wanted), _relations(answer)
    if one is None or other is None:
        return False
    if all(relation.signs == ("=",) for relation in (*one, *other)) and same_row_space(one, other):
        return True
    left = list(other)
    for relation in one:
        place = next((i for i, other_ in enumerate(left) if equal_relations(relation, other_)), None)
        if place is None:
            return False
        del left[place]
    return not left


def _relations(node: Node) -> list[Relation] | None:
    """The relations of a system or of a list of named values."""
    if not isinstance(node, Seq) or node.kind not in ("system", "list"):
        return None
    found = [equation(item) if isinstance(item, Named) and not item.arguments else item for item in node.items]
    relations = [item for item in found if isinstance(item, Relation)]
    return relations if len(relations) == len(found) else None


# -- reference answers that are not solved


def isolated(wanted: Node) -> Node | None:
    """The reference answer solved for its letters: (-2, 2) for x² < 4, x = 2, y = 1 for a system. (Answers are not.)"""
    if is_system(wanted):
        equations = _relations(wanted)
        return solution(equations) if equations and all(r.signs == ("=",) for r in equations) else None
    if isinstance(wanted, Union) or (isinstance(wanted, Seq) and wanted.kind in ("and", "comma")):
        parts = wanted.parts if isinstance(wanted, Union) else wanted.items
        if not any(isinstance(part, Relation) and region(part) is None for part in parts):
            return None
        solved = [part if region(part) is not None else isolated(part) for part in parts]
        found = tuple(part for part in solved if part is not None)
        if len(found) < len(parts):
            return None
        return Union(found) if isinstance(wanted, Union) else Seq(wanted.kind, found)
    if not isinstance(wanted, Relation) or not set(wanted.signs) <= set("<>≤≥") or region(wanted) is not None:
        return None
    if len(symbols(wanted)) != 1 or not all(isinstance(part, Scalar) for part in wanted.parts):
        return None
    links = [Relation(pair, (sign,)) for pair, sign in zip(pairwise(wanted.parts), wanted.signs, strict=True)]
    if not all(map(symbols, links)):
        return None  # 1 < 2 < x
    found = tuple(part for link in links if (part := region(link) or solution_set(link)) is not None)
    return Op("cap", found) if len(found) == len(links) else None
