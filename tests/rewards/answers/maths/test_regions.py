"""Sets, relations, systems, cases and families against other ways to write them, and near misses that are not paid."""

import pytest

from rewards.answers.accuracy import verify

PAIRS = r"""
right | x \ge 3 \text{ or } x = -5 | \{-5\}\cup[3,\infty)
right | \{-5\}\cup[3,\infty) | x \ge 3 \text{ or } x = -5
wrong | \{-5\}\cup[3,\infty) | x > 3 \text{ or } x = -5
wrong | \{-5\}\cup[3,\infty) | x \ge 3
wrong | \{-5\}\cup[3,\infty) | x \ge 3 \text{ or } x = 5
right | (0,4)\cup(4,9) | (0,9) - \{4\}
right | (0,4)\cup(4,9) | (0,9) \setminus \{4\}
wrong | (0,4)\cup(4,9) | (0,9) \setminus \{5\}
wrong | (0,4)\cup(4,9) | (0,9)
wrong | (0,4)\cup(4,9) | (0,9] \setminus \{4\}
right | (2,4] | [1,4]\cap(2,6)
wrong | [2,4] | [1,4]\cap(2,6)
wrong | (2,4] | [1,4]\cup(2,6)
right | 2 \le |w| \le 5/2 | 2 \le |w| \le \frac52
right | 2 \le |w| \le 5/2 | [-5/2,-2]\cup[2,5/2]
right | [-5/2,-2]\cup[2,5/2] | 2 \le |w| \le 5/2
wrong | 2 \le |w| \le 5/2 | 2 \le |w| < \frac52
wrong | 2 \le |w| \le 5/2 | 2 \le w \le 5/2
right | (7+4k, 9-3k) | (7+4n, 9-3n), n \in \mathbb Z
right | (7+4n, 9-3n), n \in \mathbb Z | (11+4k, 6-3k), k\in\mathbb{Z}
right | (7+4n, 9-3n), n \in \mathbb Z | (7-4k, 9+3k), k\in\mathbb{Z}
wrong | (7+4n, 9-3n), n \in \mathbb Z | (7+4k, 9+3k), k\in\mathbb{Z}
wrong | (7+4n, 9-3n), n \in \mathbb Z | (7+8k, 9-6k), k\in\mathbb{Z}
wrong | (7+4n, 9-3n), n \in \mathbb Z | (7, 9)
right | \frac{\pi}{6}+2k\pi, k\in\mathbb Z | \frac{\pi}{6}+2\pi n
wrong | \frac{\pi}{6}+2k\pi, k\in\mathbb Z | \frac{\pi}{6}+\pi n
right | \begin{cases} x=1 \\ y=2\end{cases} | (1,2)
right | \begin{cases} x=1 \\ y=2\end{cases} | x=1, y=2
wrong | \begin{cases} x=1 \\ y=2\end{cases} | x=2, y=1
wrong | \begin{cases} x=1 \\ y=2\end{cases} | (2,1)
right | f(x)=\begin{cases} x & x\ge 0\\ -x & x<0\end{cases} | |x|
wrong | f(x)=\begin{cases} x & x\ge 0\\ -x & x<0\end{cases} | x
right | \begin{cases} x & \text{if } x\ge 0\\ 1 & \text{if } x<0\end{cases} | \begin{cases} 1&x<0\\x&x\ge 0\end{cases}
wrong | \begin{cases} x & x\ge 0\\ -x & x<0\end{cases} | \begin{cases} -x & x<0\\ 2x & x\ge 0\end{cases}
right | \begin{cases} x^2 & x\ge 1\\ 0 & \text{otherwise}\end{cases} | \begin{cases} 0 & x<1\\ x^2 & x\ge 1\end{cases}
wrong | \begin{cases} x^2 & x\ge 1\\ 0 & \text{otherwise}\end{cases} | \begin{cases} 0 & x\le 1\\ x^2 & x>1\end{cases}
right | n = 3k+1 \text{ or } n = 3k+2 | n \text{ is not divisible by } 3
right | n = 3k+1 \text{ or } n = 3k+2 | n\equiv 1, 2 \pmod 3
right | n = 3k+1 \text{ or } n = 3k+2 | n = 3m+2 \text{ or } n = 3m+1
wrong | n = 3k+1 \text{ or } n = 3k+2 | n\equiv 1\pmod 3
wrong | n = 3k+1 \text{ or } n = 3k+2 | n = 3k+1
wrong | n = 3k+1 \text{ or } n = 3k+2 | n \text{ is divisible by } 3
wrong | (4,4) | \emptyset
right | x \ge 3 | [3,\infty)
wrong | x \ge 3 | (3,\infty)
right | x^2 < 4 | (-2,2)
wrong | x^2 < 4 | (-2,2]
right | \emptyset | \{\}
"""


@pytest.mark.parametrize("line", PAIRS.strip().splitlines())
def test_a_set_is_read_and_its_near_misses_are_not_paid(line: str) -> None:
    expected, reference, answer = (part.strip() for part in line.split(" | ", 2))
    [verdict] = verify([rf"The answer is \boxed{{{answer}}}."], [f"${reference}$"])
    assert verdict is not None, "the reference answer is unreadable"
    assert (verdict.outcome == "right") == (expected == "right"), verdict
