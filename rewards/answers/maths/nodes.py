"""What an answer is once read: plain frozen values, each documented by a minimal example."""

from dataclasses import dataclass
from fractions import Fraction


class Unreadable(ValueError):  # noqa: N818  # read as a sentence: raise Unreadable("no answer")
    """The text is not an answer these rules can read. The message says why."""


@dataclass(frozen=True, slots=True)
class Num:
    """A literal: Num(Fraction(1, 4), 2) is 0.25; places is None for integers."""

    value: Fraction
    places: int | None = None


@dataclass(frozen=True, slots=True)
class Sym:
    """A letter with its decorations: Sym("x"), Sym("x_{1}"), Sym("α")."""

    name: str


@dataclass(frozen=True, slots=True)
class Op:
    """An operation or function: Op("add", (Sym("x"), Num(1))), Op("sin", (Sym("x"),)), Op("∞", ())."""

    name: str
    args: "tuple[Node, ...]" = ()


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base: Based("1011", 2)."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of day. half: "am" or "pm" if stated, "24h" for 19:15 and 07:15, "" if it may be either.

    Clock(69300, "pm") is 7:15 p.m., Clock(26100, "") is 7:15.
    """

    seconds: int
    half: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with words after it: Quantity(Num(5), "cm"), Quantity(Num(7), "stuffed goats")."""

    value: "Node"
    words: str


@dataclass(frozen=True, slots=True)
class Text:
    """Words: Text("evelyn")."""

    words: str


@dataclass(frozen=True, slots=True)
class Choice:
    """An option with its letter: Choice("B", Num(420)) is (B) 420."""

    letter: str
    value: "Node"


@dataclass(frozen=True, slots=True)
class Seq:
    """Several values. kind: "list" 1, 2   "tuple" (1, 2)   "bracket" [1, 2]   "set" {1, 2}   "ratio" 1:2:3.

    Relations that hold together are a Seq, too: "and" if they are about one letter, else "system".
    """

    kind: str
    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Interval:
    """Interval(Num(2), Op("∞"), left_closed=True, right_closed=False) is [2, ∞)."""

    left: "Node"
    right: "Node"
    left_closed: bool
    right_closed: bool


@dataclass(frozen=True, slots=True)
class Union:
    """Sets joined by ∪. No parts: the empty set."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Named:
    """A value with its name: Named("f", ("x",), …) is f(x) = …; Named("x", (), Num(3)) is x = 3."""

    name: str
    arguments: tuple[str, ...]
    value: "Node"


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain: Relation((Num(1), Sym("x"), Num(3)), ("<", "≤")) is 1 < x ≤ 3.

    labelled: an equation whose left side may be a quantity whose value is asked for, as in p + q = 167.
    """

    parts: "tuple[Node, ...]"
    signs: tuple[str, ...]
    labelled: bool = False


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries: Matrix(((Num(1), Num(0)), (Num(0), Num(1))))."""

    rows: "tuple[tuple[Node, ...], ...]"


@dataclass(frozen=True, slots=True)
class Family:
    """A value for every choice of whole numbers: Family(π/6 + 2kπ, ("k",), "ℤ"); domain "" if it is not stated.

    domain "positive": only the positive ones of the values, as in `all positive integers divisible by 3`.
    """

    value: "Node"
    letters: tuple[str, ...]
    domain: str


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Rows of value and condition: Piecewise(((Sym("x"), x ≥ 0), (Num(0), Text("otherwise"))))."""

    rows: "tuple[tuple[Node, Node], ...]"


Node = (
    Num
    | Sym
    | Op
    | Based
    | Clock
    | Quantity
    | Text
    | Choice
    | Seq
    | Interval
    | Union
    | Named
    | Relation
    | Matrix
    | Family
    | Piecewise
)
Scalar = Num | Sym | Op
INDEX = "#"  # the index of a sum or product with dots, in Sym("#") and Sym("a_#"); no letter of the answer


def children(node: Node) -> tuple[Node, ...]:
    """The node's children."""
    match node:
        case Op(args=below) | Seq(items=below) | Union(parts=below) | Relation(parts=below):
            return below
        case Quantity(value=value) | Choice(value=value) | Named(value=value) | Family(value=value):
            return (value,)
        case Piecewise(rows=rows):
            return tuple(part for row in rows for part in row)
        case Interval(left=left, right=right):
            return (left, right)
        case Matrix(rows=rows):
            return tuple(entry for row in rows for entry in row)
    return ()


def rebuilt(node: Node, below: "tuple[Node, ...]") -> Node:
    """The same node with other children."""
    match node:
        case Op(name=name):
            return Op(name, below)
        case Seq(kind=kind):
            return Seq(kind, below)
        case Union():
            return Union(below)
        case Relation(signs=signs, labelled=labelled):
            return Relation(below, signs, labelled)
        case Quantity(words=words):
            return Quantity(below[0], words)
        case Choice(letter=letter):
            return Choice(letter, below[0])
        case Named(name=name, arguments=arguments):
            return Named(name, arguments, below[0])
        case Family(letters=letters, domain=domain):
            return Family(below[0], letters, domain)
        case Piecewise():
            return Piecewise(tuple(zip(below[::2], below[1::2], strict=True)))
        case Interval(left_closed=left_closed, right_closed=right_closed):
            return Interval(below[0], below[1], left_closed, right_closed)
        case Matrix(rows=rows):
            width = len(rows[0])
            return Matrix(tuple(below[i : i + width] for i in range(0, len(below), width)))
    return node


def is_single(node: Node) -> bool:
    """Whether it is one value, with or without a name and words: x = 3.5 cm."""
    while isinstance(node, Named | Quantity):
        node = node.value
    return isinstance(node, Scalar) and not (isinstance(node, Op) and node.name == "ratio")


def symbols(node: Node) -> set[str]:
    """Names of all letters in the node."""
    if isinstance(node, Sym):
        return set() if INDEX in node.name else {node.name}
    return set().union(*(symbols(child) for child in children(node)))


def operations(node: Node) -> set[str]:
    """Names of all operations in the node."""
    own = {node.name} if isinstance(node, Op) else set()
    return own.union(*(operations(child) for child in children(node)))


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The node with letters renamed."""
    if isinstance(node, Sym):
        return Sym(names.get(node.name, node.name))
    if isinstance(node, Named) and not node.arguments:
        return Named(names.get(node.name, node.name), (), renamed(node.value, names))
    return rebuilt(node, tuple(renamed(child, names) for child in children(node)))


def replaced(node: Node, letter: str, other: Node) -> Node:
    """The node with a letter replaced by another node."""
    if isinstance(node, Sym):
        return other if node.name == letter else node
    below = children(node)
    return rebuilt(node, tuple(replaced(child, letter, other) for child in below)) if below else node


def reversed_sign(sign: str) -> str:
    """The sign of the same relation read backwards: < for >."""
    return {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}.get(sign, sign)
