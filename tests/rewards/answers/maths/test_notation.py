"""Values in the notations of other countries, textbooks and programs, each with near misses that must not be paid."""

import time
from pathlib import Path

import pytest

from rewards.answers.accuracy import check_reference, verify

PAIRS = Path(__file__).with_name("notations.txt")


def notations() -> dict[str, list[tuple[str, str, bool]]]:
    """(reference answer, answer, whether it is right), by notation."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for line in PAIRS.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            found[line[2:]] = pairs = []
        elif line:
            label, reference, answer = line.split(" | ")
            pairs.append((reference, answer, label == "right"))
    return found


@pytest.mark.parametrize("notation", notations())
def test_a_notation_is_read_and_its_near_misses_are_not_paid(notation):
    pairs = notations()[notation]
    verdicts = verify(
        [f"<answer>{answer}</answer>" for _, answer, _ in pairs], [reference for reference, _, _ in pairs]
    )
    paid = [verdict is not None and verdict.outcome == "right" for verdict in verdicts]
    assert [pair for pair, is_paid in zip(pairs, paid, strict=True) if is_paid != pair[2]] == []
    assert len(set(paid)) == 2


def test_a_product_of_functions_is_a_readable_reference_answer():
    assert check_reference(r"\frac13\tan u\,\ln(\sin u)\,e^{-\csc^2 u}") is None


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (r"1+2+\cdots+100", r"unevaluated \ldots"),
        (r"1+3+\cdots", "dots after less than two terms"),
        (r"1+5+7+\cdots+n", "dots without a pattern"),
        ("5不对", "'不对' inside an expression"),
        (r"0.6 \text{ repeating}", "qualified by 'repeating'"),
    ],
)
def test_an_answer_that_is_not_read_says_why(answer, reason):
    [verdict] = verify([rf"\boxed{{{answer}}}"], ["5050"])
    assert verdict is not None and (verdict.outcome, verdict.reason) == ("unverifiable", reason)


@pytest.mark.parametrize(
    "answer",
    [
        "1+2+\\cdots+10^{100}",
        "1^{9^9}+2^{9^9}+\\cdots+900^{9^9}",
        "(1+2+\\cdots+900)(1+2+\\cdots+900)" * 15,
        "1!+2!+\\cdots+900!",
        "C_{100000000}^{50000000}",
        "{}_{99999999}P_{99999}",
        "0.(" + "7" * 300 + ")",
        "0.\\dot{1}" + "2" * 300 + "\\dot3",
        "3^{99} \\pmod{7^{7^{7^7}}}",
        "{1 \\over " * 35 + "2" + "}" * 35,
        "one million " * 60,
        "九" * 900,
        "2 trillion " * 50,
        "\\\\frac" * 140,
        "<sup>" * 180,
    ],
)
def test_hostile_notations_are_refused_fast(answer):
    verify([r"\boxed{x+1}"], ["1+x"])
    started = time.process_time()
    [verdict] = verify([f"<answer>{answer}</answer>"], [r"1+2+\cdots+n"])
    assert verdict is not None and not verdict.reward and verdict.reason not in ("", "too slow")
    assert time.process_time() - started < 1.0
