"""Sets, relations, families, residues, systems and functions by cases against literal near misses."""

import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise, product

import pytest

from rewards.answers.accuracy import _pool, verify
from rewards.answers.maths.comparing.regions.lattices import Lattice, same_points

EQUAL_SETS = [
    (r"x \ge 3 \text{ or } x = -5", r"\{-5\}\cup[3,\infty)"),
    (r"\{-5\}\cup[3,\infty)", r"x \ge 3 \text{ or } x = -5"),
    (r"(0,9) - \{4\}", r"(0,4)\cup(4,9)"),
    (r"(0,4)\cup(4,9)", r"(0,9) - \{4\}"),
    (r"(0,9) \setminus \{4\}", r"(0,4)\cup(4,9)"),
    (r"(0,4)\cup(4,9)", r"(0,9) \backslash \{4\}"),
    (r"[1,4]\cap(2,6)", "(2,4]"),
    ("(2,4]", r"[1,4]\cap(2,6)"),
    (r"2 \le |w| \le 5/2", r"2 \le |w| \le \frac52"),
    (r"[-5/2,-2]\cup[2,5/2]", r"2 \le |w| \le \frac52"),
    (r"2 \le |w| \le \frac52", r"[-5/2,-2]\cup[2,5/2]"),
    (r"\{-5\}\cup[3,\infty)", r"x = -5, x \ge 3"),
    (r"(0,9) - \{4\}", r"0<x<9, x \ne 4"),
    (r"(0,9) - \{4\}", r"0<x<9 \text{ and } x \ne 4"),
    (r"(0,9) \setminus \{4, 5\}", r"(0,4)\cup(4,5)\cup(5,9)"),
    (r"\mathbb{R} \setminus \{0\}", r"(-\infty,0)\cup(0,\infty)"),
    (r"\mathbb{R} - \{0\}", r"x \neq 0"),
    (r"\mathbb{R} - \{0, 1\}", r"x \neq 0, 1"),
    (r"\mathbb{Z} \setminus \{0\}", r"\mathbb{Z} - \{0\}"),
    (r"[1,4]\cap(2,6)", r"2<x\le 4"),
    (r"[1,4]\cap(2,6)", r"[1,4]\cap(2,6)"),
    (r"[1,1+\sqrt2]\cup[\sqrt{3+2\sqrt2},5]", "[1,5]"),
    (r"(a,b)\cup(b,c)", r"(b,c)\cup(a,b)"),
    ("|x| > 2", r"x<-2 \text{ or } x>2"),
    ("x > 2, x < 5", "(2,5)"),
    ("x < 2, x > 5", r"(-\infty,2) \cup (5,\infty)"),
    ("x>0, y>0", "y>0, x>0"),
    (r"\{1,2,3\}\setminus\{2\}", r"\{1,3\}"),
    (r"x \in (2,\infty)", "x > 2"),
    (r"S = (2,\infty)", "x > 2"),
    ("x > 2", r"S = (2,\infty)"),
]
UNEQUAL_SETS = [
    ("(2,4]", r"[1,4]\cap[2,6)"),
    (r"\{-5\}\cup[3,\infty)", r"x > 3 \text{ or } x = -5"),
    (r"\{-5\}\cup[3,\infty)", r"x \ge 3"),
    (r"\{-5\}\cup[3,\infty)", r"x \ge 3 \text{ or } y = -5"),
    (r"\{-5\}\cup[3,\infty)", r"x \ge 3 \text{ and } x = -5"),
    (r"x \ge 3 \text{ or } x = -5", r"y \ge 3 \text{ or } y = -5"),
    (r"(0,4)\cup(4,9)", r"[0,9) - \{4\}"),
    (r"(0,4)\cup(4,9)", r"(0,9) - \{4,5\}"),
    (r"(0,4)\cup(4,9)", "(0,9)"),
    (r"(0,9) - \{4\}", r"0<x<9 \text{ and } x \ne 5"),
    (r"\mathbb{R} - \{0, 1\}", r"x \neq 0"),
    (r"\mathbb{Z} \setminus \{0\}", r"\mathbb{R} - \{0\}"),
    ("(2,4]", r"[1,4)\cap(2,6)"),
    ("(2,4]", r"[1,4]\cup(2,6)"),
    (r"[2,\infty)", r"[2,\infty]"),
    (r"[1,1+\sqrt2)\cup(\sqrt{3+2\sqrt2},5]", "[1,5]"),
    (r"(a,b)\cup(b,c)", "(a,c)"),
    (r"2 \le |w| \le 5/2", r"2 < |w| \le 5/2"),
    (r"2 \le |w| \le 5/2", "[2,5/2]"),
    (r"2 \le |w| \le 5/2", r"2 \le w \le 5/2"),
    (r"2 \le |w| \le 5/2", r"2 \le |x| \le 5/2"),
    ("|x| > 2", "x>2"),
    (r"x \ne 2, x \ne 3", r"x \ne 4, x\ne 5"),
    ("x > 2, x < 5", "x>2, x<7"),
    ("x>0, y>0", "x>0"),
    (r"x<1 \text{ or } x>2", r"y<1 \text{ or } y>2"),
    (r"x \in (2,\infty)", "y > 2"),
    (r"x \in [1,2) \cup (2, 3]", r"t \in [1,2) \cup (2, 3]"),
]
EQUAL_FAMILIES = [
    ("(7+4k, 9-3k)", r"(7+4n, 9-3n), n \in \mathbb Z"),
    (r"(7+4n, 9-3n), n \in \mathbb Z", "(7+4k, 9-3k)"),
    ("(7+4k, 9-3k)", r"(7+4n, 9-3n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"(x,y)=(7-4t, 9+3t) \text{ for } t \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"(11+4n, 6-3n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"(7-4n, 9+3n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", "(7+4n, 9-3n)"),
    ("(7+4k, 9-3k)", r"(7+4n, 9-3n), n \in \mathbb{N}"),
    ("(7+4k, 9-3k)", r"\{(7+4k, 9-3k) : k \in \mathbb{Z}\}"),
    ("(7+4k, 9-3k)", r"\{(7+4k, 9-3k) \mid k \in \mathbb{Z}\}"),
    ("(7+4k, 9-3k)", r"x=7+4k, y=9-3k, k \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"x=7+4k, y=9-3k \text{ where } k \text{ is an integer}"),
    ("(7+4k, 9-3k)", r"(7+4k, 9-3k) \text{ for any integer } k"),
    ("(7+4k, 9-3k)", r"(x, y) = (7+4k, 9-3k) \text{ for integers } k"),
    ("(7+4k, 9-3k)", r"(7+4k, 9-3k) \ (k \in \mathbb{Z})"),
    (r"\frac{\pi}{6}+2k\pi, k\in\mathbb{Z}", r"\frac{\pi}{6}+2n\pi"),
    (r"\frac{\pi}{6}+2k\pi, k\in\mathbb{Z}", r"-\frac{11\pi}{6}+2n\pi, n \in \mathbb{Z}"),
    (r"\frac{k\pi}{2}, k\in\mathbb{Z}", r"k\pi, \frac{\pi}{2}+k\pi, k\in\mathbb{Z}"),
    (r"x = \frac{k\pi}{2}, k\in\mathbb{Z}", r"x = k\pi \text{ or } x = \frac{\pi}{2}+k\pi, k\in\mathbb{Z}"),
    (
        r"x = \pm\frac{\pi}{3} + 2k\pi, k\in\mathbb{Z}",
        r"x = \frac{\pi}{3} + 2k\pi \text{ or } x=\frac{5\pi}{3} + 2k\pi, k\in\mathbb{Z}",
    ),
    (r"30^\circ + 360^\circ k, k \in \mathbb{Z}", r"-330^\circ+360^\circ n, n\in\mathbb{Z}"),
    (r"(3+2a-b,a,b), a,b\in\mathbb{Z}", r"(3+2m+n,m,-n), m,n\in\mathbb{Z}"),
    (r"k^2, k\in\mathbb{Z}", r"n^2, n\in\mathbb{Z}"),
]
UNEQUAL_FAMILIES = [
    ("(7+4k, 9-3k)", r"(7+4n, 9+3n), n \in \mathbb Z"),
    ("(7+4k, 9-3k)", r"(7+8n, 9-6n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"(8+4n, 9-3n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", r"(9-3n, 7+4n), n \in \mathbb{Z}"),
    ("(7+4k, 9-3k)", "(7+4m, 9-3k)"),
    ("(7+4k, 9-3k)", "(7,9)"),
    ("(7+4k, 9-3k)", "(11+4k, 6-3k)"),
    (r"\frac{\pi}{6}+2k\pi, k\in\mathbb{Z}", r"\frac{\pi}{6}+k\pi, k\in\mathbb{Z}"),
    (r"x = \pm\frac{\pi}{3} + 2k\pi, k\in\mathbb{Z}", r"x = \frac{\pi}{3} + 2k\pi, k\in\mathbb{Z}"),
    (r"(3+2a-b,a,b), a,b\in\mathbb{Z}", r"(3+2m+n,m,n), m,n\in\mathbb{Z}"),
    (r"k^2, k\in\mathbb{Z}", r"n^2+1, n\in\mathbb{Z}"),
    ("2k+1", "2n+1"),
    ("2k+1", "2k-1"),
    (r"x=k+1 \text{ or } x=k-1", r"x=k+2 \text{ or } x=k"),
    (r"k\pi, k\in\mathbb{N}", r"k\pi, k\in\mathbb{Z}"),
]
EQUAL_SYSTEMS = [
    (r"\begin{cases} x = 1 \\ y = 2 \end{cases}", "(1,2)"),
    ("(1,2)", r"\begin{cases} x = 1 \\ y = 2 \end{cases}"),
    (r"\begin{cases} x+y=3 \\ x-y=1 \end{cases}", "(2,1)"),
    (r"\begin{cases} x+y=3 \\ x-y=1 \end{cases}", "x=2, y=1"),
    (r"\begin{cases} x+y=3 \\ z=1 \end{cases}", r"\begin{cases} z = 1 \\ 2x+2y = 6\end{cases}"),
    (r"\begin{cases} x+y=3 \\ z=1 \end{cases}", r"\begin{cases} x+y+z=4 \\ z=1 \end{cases}"),
    (r"\begin{cases} x = 1 \\ y = 2 \end{cases}", r"\begin{cases} y = 2 \\ x = 1 \end{cases}"),
    (r"\begin{cases} x > 1 \\ y < 2 \end{cases}", "y<2, x>1"),
    (r"\begin{cases} x > 1 \\ x < 2 \end{cases}", "(1,2)"),
    (r"\left\{\begin{array}{l} x = 1 \\ y = 2 \end{array}\right.", "(1,2)"),
    (r"\left\{\begin{aligned} x &= 1 \\ y &= 2 \end{aligned}\right.", "(1,2)"),
]
UNEQUAL_SYSTEMS = [
    (r"\begin{cases} x+y=3 \\ x-y=1 \end{cases}", "(1,2)"),
    ("(2,1)", r"\begin{cases} x+y=3 \\ x-y=1 \end{cases}"),
    (r"\begin{cases} x+y=3 \\ z=1 \end{cases}", r"\begin{cases} x+y+z=3 \\ z=1 \end{cases}"),
    (r"\begin{cases} x+y=3 \\ z=1 \end{cases}", "x+y=3"),
    (r"\begin{cases} x = 1 \\ y = 2 \end{cases}", r"\begin{cases} x = 2 \\ y = 1 \end{cases}"),
    (r"\begin{cases} x > 1 \\ y < 2 \end{cases}", "x>1"),
]
EQUAL_CASES = [
    (
        r"f(x) = \begin{cases} x^2 & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\begin{cases} -x & \text{if } x < 0 \\ x^2 & \text{if } x \ge 0 \end{cases}",
    ),
    (
        r"\begin{cases} x^2 & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\begin{cases} x^2 & x > 0 \\ -x & x \le 0 \end{cases}",
    ),
    (
        r"\begin{cases} x+1 & x \ge 0 \\ -x & \text{otherwise} \end{cases}",
        r"\begin{cases} 1+x, & \text{if } x \ge 0, \\ -x, & \text{if } x < 0. \end{cases}",
    ),
    (r"\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}", "|x|"),
    ("|x|", r"\begin{cases} x & x \ge 0 \\ -x & x < 0 \end{cases}"),
    ("|x-3|", r"\begin{cases} x-3 & x \ge 3 \\ 3-x & x < 3 \end{cases}"),
    (
        r"f(x)=\begin{cases} 0 & x = 0 \\ 1/x & x \ne 0 \end{cases}",
        r"f(t)=\begin{cases} 1/t & t \ne 0 \\ 0 & t=0 \end{cases}",
    ),
    (
        r"\begin{cases} n/2 & n \text{ even} \\ 3n+1 & n \text{ odd}\end{cases}",
        r"\begin{cases} 3n+1 & \text{if } n \text{ is odd} \\ \frac{n}{2} & \text{if } n \text{ is even}\end{cases}",
    ),
    (
        (
            r"\text{Solution set} = \begin{cases} \{x \mid x < a \text{ or } x > 1\}, & \text{when } a < 1 \\ "
            r"\{x \mid x \neq 1\}, & \text{when } a = 1 \\ "
            r"\{x \mid x < 1 \text{ or } x > a\}, & \text{when } a > 1 \end{cases}"
        ),
        r"(-\infty, \min(1, a)) \cup (\max(1, a), \infty)",
    ),
    (
        r"\begin{cases} 1 & x^2<1 \\ 2 & x^2 \ge 1 \end{cases}",
        r"\begin{cases} 1 & -1<x<1 \\ 2 & x \le -1 \text{ or } x\ge 1 \end{cases}",
    ),
    (r"\begin{cases} 1 & x^2<1 \\ 2 & x^2 \ge 1 \end{cases}", r"\begin{cases} 1 & |x|<1 \\ 2 & |x|\ge 1 \end{cases}"),
]
UNEQUAL_CASES = [
    (r"\begin{cases} x^2 & x \ge 0 \\ -x & x < 0 \end{cases}", r"\begin{cases} x^2 & x > 0 \\ -x & x < 0 \end{cases}"),
    (
        r"\begin{cases} x+1 & x \ge 0 \\ -x & x < 0 \end{cases}",
        r"\begin{cases} x+1 & x > 0 \\ -x & x \le 0 \end{cases}",
    ),
    (r"\begin{cases} x+1 & x \ge 0 \\ -x & x < 0 \end{cases}", r"\begin{cases} x+1 & x \ge 0 \\ x & x < 0 \end{cases}"),
    ("|x-3|", r"\begin{cases} x-3 & x \ge 3 \\ 3+x & x < 3 \end{cases}"),
    (r"f(x)=\begin{cases} 0 & x = 0 \\ 1/x & x \ne 0 \end{cases}", r"f(x)=\frac1x"),
    (
        r"\begin{cases} n/2 & n \text{ even} \\ 3n+1 & n \text{ odd}\end{cases}",
        r"\begin{cases} 3n+1 & \text{if } n \text{ is even} \\ \frac{n}{2} & \text{if } n \text{ is odd}\end{cases}",
    ),
    (
        (
            r"\text{Solution set} = \begin{cases} \{x \mid x < a \text{ or } x > 1\}, & \text{when } a < 1 \\ "
            r"\{x \mid x \neq 1\}, & \text{when } a = 1 \\ "
            r"\{x \mid x < 1 \text{ or } x > a\}, & \text{when } a > 1 \end{cases}"
        ),
        r"(-\infty, \min(2, a)) \cup (\max(2, a), \infty)",
    ),
    (r"\begin{cases} 1 & 0<x<1 \\ 2 & 1<x<2 \end{cases}", r"\begin{cases} 1 & 0<x<1 \\ 2 & 1\le x<2 \end{cases}"),
]
EQUAL_RESIDUES = [
    (r"n = 3k+1 \text{ or } n = 3k+2", "n=3k+1, n=3k+2"),
    (r"n = 3k+1 \text{ or } n = 3k+2", r"n \equiv 1, 2 \pmod 3"),
    (r"n = 3k+1 \text{ or } n = 3k+2", r"n \equiv 1 \text{ or } 2 \pmod{3}"),
    (r"n = 3k+1 \text{ or } n = 3k+2", r"\text{all } n \text{ with remainder 1 or 2 when divided by 3}"),
    (r"n = 3k+1 \text{ or } n = 3k+2", r"n \text{ not divisible by } 3"),
    (r"n = 3k+1 \text{ or } n = 3k+2", r"\text{all integers not divisible by 3}"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n=3k-1 \text{ or } n=3k-2"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \equiv \pm 1 \pmod{3}"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \equiv 1 \pmod 3 \text{ or } n \equiv 2 \pmod 3"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \not\equiv 0 \pmod 3"),
    (r"n=3k+1 \text{ or } n=3k+2", r"\text{n is not a multiple of 3}"),
    (r"n=3k+1 \text{ or } n=3k+2", r"\text{integers that leave a remainder of 1 or 2 when divided by 3}"),
    (r"n \text{ is odd}", r"n = 2k+1, k\in\mathbb{Z}"),
    (r"\text{all odd integers}", r"n = 2k+1, k\in\mathbb{Z}"),
    (r"n\equiv 1\pmod 4", "n = 4k+1"),
    (r"n\equiv 1\pmod 4", r"n = 4k-3, k\in\mathbb{Z}"),
    (r"n\equiv 1\pmod 4", r"1 \pmod 4"),
    (r"\text{odd}", r"\text{Odd}"),
]
UNEQUAL_RESIDUES = [
    (r"n = 3k+1 \text{ or } n = 3k+2", "n = 3k+1"),
    ("3k+1,3k-1", "3k-1,3k-2"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n=3k+1 \text{ or } n=3k"),
    (r"n=3k+1 \text{ or } n=3k+2", r"m=3k+1 \text{ or } m=3k+2"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \equiv 1 \pmod{3}"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \equiv 1,2 \pmod{4}"),
    (r"n=3k+1 \text{ or } n=3k+2", r"n \text{ is divisible by } 3"),
    (r"n=3k+1 \text{ or } n=3k+2", r"\text{integers that leave a remainder of 1 when divided by 3}"),
    (r"\text{all odd integers}", r"n = 2k, k\in\mathbb{Z}"),
    (r"n\equiv 1\pmod 4", "1"),
    (r"\text{odd}", r"\text{even}"),
]
EQUAL_UNSOLVED = [
    (r"x^2 - 5x + 6 \le 0", "[2,3]"),
    (r"\frac{x-1}{x+2} \ge 0", r"(-\infty,-2)\cup[1,\infty)"),
    ("|2x-1|<3", "(-1,2)"),
    (r"1<2x+3\le 7", "(-1,2]"),
    ("x^2<2", r"(-\sqrt2,\sqrt2)"),
]
UNEQUAL_UNSOLVED = [
    (r"x^2 - 5x + 6 \le 0", "(2,3)"),
    ("[2,3]", r"x^2 - 5x + 6 \le 0"),
    (r"\frac{x-1}{x+2} \ge 0", r"(-\infty,-2]\cup[1,\infty)"),
    (r"1<2x+3\le 7", "[-1,2]"),
]
EQUAL_MATRICES = [
    (
        r"\begin{pmatrix} 6 & 8 \\ 10 & 12 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} + \begin{pmatrix} 5 & 6 \\ 7 & 8 \end{pmatrix}",
    ),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + t\begin{pmatrix} 3 \\ 4 \end{pmatrix}", "(1+3t, 2+4t)"),
    (r"\begin{pmatrix} 2 \\ 4 \end{pmatrix}", r"2 \cdot \begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
]
UNEQUAL_MATRICES = [
    (
        r"\begin{pmatrix} 6 & 8 \\ 10 & 12 \end{pmatrix}",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} - \begin{pmatrix} 5 & 6 \\ 7 & 8 \end{pmatrix}",
    ),
    (r"\begin{pmatrix} 2 \\ 4 \end{pmatrix}", r"-2\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + t\begin{pmatrix} 3 \\ 4 \end{pmatrix}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + t\begin{pmatrix} 3 \\ 5 \end{pmatrix}",
    ),
    (
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix} + \begin{pmatrix} 0 \\ 0 \\ 0 \end{pmatrix}",
    ),
]


def right(pairs):
    """The pairs (reference answer, answer) judged right."""
    verdicts = verify([f"<answer>{answer}</answer>" for _, answer in pairs], [reference for reference, _ in pairs])
    assert None not in verdicts
    return [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict and verdict.outcome == "right"]


@pytest.mark.parametrize(
    "pairs",
    [EQUAL_SETS, EQUAL_UNSOLVED, EQUAL_FAMILIES, EQUAL_RESIDUES, EQUAL_SYSTEMS, EQUAL_CASES, EQUAL_MATRICES],
    ids=["sets", "unsolved", "families", "residues", "systems", "cases", "matrices"],
)
def test_other_forms_of_the_same_are_right(pairs):
    found = right(pairs)
    assert [pair for pair in pairs if pair not in found] == []


@pytest.mark.parametrize(
    "pairs",
    [
        UNEQUAL_SETS,
        UNEQUAL_UNSOLVED,
        UNEQUAL_FAMILIES,
        UNEQUAL_RESIDUES,
        UNEQUAL_SYSTEMS,
        UNEQUAL_CASES,
        UNEQUAL_MATRICES,
    ],
    ids=["sets", "unsolved", "families", "residues", "systems", "cases", "matrices"],
)
def test_near_misses_are_not_right(pairs):
    assert right(pairs) == []


def test_sympy_is_imported_only_for_what_it_decides():
    code = (
        "import sys; from rewards.answers.maths.equivalence import verify;"
        r"print(verify((r'(0,9) - \{4\}', r'(0,4) \cup (4,9)')), verify(('(1,2)', '(2,1)')), 'sympy' in sys.modules);"
        "print(verify(('x^2 < 4', '(-2,2)')), 'sympy' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ["('right', '') ('wrong', 'not equal') False", "('right', '') True"]


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("(x+1)^9 < 3", "(2, 3)"),
        ("x^8 - 7x^5 + 3x - 11 > 0", "(2, 3)"),
        (r"(7+4k, 9-3k), k \in \mathbb{Z}", r"((k+1)^8(n+1)^8(m+1)^8, 1), k \in \mathbb{Z}"),
        (r"n \equiv 1 \pmod{3}", rf"n \equiv 1 \pmod{{{10**300}}}"),
        (r"3k, k \in \mathbb{Z}", ", ".join(f"{p}k" for p in (97, 89, 83, 79, 73, 71, 67, 61)) + r", k \in \mathbb{Z}"),
        (r"(7+4k, 9-3k), k \in \mathbb{Z}", r"\begin{cases} \end{cases}"),
        (r"-8 \le 13 \le |z| \le 40", "(1, 2)"),
        (r"|x|", r"\begin{cases} x & x > 0 \\ 1 & \text{else} \\ 2 & \text{else} \end{cases}"),
        (r"|x|", r"\begin{cases} 1 & x^8 + x^7 < 3 \\ 2 & x > 9^{9^9} \end{cases}"),
        (r"|x|", r"\begin{cases} " + r" \\ ".join(f"{n} & x = {n}" for n in range(60)) + r" \end{cases}"),
    ],
)
def test_hostile_sets_and_conditions_are_not_right_and_kill_no_worker(reference, answer):
    assert right([("x^2 < 4", "(-2, 2)"), ("x^2 < 4", "(-2, 3)")]) == [("x^2 < 4", "(-2, 2)")]
    workers, started = set(_pool().pids()), time.process_time()
    assert right([(reference, answer)]) == []
    assert workers <= set(_pool().pids()) and time.process_time() - started < 1


def points(lattices):
    """Those with coordinates below 13, by counting."""
    found = set()
    for lattice in lattices:
        for factors in product(range(-30, 31), repeat=len(lattice.steps)):
            steps = list(zip(factors, lattice.steps, strict=True))
            point = tuple(lattice.offset.get(i, 0) + sum(k * step.get(i, 0) for k, step in steps) for i in range(2))
            if all(abs(entry) < 13 for entry in point):
                found.add(point)
    return found


def lattice(offset, *steps):
    return Lattice(
        {i: Fraction(n) for i, n in enumerate(offset)}, tuple({i: Fraction(n) for i, n in enumerate(s)} for s in steps)
    )


def test_lattices_are_equal_as_sets_of_points():
    steps = [(2, 0), (0, 2), (2, 2), (1, 1), (-2, -2), (4, -2)]
    lines = [[lattice(offset, step)] for offset in ((0, 0), (1, 1), (2, 2)) for step in steps]
    unions = [[*one, *other] for one, other in zip(lines, lines[5:], strict=False)]
    split = [[lattice((0, 0), (1, 1))], [lattice((1, 1), (2, 2)), lattice((0, 0), (2, 2)), lattice((3, 3))]]
    planes = [[lattice((0, 1), one, other)] for one, other in pairwise([*steps[:4], *steps[2:0:-1]])]
    for examples in ([*lines, *unions, *split], planes):
        counted = [points(example) for example in examples]
        for (one, mine), (other, theirs) in product(zip(examples, counted, strict=True), repeat=2):
            assert same_points(one, other) == (mine == theirs)
