"""Scalar expressions: precedence climbing over tokens.

Ambiguous LaTeX is read as people write it: 2\\frac{1}{2} is two and a half, 1/2x is (1/2)x, \\sin 2x is sin(2x),
2^10 is 1024. Operators that restate a problem instead of answering it (sums, integrals, limits) are rejected.
"""

from fractions import Fraction

from rewards.answers.maths.nodes import Num, Op, Scalar, Sym, Unreadable, symbols
from rewards.answers.maths.reading.notation.dots import DOTS, series
from rewards.answers.maths.reading.notation.literals import number, repeating
from rewards.answers.maths.reading.tokens import CLOSING, FUNCTIONS, OPENING, Token, Tokens, matching, symbol_name
from rewards.answers.maths.reading.words import is_eastern

_RESTATED = {
    "int",
    "iint",
    "oint",
    "sum",
    "prod",
    "lim",
    "limsup",
    "gcd",
    "lcm",
    "det",
    "arg",
    "deg",
    "pmod",
    "bmod",
    "mod",
}
_INFIX = {"over": "div", "choose": "binom"}  # TeX's {5 \\over 6}
_TIMES = {"cdot", "times", "ast", "div"}


def scalar(tokens: Tokens) -> Scalar:
    """All the tokens as one expression."""
    place = _infix(tokens)
    if place is not None:
        return Op(_INFIX[tokens[place].text], (scalar(tokens[:place]), scalar(tokens[place + 1 :])))
    reader = _Reader(tokens)
    node = reader.sum()
    if reader.tokens:
        raise Unreadable(f"{reader.tokens[0].text!r} after an expression")
    return node


def with_division(pieces: list[Tokens]) -> list[Tokens]:
    """The sides of 36:2:2 = 9 with ÷ for the colons, if the last has none: there, colons divide."""
    if any(token.kind == ":" for token in pieces[-1]):
        return pieces
    named = [any(token.kind == "sym" for token in piece) for piece in pieces]
    division = Token("cmd", "div", False)
    return [
        piece if letters else [division if token.kind == ":" else token for token in piece]
        for piece, letters in zip(pieces, named, strict=True)
    ]


def _infix(tokens: Tokens) -> int | None:
    """Where \\over or \\choose divides the tokens, outside brackets of any kind."""
    if not any(token.kind == "cmd" and token.text in _INFIX for token in tokens):
        return None
    depth = 0
    for i, token in enumerate(tokens):
        name = token.text if token.kind == "cmd" else token.kind
        depth += (name in OPENING) - (name in CLOSING)
        if depth == 0 and token.kind == "cmd" and name in _INFIX:
            return i
    return None


class _Reader:
    """Consumes `tokens` from the front."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = list(tokens)

    def _name(self) -> str:
        """The next token's name; "" at the end."""
        if not self.tokens:
            return ""
        token = self.tokens[0]
        return token.text if token.kind == "cmd" else token.kind

    def _take(self) -> Token:
        if not self.tokens:
            raise Unreadable("an incomplete expression")
        return self.tokens.pop(0)

    def sum(self) -> Scalar:
        node = self._product()
        terms: list[Scalar] | None = [node]  # while all signs are plus
        while self._name() in ("+", "-", "pm", "mp"):
            sign = self._take()
            if sign.kind == "+" and self._name() in DOTS and terms:
                self._take()
                return series("sum of", terms, self._terms_after_dots())
            right = self._product()
            name = {"+": "add", "-": "sub", "pm": "pm", "mp": "mp"}[sign.text]
            node = Op("add", (node, Op("neg", (right,)))) if name == "sub" else Op(name, (node, right))
            terms = [*terms, right] if terms and sign.kind == "+" else None
        return node

    def _terms_after_dots(self) -> list[Scalar]:
        terms: list[Scalar] = []
        while self._name() == "+":
            self._take()
            terms.append(self._product())
        return terms

    def _product(self) -> Scalar:
        node = self._signed()
        factors: list[Scalar] | None = [node]  # while nothing is divided
        while True:
            name = self._name()
            if factors and (name in DOTS or (name in ("*", "cdot", "times") and self._dots_follow())):
                self.tokens = self.tokens[1 if name in DOTS else 2 :]
                return series("product of", factors, self._factors_after_dots())
            if name == "*" or name in _TIMES:
                sign = self._take().text
                right = self._signed()
                node = Op("div" if sign == "div" else "mul", (node, right))
                factors = None if sign == "div" or not factors else [*factors, right]
            elif name in ("/", ":"):  # a colon inside brackets; `parse` reads ratios
                self._take()
                node = Op("div", (node, self._signed()))
                factors = None
            elif self._starts_factor():
                if name == "num" and isinstance(node, Num):
                    raise Unreadable("two adjacent numbers")
                right = self._power()
                node = Op("mul", (node, right))
                factors = [*factors, right] if factors else None
            else:
                return node

    def _dots_follow(self) -> bool:
        return len(self.tokens) > 1 and self.tokens[1].kind == "cmd" and self.tokens[1].text in DOTS

    def _factors_after_dots(self) -> list[Scalar]:
        factors: list[Scalar] = []
        while self._name() in ("*", "cdot", "times") or self._starts_factor():
            if self._name() in ("*", "cdot", "times"):
                self._take()
            factors.append(self._power())
        return factors

    def _starts_factor(self) -> bool:
        name = self._name()
        if name in ("num", "sym", "roman", "word", "(", "[", "{", "lceil", "lfloor"):
            return True
        return bool(self.tokens) and self.tokens[0].kind == "cmd" and name not in CLOSING | {"pm", "mp"}

    def _signed(self) -> Scalar:
        name = self._name()
        if name == "+":
            self._take()
            return self._signed()
        if name == "-":
            self._take()
            return Op("neg", (self._signed(),))
        if name in ("pm", "mp"):
            self._take()
            return Op(name, (self._signed(),))
        return self._power()

    def _power(self) -> Scalar:
        return self._postfix(self._atom())

    def _postfix(self, node: Scalar) -> Scalar:
        while True:
            name = self._name()
            if name == "^":
                self._take()
                node = Op("pow", (node, self._argument(whole_numbers=True)))
            elif name == "!":
                self._take()
                if self._name() == "!":
                    raise Unreadable("a double factorial")
                node = Op("factorial", (node,))
            elif name == "%":
                self._take()
                node = Op("percent", (node,))
            elif name == "circ":
                self._take()
                node = Op("degree", (self._minutes(node),))
            else:
                return node

    def _minutes(self, degrees: Scalar) -> Scalar:
        """60° 42'."""
        if len(self.tokens) >= 2 and self.tokens[0].kind == "num" and self.tokens[1].kind == "'":
            minutes = number(self._take().text)
            self._take()
            return Op("add", (degrees, Num(minutes.value / 60)))
        return degrees

    def _atom(self) -> Scalar:
        token = self._take()
        name = token.text if token.kind == "cmd" else token.kind
        if token.kind == "num":
            return self._numeral(token)
        if token.kind == "word":
            self._return_letters(token)
            return self._atom()
        if name in ("(", "[", "{", "lceil", "lfloor"):
            inside = scalar(self._inside(token))
            return Op({"lceil": "ceil", "lfloor": "floor"}[name], (inside,)) if name in ("lceil", "lfloor") else inside
        if name == "|":
            end = next((i for i, other in enumerate(self.tokens) if other.kind == "|"), None)
            if end is None:
                raise Unreadable("an unmatched |")
            inside, self.tokens = self.tokens[:end], self.tokens[end + 1 :]
            return Op("abs", (scalar(inside),))
        if token.kind == "cmd":
            return self._command(token)
        read = symbol_name([token, *self.tokens])
        if read is None:
            raise Unreadable(f"{token.text!r} where a value should be")
        letter, self.tokens = read
        return _letter(letter)

    def _return_letters(self, word: Token) -> None:
        """xy is x times y."""
        if is_eastern(word.text):
            raise Unreadable(f"{word.text!r} inside an expression")
        self.tokens[:0] = [Token("sym", letter, False) for letter in word.text]

    def _numeral(self, token: Token) -> Scalar:
        node = number(token.text)
        if self._name() == "_":
            raise Unreadable("a number with a subscript inside an expression")
        node, self.tokens = repeating(node, self.tokens)
        if node.value.denominator == 1 and node.places is None:
            return self._mixed(node)
        return node

    def _mixed(self, whole: Num) -> Scalar:
        """2\\frac{1}{2} and 2 1/2 are two and a half."""
        rest = self.tokens
        if self._name() == "frac":
            ahead = _Reader(rest[1:])
            top, bottom = ahead._argument(), ahead._argument()
            if isinstance(top, Num) and isinstance(bottom, Num) and top.value > 0:
                if top.value >= bottom.value:
                    raise Unreadable("a mixed number with an improper fraction")  # 1 9/5 is neither 9/5 nor 14/5
                self.tokens = ahead.tokens
                return Num(whole.value + top.value / bottom.value)
        elif len(rest) >= 3 and [t.kind for t in rest[:3]] == ["num", "/", "num"] and rest[0].spaced:
            top, bottom = number(rest[0].text), number(rest[2].text)
            if 0 < top.value < bottom.value:
                self.tokens = rest[3:]
                return Num(whole.value + top.value / bottom.value)
        return whole

    def _command(self, token: Token) -> Scalar:
        name = token.text
        if name in _RESTATED:
            raise Unreadable(f"unevaluated \\{name}")
        if name == "frac":
            return Op("div", (self._argument(), self._argument()))
        if name in ("binom", "dbinom", "tbinom"):
            return Op("binom", (self._argument(), self._argument()))
        if name == "permutations":  # from `counting`
            n, k = self._argument(), self._argument()
            rest = Op("add", (n, Op("neg", (k,))))
            return Op("div", (Op("factorial", (n,)), Op("factorial", (rest,))))
        if name in ("sqrt", "cbrt"):
            return self._root(name)
        if name in ("pi", "infty"):
            return Op("π" if name == "pi" else "∞")
        if name in ("max", "min"):
            listed = self._listed()
            if not any(symbols(value) for value in listed):
                raise Unreadable(f"unevaluated \\{name}")
            return Op(name, listed)
        if name in FUNCTIONS:
            return self._function(name)
        read = symbol_name([token, *self.tokens])
        if read is None:
            raise Unreadable(f"unsupported command \\{name}")
        letter, self.tokens = read
        return Sym(letter)

    def _root(self, name: str) -> Scalar:
        index: Scalar = Num(Fraction(3 if name == "cbrt" else 2))
        if self._name() == "[":
            index = scalar(self._inside(self._take()))
        return Op("root", (self._argument(whole_numbers=True), index))

    def _function(self, name: str) -> Scalar:
        base: Scalar | None = None
        power: Scalar | None = None
        while self._name() in ("^", "_"):
            if self._take().kind == "_":
                base = self._argument(whole_numbers=True)
            else:
                power = self._argument(whole_numbers=True)
        argument = self._function_argument()
        if name == "lg":
            name, base = "log", Num(Fraction(10))
        if power == Op("neg", (Num(Fraction(1)),)) and name in ("sin", "cos", "tan", "cot"):
            name, power = f"arc{name}", None
        node = Op(name, (argument,) if base is None else (argument, base))
        return node if power is None else Op("pow", (node, power))

    def _function_argument(self) -> Scalar:
        """A bracket, or the product up to the next function or sign: \\sin 2x."""
        if self._name() in ("(", "[", "{", "|"):
            return self._atom()
        node = self._signed()
        while self._starts_factor() and not self._ends_argument(node):
            node = Op("mul", (node, self._power()))
        if self._name() == "/" and isinstance(node, Num | Op) and len(self.tokens) > 1 and self.tokens[1].kind == "num":
            self._take()
            node = Op("div", (node, self._power()))
        return node

    def _ends_argument(self, argument: Scalar) -> bool:
        """Whether another factor begins: \\tan u \\ln v, \\tan u e^{u}, \\sin x (1 + x), but not \\sin \\pi (x+1)."""
        first = self.tokens[0]
        if first.kind == "cmd":
            return first.text in FUNCTIONS - {"sqrt"}
        if not symbols(argument) or not first.spaced:
            return False
        if first.kind == "(":
            inside = self.tokens[: matching(self.tokens, 0)]
            letters = symbols(argument)
            return any(t.text in letters or (t.kind == "cmd" and t.text in FUNCTIONS - {"sqrt"}) for t in inside)
        return first.text == "e" and self.tokens[1:2] != [] and self.tokens[1].kind == "^"

    def _listed(self) -> tuple[Scalar, ...]:
        opening = self._take()
        if opening.kind not in ("(", "\\{"):
            raise Unreadable("max or min without brackets")
        pieces: list[Tokens] = [[]]
        depth = 0
        for token in self._inside(opening):
            name = token.text if token.kind == "cmd" else token.kind
            depth += (name in OPENING) - (name in CLOSING)
            if token.kind == "," and depth == 0:
                pieces.append([])
            else:
                pieces[-1].append(token)
        return tuple(scalar(piece) for piece in pieces)

    def _argument(self, *, whole_numbers: bool = False) -> Scalar:
        """TeX's argument: a group or one token. whole_numbers: ^10 is meant as ^{10}."""
        token = self._take()
        if token.kind in ("{", "("):
            return scalar(self._inside(token))
        if token.kind == "num":
            if whole_numbers or len(token.text) == 1:
                return number(token.text)
            if not token.text.isdigit():
                raise Unreadable("a decimal where TeX takes one digit")
            self.tokens.insert(0, Token("num", token.text[1:], False))
            return number(token.text[0])
        if token.kind == "word" and not whole_numbers:
            self._return_letters(token)
            return _letter(self._take().text)
        self.tokens.insert(0, token)
        if token.kind in ("-", "+") and whole_numbers:
            return self._signed()
        return self._atom()

    def _inside(self, opening: Token) -> Tokens:
        """Take the tokens up to the bracket closing the one just taken, and that bracket."""
        end = matching([opening, *self.tokens], 0)
        if end < 0:
            raise Unreadable("an unclosed bracket")
        inside, self.tokens = self.tokens[: end - 1], self.tokens[end:]
        if not inside:
            raise Unreadable("empty brackets")
        return inside


def _letter(name: str) -> Scalar:
    if name == "e":
        return Op("e")
    return Op("i") if name == "i" else Sym(name)
