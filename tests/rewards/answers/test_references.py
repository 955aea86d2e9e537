"""Reference answers as datasets hold them: null, numbers of Python and NumPy, text with white space, empty text."""

import math

import numpy as np
import pytest

from rewards import accuracy, countdown, exact_match, judge, multiple_choice, reasoning_gym
from rewards.text import reference_text

NULLS = [None, math.nan, np.nan, np.float32("nan"), "", "  "]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (3.0, "3"),  # a column of integers with gaps
        (-3.5, "-3.5"),
        (" 3\n", "3"),
        (np.int64(3), "3"),
        (np.float64(3.0), "3"),
        (np.array(3), "3"),
        (["1", 2.0], "1, 2"),
        (np.array([1, 2]), "1, 2"),
        ("None", "None"),
        ([], None),
        (["1", None], None),
        (math.inf, None),
        *((null, None) for null in NULLS),
    ],
)
def test_a_reference_answer_as_text(value, text):
    assert reference_text(value) == text


@pytest.mark.parametrize("null", NULLS)
def test_no_completion_is_right_without_a_reference_answer(null):
    texts = [f"<answer>{said}</answer>" for said in ("None", "nan", "", "0", "A")]
    columns = [null] * 5
    assert exact_match([""] * 5, texts, columns) == [None] * 5
    assert accuracy([""] * 5, texts, columns) == [None] * 5
    assert multiple_choice([""] * 5, texts, columns) == [None] * 5
    assert multiple_choice([""] * 5, texts, columns, [["x", "y"]] * 5) == [None] * 5
    assert countdown([""] * 5, texts, [[1, 2]] * 5, columns) == [None] * 5
    assert countdown([""] * 5, texts, columns, [3] * 5) == [None] * 5
    assert judge(["q"] * 5, texts, columns, model="m", base_url="http://localhost:1") == [None] * 5
    pytest.importorskip("reasoning_gym")
    assert reasoning_gym([""] * 5, texts, columns, [{"source_dataset": "gcd"}] * 5) == [None] * 5
    for function, missing in ((exact_match, "answer"), (accuracy, "solution"), (multiple_choice, "answer")):
        assert function.check_columns({missing: null}) == "no reference answer"  # type: ignore[attr-defined]


@pytest.mark.parametrize("target", [26, "26", 26.0, " 26 ", np.int64(26), np.float32(26)])
@pytest.mark.parametrize("numbers", [[3, 8, 2], ["3", "8", "2"], [3.0, 8.0, 2.0], np.array([3, 8, 2]), (3, 8, 2)])
def test_countdown_reads_whole_numbers_in_any_type(target, numbers):
    assert countdown(["q"] * 2, ["<answer>8*3+2</answer>", "<answer>8*3-2</answer>"], [numbers] * 2, [target] * 2) == [
        1.0,
        0.0,
    ]


@pytest.mark.parametrize(
    ("numbers", "target"), [("[3, 8]", 24), ([], 0), ([3, "x"], 3), ([3, 8], "x"), ([1], 2.5), (3, 3)]
)
def test_countdown_without_whole_numbers_is_none(numbers, target):
    assert countdown(["q"], ["<answer>3*8</answer>"], [numbers], [target]) == [None]
    assert countdown.check_columns({"numbers": numbers, "target": target}) is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("reference", [2, 2.0, "2", np.int32(2), np.float64(2.0)])
def test_whole_numbers_match_in_any_type(reference):
    assert exact_match(["q"] * 2, ["<answer>2</answer>", "<answer>3</answer>"], [reference] * 2) == [1.0, 0.0]
    assert accuracy(["q"] * 2, ["<answer>2</answer>", "<answer>3</answer>"], [reference] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("reference", [1, 1.0, np.int64(1), np.float32(1), "B", "Rome"])
def test_an_options_index_may_have_any_type(reference):
    texts = ["<answer>B</answer>", "<answer>A</answer>"]
    assert multiple_choice(["q"] * 2, texts, [reference] * 2, [np.array(["Paris", "Rome"])] * 2) == [1.0, 0.0]


@pytest.mark.parametrize("choices", ["Paris, Rome", {"label": ["A"]}, ["Paris", None], 3])
def test_choices_of_another_form_yield_no_reward(choices):
    assert multiple_choice(["q"], ["<answer>A</answer>"], ["A"], [choices]) == [None]


def test_reasoning_gym_reads_number_references():
    pytest.importorskip("reasoning_gym")
    texts = ["<answer>12</answer>", "<answer>13</answer>"]
    columns = [{"source_dataset": "gcd"}] * 2
    assert reasoning_gym(["q"] * 2, texts, [12, 12.0], columns) == [1.0, 0.0]
