r"""Combinations and permutations in the notations of schools: C_8^2, {}_8C_2, {}^8C_2, A_8^2, P_8^2. Tokens in and out.

C_8^2 could also be a letter squared. It is read as a number of combinations only if all letters C, A and P of the
answer can be: with whole numbers 0 ≤ k ≤ n, or C alone with whole-number letters.
"""

from rewards.answers.maths.reading.tokens import Token

_LETTERS = {"C": "binom", "A": "permutations", "P": "permutations"}
_COUNTERS = set("nmkrN")
_CHARACTERS = set("0123456789+-")


def counted(tokens: list[Token]) -> list[Token]:
    r"""The tokens with such notations as \binom{n}{k} or \permutations{n}{k}."""
    if not any(token.text in _LETTERS and token.kind in ("sym", "roman") for token in tokens):
        return tokens
    tokens = _prefixed(tokens)
    return _scripted(tokens) or tokens


def _prefixed(tokens: list[Token]) -> list[Token]:
    """{}_8C_2 and {}^8C_2, which cannot be anything else."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        start = i + 2 if [t.kind for t in tokens[i : i + 2]] == ["{", "}"] else i
        after_value = out and (out[-1].kind in ("num", "sym", "roman", "word", ")", "}", "]", "'") or i == start == 0)
        if start < len(tokens) and tokens[start].kind in ("_", "^") and (start > i or not after_value):
            upper, place = _group(tokens, start + 1)
            if upper and place + 1 < len(tokens) and tokens[place].text in _LETTERS and tokens[place + 1].kind == "_":
                lower, end = _group(tokens, place + 2)
                if lower:
                    out += _call(tokens[place], upper, lower)
                    i = end
                    continue
        out.append(tokens[i])
        i += 1
    return out


def _scripted(tokens: list[Token]) -> list[Token] | None:
    """C_8^2 and C^2_8 rewritten; None if one of the letters is not of this form."""
    out: list[Token] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        if token.kind not in ("sym", "roman") or token.text not in _LETTERS:
            out.append(token)
            i += 1
            continue
        scripts: dict[str, list[Token]] = {}
        i += 1
        while len(scripts) < 2 and i < len(tokens) and tokens[i].kind in ("_", "^") and tokens[i].kind not in scripts:
            kind = tokens[i].kind
            scripts[kind], i = _group(tokens, i + 1)
        lower, upper = scripts.get("_", []), scripts.get("^", [])
        if not lower or not upper or not _counts(token.text, lower, upper):
            return None
        out += _call(token, lower, upper)
    letters = {t.text for t in tokens if t.kind in ("sym", "roman", "word")} - set(_LETTERS)
    return out if letters <= _COUNTERS else None


def _counts(letter: str, n: list[Token], k: list[Token]) -> bool:
    if len(n) == len(k) == 1 and n[0].text.isdigit() and k[0].text.isdigit():
        return 0 <= int(k[0].text) <= int(n[0].text)
    symbolic = any(not token.text.isdigit() for token in n)  # C_1^n is a constant's power
    return letter == "C" and symbolic and all(set(token.text) <= _COUNTERS | _CHARACTERS for token in [*n, *k])


def _group(tokens: list[Token], start: int) -> tuple[list[Token], int]:
    """The braced tokens or single token at start, and where they end; no tokens if there are none or nested ones."""
    if start >= len(tokens):
        return [], start
    if tokens[start].kind != "{":
        return [tokens[start]] if tokens[start].kind in ("num", "sym") else [], start + 1
    end = next((i for i in range(start + 1, len(tokens)) if tokens[i].kind in ("{", "}")), start)
    return (tokens[start + 1 : end], end + 1) if tokens[end].kind == "}" else ([], start + 1)


def _call(letter: Token, n: list[Token], k: list[Token]) -> list[Token]:
    opening, closing = Token("{", "{", False), Token("}", "}", False)
    command = Token("cmd", _LETTERS[letter.text], letter.spaced)
    return [command, opening, *n, closing, opening, *k, closing]
