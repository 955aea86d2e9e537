"""Letters in all common notations, options named by their text, hedges."""

import pytest

from rewards import multiple_choice

CITIES = ["London", "Paris", "Rome", "A city in Italy"]


def grade(answer, reference="B", choices=None):
    return multiple_choice(["q"], [f"<answer>{answer}</answer>"], [reference], None if choices is None else [choices])[
        0
    ]


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "[B]",
        "B.",
        "B)",
        "B:",
        " ( B ) ",
        "**B**",
        "$B$",
        r"\text{B}",
        r"\text{(B)}",
        r"\mathrm{B}",
        r"$\textbf{(B)}$",
        r"\boxed{B}",
        r"\boxed{\text{B}}",
        "Ｂ",
        "Option B",
        "option (B)",
        "Answer: B",
        "The answer is B.",
        "The correct answer is: (B)",
        "Choice B.",
        "B. Paris",
        "(B) Paris",
        "**B) Paris.**",
        "Option B: Paris",
        r"\textbf{(B)}\ \text{Paris}",
    ],
)
def test_every_notation_of_the_letter_is_right_with_and_without_choices(answer):
    assert grade(answer) == 1.0
    assert grade(answer, choices=CITIES) == 1.0
    assert grade(answer, reference="C", choices=CITIES) == 0.0


@pytest.mark.parametrize("answer", ["Paris", r"\text{Paris}", "**Paris**.", "Paris "])
def test_an_options_text_names_it(answer):
    assert grade(answer, choices=CITIES) == 1.0
    assert grade(answer) == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "B or C",
        "B, C",
        "(B) or (C)",
        "(B) and (C)",
        "B. or C.",
        "B) or C)",
        "B / C",
        "BC",
        "B) C",
        "not B",
        "A. or B",
        "B. C",
        "B: could be A",
        "I think B",
        "",
        "42",
        "(B" * 5000,
        "B" * 1001,
    ],
)
def test_hedged_and_unclear_answers_are_wrong(answer):
    assert grade(answer) == 0.0
    assert grade(answer, choices=CITIES) == 0.0


@pytest.mark.parametrize(
    "answer", ["B. Rome", "(B) London or Paris", "London, Paris", "E", "(E) Berlin", "London Paris"]
)
def test_a_letter_with_another_options_text_is_wrong(answer):
    assert grade(answer, choices=CITIES) == 0.0


def test_an_option_may_begin_with_an_article():
    assert grade("D. A city in Italy", reference="D", choices=CITIES) == 1.0
    assert grade("D. A city in Italy", reference="D") == 1.0


@pytest.mark.parametrize(
    ("reference", "choices"),
    [(1, CITIES), ("B", CITIES), ("(B)", None), ("Paris", CITIES), (1, None), ("b", None)],
)
def test_reference_answers_are_labels_indices_or_texts(reference, choices):
    assert grade("B", reference, choices) == 1.0
    assert grade("C", reference, choices) == 0.0


def test_arcs_own_labels_are_read():
    arc = {"text": CITIES, "label": ["1", "2", "3", "4"]}
    assert grade("(2)", "2", arc) == 1.0
    assert grade("2. Paris", "2", arc) == 1.0
    assert grade("B", "2", arc) == 0.0
    assert grade("Rome", "2", arc) == 0.0


@pytest.mark.parametrize("reference", ["Berlin", "E", 4, -1, 1.5, True])
def test_a_reference_answer_that_names_no_option_yields_no_reward(reference):
    assert grade("B", reference, CITIES) is None
    check = multiple_choice.check_columns  # type: ignore[attr-defined]
    assert check({"answer": reference, "choices": CITIES}) == f"the answer {str(reference)!r} names no option"
    assert check({"answer": "B", "choices": CITIES}) is None and check({"answer": 0}) is None


def test_the_answer_must_be_tagged_or_boxed():
    completions = ["B", "<think>(B)</think> so (B)", r"<think>A?</think> \boxed{B}", "<think><answer>B</answer>", ""]
    assert multiple_choice([""] * 5, completions, ["B"] * 5) == [0.0, 0.0, 1.0, 0.0, 0.0]
    messages = [[{"role": "assistant", "content": "<answer>B</answer>"}]]
    assert multiple_choice([[{"role": "user", "content": "q"}]], messages, ["B"]) == [1.0]
