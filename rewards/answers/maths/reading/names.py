"""Names and pieces of tokens: f(x), x_1, "the length", (x, y, z); and splitting at signs outside brackets."""

from collections.abc import Iterable

from rewards.answers.maths.reading import labels, words
from rewards.answers.maths.reading.tokens import CLOSING, FUNCTIONS, OPENING, Tokens, matching, symbol_name


def read_name(tokens: Tokens) -> tuple[str, tuple[str, ...]] | None:
    """("f", ("x",)) for f(x); ("x_{1}", ()) for x_1; None if it is not a name."""
    if not tokens:
        return None
    kinds = [token.kind for token in tokens]
    if tokens[0][:2] == ("cmd", "Delta") and len(tokens) > 1 and (of := read_name(tokens[1:])):
        return f"Delta {of[0]}", of[1]
    if all(words.is_word(token) for token in tokens):
        return render(tokens), ()
    if (
        kinds[0] == "cmd"
        and tokens[0].text in FUNCTIONS
        and kinds[1:]
        and kinds[1] in ("sym", "word")
        and len(kinds) == 2
    ):
        return render(tokens), ()
    read = symbol_name(tokens)
    if read is None:
        return None
    name, rest = read
    if not rest:
        return name, ()
    if rest[0].kind == "(" and matching(rest, 0) == len(rest) - 1:
        if labels.multiplies(name, rest):
            return None
        arguments = [render(piece) for piece, _ in split(rest[1:-1], {","})]
        return name, tuple(arguments)
    if rest[0].kind == ":" and read_name(rest[1:]):  # a ratio of two names
        return render(tokens), ()
    return None


def read_names(tokens: Tokens) -> list[tuple[str, tuple[str, ...]]] | None:
    """The names in (x, y, z), or None."""
    if len(tokens) < 3 or tokens[0].kind != "(" or matching(tokens, 0) != len(tokens) - 1:
        return None
    found = [read_name(piece) for piece, _ in split(tokens[1:-1], {","})]
    return [name for name in found if name] if all(found) else None


def split(tokens: Tokens, signs: Iterable[str], *, commands: bool = False) -> list[tuple[Tokens, str]]:
    """The pieces between signs outside brackets, each with the sign that ends it ("" for the last)."""
    pieces: list[tuple[Tokens, str]] = []
    depth = start = 0
    for i, token in enumerate(tokens):
        name = token.text if token.kind == "cmd" else token.kind
        if name in OPENING or name == "begin":
            depth += 1
        elif name in CLOSING or name == "end":
            depth -= 1
        elif depth == 0 and name in signs and (token.kind != "cmd" or commands):
            pieces.append((tokens[start:i], name))
            start = i + 1
    return [*pieces, (tokens[start:], "")]


def render(tokens: Tokens) -> str:
    return "".join(token.text for token in tokens if token.kind not in ("{", "}"))
