r"""Conditions: joined inequalities, `\begin{cases}`, families over the whole numbers, and residues.

Not read: conditions in words other than divisibility and remainders, and domains other than the integers, the natural
numbers and the positive integers.
"""

import re
from collections.abc import Callable
from fractions import Fraction

from rewards.answers.maths.nodes import (
    Family,
    Named,
    Node,
    Num,
    Op,
    Piecewise,
    Relation,
    Scalar,
    Seq,
    Sym,
    Text,
    Union,
    Unreadable,
    symbols,
)
from rewards.answers.maths.reading.tokens import Token, tokenize

Tokens = list[Token]
Read = Callable[[Tokens], Node]

MAX_MODULUS = 1000
_OTHERWISE = {"otherwise", "else", "elsewhere", "in all other cases", "all other cases", "in other cases"}
_ALIGNED = {"=", "<", ">", "le", "ge", "ne"}
_CONDITION = {"if", "for", "when", "where", "as", "with", "in case"}


# -- sets, and relations that hold together or in turn


def with_setminus(tokens: Tokens) -> Tokens:
    """A minus before braces removes a set: (0, 9) - \\{4\\}."""
    if not any(token.kind == "\\{" for token in tokens[2:]):
        return tokens
    minus = Token("cmd", "setminus", True)
    return [
        minus if token.kind == "-" and i and tokens[i + 1 : i + 2] and tokens[i + 1].kind == "\\{" else token
        for i, token in enumerate(tokens)
    ]


def joined(nodes: tuple[Node, ...], signs: set[str]) -> Node | None:
    """Relations joined by `and`, `or` and commas: x ≥ 3 or x = -5. None if they are something else.

    Commas mean `and` where that leaves something: x > 2, x < 5 but x < 2, x > 5. So does x ≠ 0, 1.
    """
    first = nodes[0]
    if isinstance(first, Relation) and first.signs == ("≠",) and all(isinstance(node, Scalar) for node in nodes[1:]):
        return Seq("and", (first, *(Relation((first.parts[0], node), ("≠",)) for node in nodes[1:])))
    if not any(_is_inequality(node) for node in nodes) or not all(_is_condition(node) for node in nodes):
        return None
    letters = {_letter(node) for node in nodes}
    if len(letters) > 1 or None in letters:
        return Seq("list" if "or" in signs else "system", nodes)
    points = any(isinstance(node, Named) for node in nodes)
    if signs == {"and"} or (signs == {","} and not points):
        return Seq("and" if signs == {"and"} else "comma", nodes)
    return Union(nodes) if signs & {"or", ","} and "and" not in signs else None


def _is_inequality(node: Node) -> bool:
    return isinstance(node, Relation) and "=" not in node.signs


def _is_condition(node: Node) -> bool:
    return _is_inequality(node) or (isinstance(node, Named) and not node.arguments)


def _letter(node: Node) -> str | None:
    """The letter that a condition is about: w in 2 ≤ |w| ≤ 5/2 and in w = 3; None if it has several or none."""
    if isinstance(node, Named):
        return node.name
    letters = symbols(node)
    if len(letters) == 1:
        return letters.pop()
    assert isinstance(node, Relation)
    alone = [part.name for part in node.parts if isinstance(part, Sym)]
    return alone[0] if len(alone) == 1 else None


# -- \begin{cases}


def cases(rows: list[list[Tokens]], read: Read) -> Node:
    r"""A system of relations, or a function by cases: rows of one cell, or of a value and a condition."""
    if not rows:
        raise Unreadable("cases without a row")
    split = [_value_and_condition(row) for row in rows]
    if all(condition is None for _, condition in split):
        return system(tuple(read(value) for value, _ in split))
    if any(condition is None for _, condition in split[:-1]):
        raise Unreadable("a case without a condition")
    return Piecewise(tuple((read(value), _condition(condition, read)) for value, condition in split))


def system(nodes: tuple[Node, ...]) -> Node:
    """Relations that all hold. Solved for its letters (x = 1, y = 2), it is the list of these, by letter."""
    if any(isinstance(node, Seq) and node.kind in ("system", "list") for node in nodes):
        nodes = tuple(part for node in nodes for part in (node.items if isinstance(node, Seq) else (node,)))
    if not all(isinstance(node, Named | Relation) for node in nodes):
        raise Unreadable("cases without conditions")
    names = [node.name for node in nodes if isinstance(node, Named)]
    if len(names) == len(nodes) == len(set(names)) and not set(names) & set().union(*map(_value_letters, nodes)):
        return nodes[0] if len(nodes) == 1 else Seq("list", tuple(sorted(nodes, key=_letter_of)))
    if len({_letter(node) for node in nodes}) == 1 and all(_is_inequality(node) for node in nodes):
        return Seq("and", nodes)
    return Seq("system", nodes)


def _letter_of(node: Node) -> str:
    return node.name if isinstance(node, Named) else ""


def _value_letters(node: Node) -> set[str]:
    return symbols(node.value) if isinstance(node, Named) else set()


def _value_and_condition(row: list[Tokens]) -> tuple[Tokens, Tokens | None]:
    """The value of a row and its condition, empty for `otherwise`; None if the row is a relation of a system."""
    if len(row) > 1 and all(cell[:1] and cell[0].text in _ALIGNED for cell in row[1:]):
        row = [[token for cell in row for token in cell]]  # x &= 1
    if len(row) > 2:
        raise Unreadable("a case with more than two columns")
    row = [_without_stop(cell) for cell in row]
    if len(row) == 2 and row[1]:
        return row[0], _without_if(row[1])
    tokens = row[0]
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token.kind in ("(", "[", "{", "\\{")) - (token.kind in (")", "]", "}", "\\}"))
        said = token.text.lower().strip(" ,:")
        if i and depth == 0 and token.kind in ("text", "word") and said.split(" ")[0] in _CONDITION | _OTHERWISE:
            value = tokens[: i - 1] if tokens[i - 1].kind == "," else tokens[:i]
            return value, _without_if(tokens[i:])
    return tokens, None


def _without_stop(tokens: Tokens) -> Tokens:
    return tokens[:-1] if tokens and tokens[-1].kind in (",", ";", ".") else tokens


def _without_if(tokens: Tokens) -> Tokens:
    """A condition's tokens without `if`; none for `otherwise`."""
    while tokens and tokens[0].kind in ("text", "word", ","):
        said = tokens[0].text.lower().strip(" ,.:")
        if said in _OTHERWISE:
            return []
        first, _, rest = said.partition(" ")
        if said and first not in _CONDITION:
            break
        tokens = [*([Token("text", rest, True)] if rest else []), *tokens[1:]]
    return tokens


def _condition(tokens: Tokens | None, read: Read) -> Node:
    if not tokens:
        return Text("otherwise")
    return residues(tokens) or read(tokens)


# -- families


_NATURAL = r"(?:positive|natural|non-?negative)"
_DOMAIN = re.compile(
    r"(?P<sign>[,;:|(] ?)?(?P<word>(?:for|where|with|and) ?)?(?:(?:all|any|every|each|some) ?)?"
    rf"(?:(?P<kind>{_NATURAL} )?(?P<plural>integers?|whole numbers?|numbers?) )?"
    r"(?P<letters>[a-zA-Z](?: , [a-zA-Z])*)"
    r"(?: in (?P<set>bbZ|bbN|Z|N)(?P<half> [\^_] .*?)?"
    rf"| (?P<said>(?:is|are)? ?(?:(?:an?|any|all|some) )?(?P<which>{_NATURAL} )?(?:integers?|(?:whole )?numbers?)))?"
    r" ?\)?[ .]*"
)


def integers(tokens: Tokens) -> tuple[Tokens, tuple[str, ...], str] | None:
    r"""`(7+4n, 9-3n), n \in \mathbb{Z}` as the tokens before, the letters and their domain; None without a domain."""
    if not any(token.text == "in" or "integer" in token.text or "number" in token.text for token in tokens):
        return None
    for i in range(max(1, len(tokens) - 16), len(tokens)):
        match = _DOMAIN.fullmatch(_flat(tokens[i:]))
        if match is None or tokens[i].kind in ("}", ")") or not (match["set"] or match["said"] or match["plural"]):
            continue
        letters = tuple(re.findall("[a-zA-Z]", match["letters"]))
        if len(letters) > 1 and not (match["sign"] or match["word"] or match["plural"]):
            continue  # the first is part of the value
        if not set(letters) <= {letter for token in tokens[:i] for letter in _letters(token)}:
            continue
        natural = match["kind"] or match["which"] or match["half"] or (match["set"] or "").endswith("N")
        if not natural and "number" in f"{match['plural']} {match['said']}" and "whole" not in match.group():
            continue  # for all numbers x
        return tokens[:i], letters, "ℕ" if natural else "ℤ"
    return None


def _letters(token: Token) -> str:
    return token.text if token.kind in ("sym", "word", "roman") else ""


def _flat(tokens: Tokens) -> str:
    """The texts of the tokens, without braces, separated by single spaces."""
    return " ".join(" ".join(token.text for token in tokens if token.kind not in ("{", "}", "$")).split())


# -- residues


_FILLERS = {
    *("all", "every", "any", "the", "set", "of", "those", "integer", "integers", "number", "numbers", "values", "for"),
    *("such", "that", "which", "where", "are", "is", "it", "a", "an", "leaves", "leave", "leaving", "has", "have"),
    *("gives", "give", "with", "when", "on", "upon", "after", "whole", "to", "be", "(", ")", "positive", "natural"),
}
_LIST = r"(?:pm )?(?:- ?)?[0-9]+(?: (?:, )?(?:(?:or|and|,) )?(?:pm )?(?:- ?)?[0-9]+)*"
_N = r"(?:(?P<n>[a-z]) )?(?P<no>not )?"
_RESIDUES = [
    re.compile(_N + pattern)
    for pattern in (
        rf"(?:equiv |congruent )?(?P<rests>{_LIST}) (?:p?mod|bmod|modulo) (?P<modulus>[0-9]+)",
        r"(?:divisible by|multiples?) (?P<modulus>[0-9]+)",
        rf"remainders? (?P<rests>{_LIST}) (?:divided|division) by (?P<modulus>[0-9]+)",
        rf"divided by (?P<modulus>[0-9]+) remainders? (?P<rests>{_LIST})",
        r"(?P<parity>odd|even)",
    )
]
_SAID = re.compile(r"equiv|divisible|multiple|remainder|congruent|mod|odd|even")


def read_residues(text: str) -> Family | None:
    """A normalized answer as residues, whatever else it may be read as; None if it is something else."""
    if not _SAID.search(text.lower()):
        return None
    try:
        return residues(tokenize(text))
    except Unreadable:  # other rules say why
        return None


def residues(tokens: Tokens) -> Family | None:
    """`n ≡ 1, 2 (mod 3)`, `n is not divisible by 3`, `all odd integers` as a family; None for everything else."""
    said = _flat(tokens).lower()
    if not _SAID.search(said):
        return None
    words = said.split()
    plain = " ".join(word for word in words if word not in _FILLERS)
    if len(words) == 1:
        return None  # odd, even: a text
    found: set[tuple[int, int]] = set()
    names = set()
    for part in re.split(r" (?:or|,) (?=[a-z] (?:not )?(?:equiv|congruent|divisible|odd|even))", plain):
        match = next((match for pattern in _RESIDUES if (match := pattern.fullmatch(part))), None)
        if match is None:
            return None
        modulus, rests = _rests(match.groupdict())
        if not 2 <= modulus <= MAX_MODULUS:
            return None
        names.add(match["n"])
        found |= {(modulus, rest) for rest in rests}
    if len(names) > 1 or not found:
        return None
    name = names.pop()
    letter = "k" if name != "k" else "m"
    values = tuple(_progression(modulus, rest, letter) for modulus, rest in sorted(found))
    value: Node = values[0] if len(values) == 1 else Seq("list", values)
    domain = "positive" if {"positive", "natural"} & set(words) else ""
    return Family(Named(name, (), value) if name else value, (letter,), domain)


def _rests(said: dict[str, str | None]) -> tuple[int, set[int]]:
    if parity := said.get("parity"):
        modulus, rests = 2, {int(parity == "odd")}
    else:
        modulus, rests = int((said["modulus"] or "")[:5]), set()
        for signs, digits in re.findall(r"((?:pm |- ?)*)([0-9]+)", said.get("rests") or "0"):
            rest = int(digits) * (-1 if "-" in signs else 1)
            rests |= {rest, -rest} if "pm" in signs else {rest}
    rests = {rest % modulus for rest in rests} if modulus else rests
    if said["no"] and modulus <= MAX_MODULUS:
        rests = set(range(modulus)) - rests
    return modulus, rests


def _progression(modulus: int, rest: int, letter: str) -> Scalar:
    return Op("add", (Op("mul", (Num(Fraction(modulus)), Sym(letter))), Num(Fraction(rest))))
