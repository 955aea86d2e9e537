"""Answers no grader may choke on: LaTeX from a grammar, raw characters, mutated real answers, bombs."""

import sys
from collections.abc import Sequence
from random import Random


def _each(text: str) -> list[str]:
    return text.split()


_LEAVES = _each(r"0 1 2 7 13 -3 0.5 1,000 x y n \pi e i \infty \theta a_1 \text{cm} % \% A ∞ ½ ٣ ²")
_ONE = _each(r"""
\frac{{{}}}{{2}} \sqrt{{{}}} \sqrt[3]{{{}}} ({}) |{}| \left({}\right) -{} {}^2 {}^{{-1}} \sin{{{}}} \ln({}) {}^\circ
\lfloor{{{}}}\rfloor \text{{{}}} x={} \{{{}\}} [{}] {}! \overline{{{}}} \{} ${}$ \boxed{{{}}} \lim_{{x\to0}}{{{}}}
{}' \vec{{{}}} \pm{{{}}}
""")
_TWO = _each(r"""
{}+{} {}-{} {}\cdot{{{}}} {}\times{{{}}} {}/{} \frac{{{}}}{{{}}} {}^{{{}}} {}_{{{}}} ({},{}) [{},{}) {},{} {}={}
{}\le{{{}}} {}<{} {}\cup{{{}}} \binom{{{}}}{{{}}} \log_{{{}}}{{{}}} \int_{{{}}}^{{{}}}x\,dx \sum_{{k={}}}^{{{}}}k
{}\text{{or}}{} {}:{} {}\equiv{{{}}} \begin{{pmatrix}}{}\\{}\end{{pmatrix}} {}&{} {}{} {}\in{{{}}} {}\mid{{{}}}
\begin{{cases}}{}\\{}\end{{cases}} {{{}\over{}}} {{{}\choose{}}} C_{{{}}}^{{{}}} {}\pmod{{{}}}
{}+2+\cdots+{} 1\cdot{}\cdots{{{}}}
""")
_PIECES = [
    *_each(r"""
{ } \ $ ^ _ ( ) [ ] | & ~ # % ٣ １ ＋ − 🙂 \frac \left \right \begin{matrix} \end{ \boxed{ </think> <think> <answer>
</answer> \text \def\x{\x} __import__('os').system('true') lambda:0 nan oo zoo I E S None 1e999 0x10 1/0
"""),
    "\0",
    "\n",
    "\u202e",
    "\ufeff",
    "\ud800",
]


def grammar(rng: Random, depth: int = 4) -> str:
    kind = rng.random()
    if depth == 0 or kind < 0.2:
        return rng.choice(_LEAVES)
    if kind < 0.5:
        return rng.choice(_ONE).format(grammar(rng, depth - 1))
    return rng.choice(_TWO).format(grammar(rng, depth - 1), grammar(rng, depth - 1))


def raw(rng: Random) -> str:
    length = rng.choice([0, 1, 3, 10, 50, 400])
    if rng.random() < 0.5:
        return "".join(rng.choice(_PIECES) for _ in range(min(length, 60)))
    top = rng.choice([128, 256, 0x3000, sys.maxunicode])
    return "".join(chr(rng.randint(0, top)) for _ in range(length))


def mutated(rng: Random, answers: Sequence[str]) -> str:
    text = rng.choice(answers)
    for _ in range(rng.randint(1, 4)):
        i, j = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
        change = rng.randrange(6)
        if change == 0:
            text = text[:i] + text[j:]
        elif change == 1:
            text = text[:j] + text[i:j] * rng.randint(1, 5) + text[j:]
        elif change == 2:
            text = text[:i] + rng.choice(_PIECES) + text[i:]
        elif change == 3:
            text = text[:i] + rng.choice(answers) + text[j:]
        elif change == 4:
            text = text[:i] + text[i:j][::-1] + text[j:]
        else:
            text = rng.choice(_ONE).format(text)
    return text


def bomb(rng: Random) -> str:
    """An answer that is expensive to compute or parse."""
    n, m = rng.randint(3, 9), 10 ** rng.randint(4, 9)
    letters = "".join(rng.sample("abcdxyz", 4))
    bombs = [
        "9^{9^{9^{9}}}",
        "10^{10^{10}}",
        f"{n}^{{{n}^{{{n}^{{{n}}}}}}}",
        f"2^{{2^{{{rng.randint(25, 40)}}}}}",
        "2^{4^{8^{16}}}",
        f"{n}^{{{m}}}",
        f"({m})!",
        f"{m}!",
        f"{n}!!!!!!",
        f"(({n}!)!)!",
        rf"\binom{{{m}}}{{{m // 3}}}",
        rf"\sum_{{k=1}}^{{{m}}} k^{{{n}}}",
        rf"\prod_{{k=1}}^{{{m}}} k",
        rf"\int_0^{{{m}}} x^{{x^x}}\,dx",
        "7" * m if m <= 10**6 else "7" * 10**6,
        f"0.{'3' * 10**5}",
        "(" * rng.choice([50, 500, 2000, 10**5]),
        "(" * 2000 + "1" + ")" * 2000,
        "{" * 3000 + "1" + "}" * 3000,
        r"\frac{1}{" * 500 + "1" + "}" * 500,
        r"\sqrt{" * 400 + "2" + "}" * 400,
        r"\left(" * 1000,
        r"\boxed{1}" * 3000,
        "1+" * 50000 + "1",
        "x^" * 2000 + "x",
        "-" * 30000 + "1",
        f"(x+1)^{{{m}}}",
        f"({'+'.join(letters)})^{{{rng.randint(30, 300)}}}",
        f"(x+y)^{{{rng.randint(100, 999)}}} - (x-y)^{{{rng.randint(100, 999)}}}",
        r"\sin(" * 60 + "x" + ")" * 60,
        rf"\frac{{x^{{{m}}}-1}}{{x-1}}",
        "+".join(rf"\sqrt{{{k}}}" for k in range(2, 2 + rng.randint(10, 120))),
        "+".join(rf"\frac{{1}}{{x+{k}}}" for k in range(rng.randint(20, 90))),
        "".join(f"(x_{{{k}}}+1)" for k in range(rng.randint(10, 80))),
        rf"\begin{{pmatrix}}{' & '.join('1' for _ in range(rng.randint(50, 400)))}\end{{pmatrix}}",
        r"1\\" * 20000,
        ",".join(map(str, range(rng.randint(200, 5000)))),
        rf"\{{{','.join('1' for _ in range(20000))}\}}",
        rf"\log_{{10^{{-{m}}}}} {m}!",
        f"10^{{-{m}}}",
        rf"\gcd({n}^{{{m}}}, {m}!)",
        f"{m}_{{{m}}}",
        f"x^{{{m}}}+y^{{{m}}}=z^{{{m}}}",
        rf"\sqrt[{m}]{{{m}!}}",
        rf"\tan(10^{{{m}}})",
        f"1e{m}",
        rf"1.5 \times 10^{{{m}}}",
        f"{n}^{{-{m}}}",
        r"\pm" * 40 + "1",
        " \\pm ".join("12345"),
        rf"\left(1+\frac{{1}}{{{m}}}\right)^{{{m}}}",
        rf"{m}\frac{{{m}}}{{{m}}}" * 200,
        "i^{i^{i^{i^{i^i}}}}",
        r"\lfloor 10^{10^{10}} \rfloor",
        rf"\frac{{{n}^{{{m}}}}}{{{n}^{{{m}}}}}",
        r"\underbrace{" * 300,
        rf"1+2+\cdots+{m}",
        rf"1 \cdot 2 \cdots {n}^{{{m}}}",
        rf"1^{{{m}}}+2^{{{m}}}+\cdots+999^{{{m}}}",
        r"(1!+2!+\cdots+900!)" * 40,
        rf"C_{{{m}}}^{{{m // 2}}}",
        rf"{{}}_{{{m}}}P_{{{m // 3}}}",
        rf"{n} \pmod{{{n}^{{{m}}}}}",
        f"0.({'142857' * 60})",
        r"{1 \over " * 300 + "2" + "}" * 300,
        "one million " * 80,
        "九千万" * 300,
        r"\\frac" * 140,
        "0.\\overline{" + "142857" * 300 + "}",
    ]
    return rng.choice(bombs)
