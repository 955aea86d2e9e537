r"""Answers in prose: announced, explained, listed, denied."""

import time

import pytest

from rewards.answers.accuracy import verify
from rewards.text import final_answer, reference_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # undelimited LaTeX
        (r"The answer is \frac{3}{8}.", r"\frac{3}{8}"),
        (r"The answer is \sqrt{2}.", r"\sqrt{2}"),
        (r"The answer is \pi", r"\pi"),
        (r"So we get \frac{3}{8} as the probability here.", r"\frac{3}{8}"),
        (r"So we get 2\sqrt{\frac{3}{8}}, which was asked for in the text.", r"2\sqrt{\frac{3}{8}}"),
        # several values
        ("The answers are 4 and 7.", "4 and 7"),
        (r"The answers are \(4\) and \(7\).", "4, 7"),
        ("The answers are:\n- 4\n- 7", "4, 7"),
        ("The solutions are x = 4 and x = 7.", "4, 7"),
        ("So x is 4 or 7.", "4, 7"),
        ("The roots are 4, 5 and 7.", "4, 5, 7"),
        ("Hence we have in the end $5x = 30$, $x = 6$", "x = 6"),
        ("Hence we have in the end $x = 5$ or $x = 6$", "x = 5, x = 6"),
        ("The answer is $4$ or 7.", "4, 7"),
        ("The answer is $4$ or $7$ because of it.", "4, 7"),
        # reasons and conclusions
        ("The answer is 36, which is the sum.", "36"),
        ("36 because 30+6=36", "36"),
        ("$36$ because $30+6=36$", "$36$"),
        ("x is 5", "5"),
        ("The answer is 36 because 30+6=36.", "36"),
        ("The answer is 36, since 30 + 7 = 37.", "36"),
        ("The answer is 3/8 because 3 of 8 are red.", "3/8"),
        ("The answer is 3.5, as 7/2 = 3.5.", "3.5"),
        ("The answer is 36, so we are done.", "36"),
        ("The answer is B, since C fails.", "B"),
        ("x = 36 because y = 2", "x = 36"),
        ("The answer is the sum of 30 and 6, which is 36.", "36"),
        ("The answer to question 3 is 36, which is 6 squared.", "36"),
        ("The answer is 6 squared, which is 36.", "36"),
        ("The answer is 36, not 35.", "36"),
        ("It is 36, not 35.", "36"),
        # emphasis and markers
        ("18 + 23 = **41**", "18 + 23 = 41"),
        ("The answer is **36**, because it is.", "36"),
        ("**Final Answer**\n\n36", "36"),
        ("*36*", "36"),
        ("__36__", "36"),
        ("2**5 = 32", "2**5 = 32"),
        ("####: 64", "64"),
        ("####64", "64"),
        ("#### Answer: 64", "64"),
        ("#### The answer is 64.", "64"),
        ("#### **64**", "64"),
        ("#### Final Answer\n64", "64"),
        ("so they sold 12 750 apples in total today", "12 750"),
        ("In 2020 100 people were there, all in all", "100"),
    ],
)
def test_the_announced_value_is_found(text, expected):
    assert final_answer(text, "free_text") == expected


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (r"The answer is \frac{3}{8}.", "8"),
        (r"So we get \frac{3}{8} as the probability here.", "8"),
        ("The answers are 4 and 7.", "7"),
        ("The answers are 4 and 7.", "4"),
        ("The roots are 4 and 7.", "7"),
        ("So x is 4 or 7.", "7"),
        ("The answer is $4$ or 7.", "4"),
        ("The answer is $4$ or $7$ because of it.", "4"),
        (r"The answer is \(4\) or \(7\).", "4"),
        ("The answer is either 4 or 7.", "7"),
        ("The answers are:\n- 4\n- 7", "-4"),
        ("My answers: 4, 7", "7"),
        ("The answer is 36, which is wrong.", "36"),
        ("The answer is 36 if n is even, otherwise 35.", "36"),
        ("The answer isn't 36.", "36"),
        ("The answer is not 36.", "36"),
        ("The answer is $36$ or more.", "36"),
        ("The answer is 36, since 30 + 7 = 37.", "37"),
        ("The answer is 36, so x is 6.", "36"),
        ("The answer to question 3 is 36, which is 6 squared.", "6"),
        ("It is 36, not 35.", "35"),
        ("The answer is B or C because.", "B"),
        ("18 + 23 = **42**", "41"),
        ("####: 64", "65"),
        ("so they sold 12 750 apples in total today", "750"),
    ],
)
def test_no_other_value_in_the_text_is_right(text, reference):
    [verdict] = verify([text], [reference], answer_in="free_text")
    assert verdict is not None and verdict.outcome != "right"


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("The answer is (B) 420.", r"\textbf{(B) } 420"),
        ("The answers are 4 and 7.", "7, 4"),
        ("The solutions are x = 4 and x = 7.", r"\{4, 7\}"),
        ("18 + 23 = **41**", "41"),
        ("The answer is 12 750.", "12750"),
    ],
)
def test_answers_in_prose_are_compared_as_mathematics(text, reference):
    [verdict] = verify([text], [reference], answer_in="free_text")
    assert verdict is not None and verdict.outcome == "right"


def test_a_reference_solution_may_have_a_colon_after_its_marker():
    assert [reference_answer(text) for text in ("a\n#### 1,800", "a\n####: 64", "a\n#### **64**")] == [
        "1,800",
        "64",
        "64",
    ]


def test_hostile_prose_is_searched_fast():
    pieces = [
        "36,",
        "answer is ",
        "1 000 ",
        "1, ",
        "1 or ",
        r"\frac{",
        "{" * 50,
        "**",
        "- 4\n",
        "not 3 ",
        "$1",
        "####",
        "  ",
        "\n",
        "\n ",
        "Answer\n",
    ]
    started = time.process_time()
    for piece in pieces:
        final_answer(piece * (200_000 // len(piece)), "free_text")
        final_answer("the answer is " + piece * (200_000 // len(piece)) + " 7", "free_text")
        final_answer("####The" + piece * (200_000 // len(piece)) + "x", "free_text")
    assert time.process_time() - started < 20
