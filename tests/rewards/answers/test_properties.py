"""The mathematical verifier on pairs known by construction, hostile answers, and labelled sets.

A small part of `python -m benchmarks.verifier`; docs/results/verifiers.md has the full results.
"""

from fractions import Fraction
from pathlib import Path
from random import Random

import psutil
import pytest

from benchmarks.verifier import fuzz, properties
from benchmarks.verifier.grading import is_right, outcome
from benchmarks.verifier.pairs import writing
from benchmarks.verifier.sets import labelled
from rewards.answers.accuracy import verify

DATA = Path(__file__).parents[4] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="needs the labelled sets in ../shared/data")


@pytest.fixture(scope="module")
def pairs():
    return properties.make_pairs(2000, seed=11)


def test_values_are_written_correctly():
    assert writing.decimal(Fraction(-3, 8)) == "-0.375"
    assert writing.decimal(Fraction(1200)) == "1200"
    assert writing.rounded(Fraction(2, 3), 3) == "0.667"
    assert writing.rounded(Fraction(-1, 8), 2) == "-0.12"
    assert writing.total(["2x", "-3", "y"]) == "2x - 3 + y"
    assert writing.mixed(Random(0), Fraction(-7, 2)).replace("d", "").replace("t", "").replace(" ", "") in (
        r"-3\frac{1}{2}",
        r"-3\,\frac{1}{2}",
    )
    assert writing.scientific(Random(1), Fraction(3, 2000)).startswith("1.5")


def test_constructed_pairs_are_graded_correctly(pairs):
    _, wrong = properties.constructed(pairs)
    assert [(p.kind, p.why, p.reference, p.completion, p.equal, said) for p, said in wrong] == []
    assert sum(p.equal for p in pairs) > 800 and sum(not p.equal for p in pairs) > 800


def test_reference_and_answer_can_be_swapped(pairs):
    count, changed = properties.symmetric(pairs[:1000])
    assert count > 500
    assert [(p.kind, p.reference, p.answer, said) for p, said in changed] == []


def test_hostile_answers_neither_crash_nor_grow_the_process():
    rng = Random(5)
    references = ["42", r"\frac{3}{4}", "x^2+1", r"\{1,2\}", "[0,1)", r"\text{Evelyn}", "2^{64}"]
    answers = fuzz.answers(rng, references, 3000)
    verify([r"\boxed{x+1}"] * 2, ["1+x", "2+x"])
    before = psutil.Process().memory_info().rss
    verdicts = verify(
        [fuzz.completion(rng, answer) for _, answer in answers], [rng.choice(references) for _ in answers]
    )
    assert psutil.Process().memory_info().rss - before < 60e6
    bombs = [outcome(v) for (kind, _), v in zip(answers, verdicts, strict=True) if kind == "bomb"]
    assert len(bombs) > 10 and "right" not in bombs
    assert [is_right(v) for v in verify([r"\boxed{\frac{6}{8}}", r"\boxed{1+x^2}"], references[1:3])] == [True, True]


@needs_data
def test_verdicts_agree_with_labels_after_rulings():
    rows, rulings = labelled.read(DATA / "verifier"), labelled.read_rulings()
    assert set(rulings) <= {(row.set, row.row) for row in rows}
    truths = [labelled.truth(row, rulings) for row in rows]
    graded = list(zip(rows, truths, map(is_right, labelled.verify_all(rows)), strict=True))
    kept = [(row, true, right) for row, true, right in graded if true is not None]
    assert [row.row for row, true, right in kept if row.set == "adversarial_math" and right != true] == []
    hard = [(true, right) for row, true, right in kept if row.set == "hardverify_math"]
    assert [right for true, right in hard if not true and right] == []
    assert sum(right for true, right in hard if true) / sum(true for true, _ in hard) >= 0.85
    others = [(row, true, right) for row, true, right in kept if row.set != "hardverify_math"]
    differing = [(row.set, row.row) for row, true, right in others if true != right]
    assert len(differing) <= 0.01 * len(others), differing


@needs_data
def test_restyled_reference_answers_of_math_equal_themselves():
    references = Random(3).sample(properties.real_references(DATA), 700)
    _, not_equal = properties.reflexive(references, seed=3)
    assert not_equal == []


@needs_data
def test_a_reference_answer_with_one_digit_changed_is_wrong():
    references = Random(4).sample(properties.real_references(DATA), 700)
    _, still_equal = properties.digit_changed(references, seed=4)
    assert still_equal == []
