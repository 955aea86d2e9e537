r"""Residue classes: the modulus after a value, 3 \pmod 7, x \equiv 3 (\bmod 7), 3 (mod 7), 3 \text{ mod } 7.

17 \bmod 5 is read as the class of 17, too: a class may be given by any number in it.
"""

from rewards.answers.maths.nodes import Named, Node, Num, Op, Relation, Scalar, Seq, Unreadable
from rewards.answers.maths.reading.scalar import scalar
from rewards.answers.maths.reading.tokens import CLOSING, OPENING, Token, Tokens

_COMMANDS = {"pmod", "bmod", "mod", "pod"}
_WORDS = {"mod", "modulo"}


def without_modulus(tokens: Tokens) -> tuple[Tokens, Node | None]:
    """The tokens before the modulus at the end, and the modulus; None if there is none."""
    place = next((i for i in range(len(tokens) - 1, 0, -1) if _begins_modulus(tokens[i])), 0)
    if not place:
        return tokens, None
    after = [token for token in tokens[place + 1 :] if token.text.strip() != ")" or token.kind != "text"]
    if tokens[place - 1].kind == "(" and after[-1:] and after[-1].kind == ")":
        place, after = place - 1, after[:-1]
    before = tokens[:place]
    names = [token.text if token.kind == "cmd" else token.kind for token in before]
    depth = sum(name in OPENING for name in names) - sum(name in CLOSING for name in names)
    if depth or not before or not after:
        raise Unreadable("unevaluated \\mod")
    return before, scalar(after)


def _begins_modulus(token: Token) -> bool:
    said = token.text.lower().strip("( ")
    return (token.kind == "cmd" and said in _COMMANDS) or (token.kind in ("word", "text") and said in _WORDS)


def residue(node: Node, modulus: Node) -> Node:
    """The node's values as residue classes."""
    match node:
        case Named(name, arguments, value):
            return Named(name, arguments, residue(value, modulus))
        case Op("chain", parts):
            return Op("chain", tuple(residue(part, modulus) for part in parts))
        case Relation(parts, signs) if set(signs) == {"="}:
            return Relation(tuple(residue(part, modulus) for part in parts), signs)
        case Seq("list" | "set" as kind, items):
            return Seq(kind, tuple(residue(item, modulus) for item in items))
    if not isinstance(node, Scalar) or (isinstance(node, Op) and node.name == "residue"):
        raise Unreadable("a modulus after something else than a value")
    if isinstance(modulus, Num) and modulus.value <= 0:
        raise Unreadable("a modulus that is not positive")
    return Op("residue", (node, modulus))
