"""From tokens to nodes: lists, sets, intervals, relations and names. `scalar` reads the expressions inside them."""

from itertools import pairwise

from rewards.answers.maths.nodes import (
    Choice,
    Family,
    Interval,
    Matrix,
    Named,
    Node,
    Op,
    Quantity,
    Relation,
    Seq,
    Sym,
    Text,
    Union,
    Unreadable,
    symbols,
)
from rewards.answers.maths.reading import labels, matrices, relations, words
from rewards.answers.maths.reading.names import read_name, read_names, render, split
from rewards.answers.maths.reading.notation import literals
from rewards.answers.maths.reading.notation.counting import counted
from rewards.answers.maths.reading.notation.numerals import spelled
from rewards.answers.maths.reading.notation.residues import residue, without_modulus
from rewards.answers.maths.reading.scalar import scalar, with_division
from rewards.answers.maths.reading.tokens import Tokens, matching, symbol_name, tokenize

_SIGNS = {"=": "=", "<": "<", ">": ">", "le": "≤", "ge": "≥", "ne": "≠", "approx": "≈", "simeq": "≈", "in": "∈"}
_SIGNS |= {"equiv": "="}
_BETWEEN = {",", "and", "or", "&"}
_CASES = {"cases", "dcases", "rcases"}
_MATRICES = {"pmatrix", "bmatrix", "vmatrix", "Bmatrix", "matrix", "array", "smallmatrix"}
_SETS = {"bbR": "ℝ", "bbZ": "ℤ", "bbN": "ℕ", "bbQ": "ℚ", "bbC": "ℂ"}


def parse(text: str, *, grouped: bool = True) -> Node:
    """The node of a normalized answer. grouped: read 1,234 as one number. Raises Unreadable."""
    if (option := labels.option(text)) is not None:
        return Choice(option[0], read(_numbered(option[1], grouped)))
    return read(_numbered(text, grouped))


def _numbered(text: str, grouped: bool) -> Tokens:
    """The tokens, with numbers in place of number words and counting symbols."""
    return counted(spelled(tokenize(text, grouped=grouped)))


def read(tokens: Tokens) -> Node:
    """One or several values."""
    tokens = _bare(tokens)
    if not tokens:
        raise Unreadable("no answer")
    if _all_words(tokens):
        return _text(tokens)
    if (family := relations.integers(tokens)) is not None:
        before, letters, domain = family
        return Family(read(before), letters, domain)
    if (place := words.remark(tokens)) is not None:
        if reservation := words.reservation(" ".join(token.text for token in tokens[place:])):
            raise Unreadable(f"qualified by {reservation!r}")
        if any(b.kind == "num" and a.kind not in ("_", "{") for a, b in pairwise(tokens[place:])):  # not A_1
            raise Unreadable("a remark with another number")
        tokens = tokens[:place]
    groups = [group for group, _ in split(tokens, {";", "\\\\"}) if group]
    if len(groups) > 1:
        return Seq("list", tuple(_as_tuple(read(group)) for group in groups))
    pieces = [(piece, sign) for piece, sign in split(words.without_domain(tokens), _BETWEEN) if piece]
    if not pieces:
        raise Unreadable("no answer")
    nodes = _of_one_modulus([piece for piece, _ in pieces])
    if len(nodes) > 1:  # kπ, k ∈ ℤ
        nodes = tuple(node for node in nodes if not _is_domain(node)) or nodes
    if len(nodes) == 1:
        return nodes[0]
    if all(isinstance(node, Text) for node in nodes):
        return Seq("list", nodes)
    if (condition := relations.joined(nodes, {sign for _, sign in pieces[:-1]})) is not None:
        return condition
    return Seq("list", _spread_name(nodes))


def _of_one_modulus(pieces: list[Tokens]) -> tuple[Node, ...]:
    """The items; a modulus after the last applies to all: x \\equiv 1, 3 \\pmod 8."""
    last, modulus = without_modulus(pieces[-1]) if len(pieces) > 1 else (pieces[-1], None)
    if modulus is None or any(without_modulus(piece)[1] is not None for piece in pieces[:-1]):
        return tuple(_item(piece) for piece in pieces)
    return tuple(residue(node, modulus) for node in _spread_name(tuple(_item(piece) for piece in [*pieces[:-1], last])))


def _item(tokens: Tokens) -> Node:
    """One value with the words around it."""
    tokens = words.without_quantifier(_unlabelled(_bare(tokens)))
    if not tokens:
        raise Unreadable("a label without a value")
    if (based := literals.based(tokens)) is not None:
        return based
    tokens, modulus = without_modulus(tokens)
    if modulus is not None:
        return residue(_item(tokens), modulus)
    if _all_words(tokens):
        return _text(tokens)
    after_leading, before = words.leading(tokens)
    if _is_sentence(after_leading):
        return _text(tokens)
    tokens = after_leading
    tokens, after = words.trailing(tokens)
    after = words.with_power(after)
    if not tokens:
        raise Unreadable("words only")
    if qualifier := words.qualifier(before) or words.reservation(after):
        raise Unreadable(f"qualified by {qualifier!r}")
    if after and (time := literals.clock(tokens, after)) is not None:
        return time
    node = _relation(tokens)
    if not after:
        return node
    if isinstance(node, Named):
        return Named(node.name, node.arguments, Quantity(node.value, after))
    return Quantity(node, after)


def _relation(tokens: Tokens) -> Node:
    pieces = split(tokens, _SIGNS, commands=True)
    if len(pieces) > 1 and not pieces[0][0] and pieces[0][1] in ("approx", "simeq", "=", "equiv", "in"):
        pieces = pieces[1:]  # the name is missing: ≈ 8.24
    if len(pieces) == 1:
        return _part(pieces[0][0])
    if any(not piece for piece, _ in pieces):
        raise Unreadable("a sign with nothing next to it")
    signs = tuple(_SIGNS[sign] for _, sign in pieces[:-1])
    first = pieces[0][0]
    if "≈" in signs:
        return _approximate([piece for piece, _ in pieces], signs)
    if signs == ("∈",):
        return (
            Named(render(first), (), _part(pieces[1][0])) if read_name(first) else _unreadable("membership of a value")
        )
    if set(signs) == {"="}:
        return _equality([piece for piece, _ in pieces])
    if "∈" in signs or ("≠" in signs and len(signs) > 1):
        raise Unreadable("a mixed relation")
    return Relation(tuple(_part(piece) for piece, _ in pieces), signs)


def _approximate(pieces: list[Tokens], signs: tuple[str, ...]) -> Node:
    """The value before the first ≈; if that is a name, the value after it."""
    place = signs.index("≈")
    before = pieces[: place + 1]
    about = _part(pieces[place + 1])
    if len(before) == 1:
        return Named(render(before[0]), (), about) if read_name(before[0]) else Op("near", (_part(before[0]), about))
    if set(signs[:place]) != {"="}:
        raise Unreadable("a mixed relation")
    node = _equality(before)
    return Named(node.name, node.arguments, Op("near", (node.value, about))) if isinstance(node, Named) else node


def _equality(pieces: list[Tokens]) -> Node:
    pieces = with_division(pieces)
    first, rest = pieces[0], pieces[1:]
    named = read_name(first)
    if named is None and (labels.is_name(first) or labels.restates(first)):
        named = render(first), ()
    is_label = named is not None or labels.is_quantity(first)
    values = tuple(_part(piece) for piece in rest if piece is rest[-1] or not (is_label and labels.restates(piece)))
    if is_label and not symbols(values[-1]):  # A = πr² = 25
        values = tuple(value for value in values if not symbols(value))
    value = values[0] if len(values) == 1 else Op("chain", values)
    if named is None:
        names = read_names(first)
        if names and isinstance(value, Seq) and len(value.items) == len(names):
            return Seq("tuple", tuple(Named(n, a, v) for (n, a), v in zip(names, value.items, strict=True)))
        if names:
            return Named(render(first), (), value)
        return Relation((_part(first), *values), ("=",) * len(values), is_label)
    name, arguments = named
    if name in symbols(value) and not arguments:
        return Relation((_part(first), *values), ("=",) * len(values))
    # x = y = z = 1: everything before the last value is a name.
    if len(values) > 1 and all(read_name(piece) for piece in rest[:-1]):
        return Named(name, arguments, values[-1])
    return Named(name, arguments, value)


def _part(tokens: Tokens) -> Node:
    """A set, an interval, a tuple, a matrix or a scalar."""
    pieces = [piece for piece, _ in split(tokens, {"cup"}, commands=True)]
    if len(pieces) > 1:
        return Union(tuple(_part(piece) for piece in pieces))
    pieces = [piece for piece, _ in split(relations.with_setminus(tokens), {"setminus", "backslash"}, commands=True)]
    if len(pieces) > 1:
        return Op("setminus", (_part(pieces[0]), Union(tuple(_part(piece) for piece in pieces[1:]))))
    pieces = [piece for piece, _ in split(tokens, {"cap"}, commands=True)]
    if len(pieces) > 1:
        return Op("cap", tuple(_part(piece) for piece in pieces))
    tokens = _bare(tokens)
    if not tokens:
        raise Unreadable("a missing value")
    first = tokens[0]
    if (before := matrices.before_transpose(tokens)) is not None and (turned := _transposed(_part(before))) is not None:
        return turned
    if first.kind == "cmd" and first.text == "begin":
        return matrices.combination(tokens, _part) or _matrix(tokens)
    if first.kind == "cmd" and first.text in _SETS and len(tokens) == 1:
        return Sym(_SETS[first.text])
    if first.kind == "cmd" and first.text == "emptyset" and len(tokens) == 1:
        return Union(())
    if first.kind == "cmd" and first.text in ("ldots", "dots", "cdots") and len(tokens) == 1:
        return Sym("…")  # an item of a list
    for literal in (literals.based, literals.clock, literals.whole_repeating):
        if (known := literal(tokens)) is not None:
            return known
    if matching(tokens, 0) == len(tokens) - 1:
        return _bracketed(tokens)
    if any(token.text == "begin" for token in tokens) and (total := matrices.combination(tokens, _part)) is not None:
        return total
    if (ratio := [piece for piece, _ in split(tokens, {":"})]) and len(ratio) > 1:
        values = tuple(scalar(piece) for piece in ratio)
        return Op("ratio", values) if len(values) == 2 else Seq("ratio", values)
    if _all_words(tokens):
        return _text(tokens)
    return scalar(tokens)


def _transposed(node: Node) -> Node | None:
    """The transpose of a matrix, or of a vector in brackets; None of anything else."""
    match node:
        case Matrix(rows=rows):
            return Matrix(tuple(zip(*rows, strict=True)))
        case Seq(kind="tuple" | "bracket", items=items):
            return Matrix(tuple((item,) for item in items))
    return None


def _bracketed(tokens: Tokens) -> Node:
    opening, inside, closing = tokens[0], tokens[1:-1], tokens[-1]
    kind = opening.text if opening.kind == "cmd" else opening.kind
    if kind in ("lceil", "lfloor"):
        return scalar(tokens)
    if kind == "\\{":
        return _set(inside)
    items = [piece for piece, _ in split(inside, {",", ";"})]
    if kind == "langle":
        return Seq("tuple", tuple(_item(piece) for piece in items))
    round_pair = (opening.kind, closing.kind) == ("(", ")")
    if len(items) == 1:
        if not round_pair and (opening.kind, closing.kind) != ("[", "]"):
            raise Unreadable("an interval with one endpoint")
        if inside[:1] and inside[0].kind == "cmd" and inside[0].text == "begin":
            return _part(inside)
        return read(inside) if round_pair else _part(inside)
    if any(not item for item in items):
        raise Unreadable("nothing between two commas")
    values = tuple(_item(item) for item in items)
    if round_pair:
        return Seq("tuple", values)
    if len(values) == 2:
        return Interval(values[0], values[1], opening.kind == "[", closing.kind == "]")
    if (opening.kind, closing.kind) == ("[", "]"):
        return Seq("bracket", values)
    raise Unreadable("brackets that do not match")


def _set(inside: Tokens) -> Node:
    if not inside:
        return Union(())
    if (family := relations.integers(inside)) is not None:
        [*element, value] = [piece for piece, _ in split(family[0], {"|", ":"})]
        if not element or (len(element) == 1 and symbol_name(element[0][:1])):
            return Family(read(value), *family[1:])
    for sign in ("|", ":"):
        halves = [piece for piece, _ in split(inside, {sign})]
        if len(halves) == 2 and symbol_name(halves[0][:1]):
            condition = read(halves[1])
            if isinstance(condition, Relation | Union | Seq | Family):
                return condition
            raise Unreadable("a set described by words")
    return Seq("set", tuple(_item(piece) for piece, _ in split(inside, {",", ";", "and"}) if piece))


def _matrix(tokens: Tokens) -> Node:
    """\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}, or \\begin{cases}"""
    close = matching(tokens, 1)
    name = "".join(token.text for token in tokens[2:close])
    if name not in _MATRICES | _CASES:
        raise Unreadable(f"unsupported environment {name!r}")
    start = close + 1
    if name == "array" and tokens[start : start + 1] and tokens[start].kind == "{":
        start = matching(tokens, start) + 1
    end = next((i for i in range(start, len(tokens)) if tokens[i].kind == "cmd" and tokens[i].text == "end"), None)
    if end is None or matching(tokens, end + 1) != len(tokens) - 1:
        raise Unreadable("more than one matrix")
    rows = [row for row, _ in split(tokens[start:end], {"\\\\"}) if row]
    if name in _CASES:
        return relations.cases([[cell for cell, _ in split(row, {"&"})] for row in rows], read)
    entries = tuple(tuple(_part(entry) for entry, _ in split(row, {"&"})) for row in rows)
    if not entries or len({len(row) for row in entries}) != 1:
        raise Unreadable("a matrix with rows of different lengths")
    return Matrix(entries)


# -- helpers on tokens


def _bare(tokens: Tokens) -> Tokens:
    """The tokens without enclosing braces and without quotes."""
    while len(tokens) > 1 and tokens[0].kind == "{" and matching(tokens, 0) == len(tokens) - 1:
        tokens = tokens[1:-1]
    return [token for token in tokens if token.kind not in ('"', "?")]


def _unlabelled(tokens: Tokens) -> Tokens:
    """`Paolo: 18` is 18; `Sequence 1: 3` is 3."""
    for i, token in enumerate(tokens):
        if token.kind == ":" and 0 < i < len(tokens) - 1:
            label = tokens[:i]
            if any(t.kind in ("word", "text") for t in label) and all(t.kind in ("word", "text", "num") for t in label):
                return tokens[i + 1 :]
    return tokens


def _all_words(tokens: Tokens) -> bool:
    kinds = {token.kind for token in tokens}
    if not kinds <= {"word", "text", "sym", "roman", ".", "-", ",", "'", "or", "and", "(", ")", ":"}:
        return False
    plain = [token for token in tokens if token.kind in ("word", "text")]
    if not any(words.is_word(token) for token in plain):
        return False
    if kinds & {",", "and", "or"}:  # several texts, or one sentence
        return any(token.kind in ("sym",) for token in tokens) or len(plain) > 8
    return True


def _is_sentence(tokens: Tokens) -> bool:
    """Whether it is a word followed by words and numbers: June 20; Alice is in room 45."""
    kinds = {token.kind for token in tokens}
    return "num" in kinds and kinds <= {"num", "word", "text", "sym", "-", "'", "."} and words.is_word(tokens[0])


def _text(tokens: Tokens) -> Node:
    return words.text(" ".join(token.text for token in tokens))


def _spread_name(nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """x = 4, -8, -10: the first name applies to all."""
    first = nodes[0]
    if isinstance(first, Named) and not any(isinstance(node, Named | Relation) for node in nodes[1:]):
        return (first.value, *nodes[1:])
    return nodes


def _is_domain(node: Node) -> bool:
    return isinstance(node, Named) and isinstance(node.value, Sym) and node.value.name in _SETS.values()


def _as_tuple(node: Node) -> Node:
    return Seq("tuple", node.items) if isinstance(node, Seq) and node.kind == "list" else node


def _unreadable(reason: str) -> Node:
    raise Unreadable(reason)
