"""A template that ends in an open `<think>`: the prefix belongs to the answer."""

from dataclasses import replace

import pytest

from grpo.evaluation.grading import build_grader
from rewards.models.judge import judge
from tests.rewards.runner.test_score import group, score_all

UNCLOSED = r"So it is \boxed{26}<answer>8*3+2</answer>"
CLOSED = r"So.</think><answer>8*3+2</answer>"
COLUMNS = {"solution": "26", "answer": "8*3+2", "numbers": [3, 8, 2], "target": 26, "metadata": None}


def prefilled(texts, prefix="<think>\n", **columns):
    return replace(group(texts, **columns), completion_prefix=prefix)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("accuracy", [0.0, 1.0]),
        ("countdown", [0.0, 1.0]),
        ("exact_match", [0.0, 1.0]),
        ("format", [0.0, 1.0]),
        ("language", [1.0, 1.0]),
    ],
)
def test_an_unclosed_thought_earns_nothing(function, expected, num_workers):
    texts = [UNCLOSED, CLOSED]
    columns = COLUMNS if function != "accuracy" else {"solution": "8*3+2"}
    (scored,) = score_all([{"function": function}], [prefilled(texts, **columns)], num_workers)
    assert scored.rewards == expected


def test_the_code_reward_and_the_length_rewards_read_the_prefix():
    block = "```python\nprint(6)\n```"
    tests = {"type": "stdin", "cases": [{"input": "", "output": "6\n"}]}
    specs = [
        {"function": "code"},
        {"function": "cosine_scaled", "options": {"max_len": 10**6, "correctness": "code"}},
        {"function": "multiple_choice"},
    ]
    texts = [block, f"</think>\n{block}\n<answer>B</answer>"]
    (scored,) = score_all(specs, [prefilled(texts, tests=tests, answer="B")])
    assert scored.breakdown["code"] == [0.0, 1.0]
    assert scored.breakdown["cosine_scaled"] == pytest.approx([-1.0, 1.0], abs=1e-6)
    assert scored.breakdown["multiple_choice"] == [0.0, 1.0]


def test_a_judge_is_not_asked_about_an_unclosed_thought():
    assert judge(["q"], [UNCLOSED], model="m", base_url="http://localhost:1", completion_prefix="<think>") == [0.0]


def test_the_prefix_is_not_added_twice_by_an_option():
    specs = [{"function": "format", "options": {"think_prefilled": True}}]
    assert score_all(specs, [prefilled([CLOSED])])[0].rewards == [1.0]
    assert score_all(specs, [group([CLOSED])])[0].rewards == [1.0]


def test_users_functions_see_completions_as_in_trl_and_the_prefix_if_they_name_it():
    seen = []

    def plain(prompts, completions, **kwargs):
        seen.append((completions, kwargs.get("completion_prefix")))
        return [0.0]

    def named(completions, completion_prefix, **kwargs):
        seen.append((completions, completion_prefix))
        return [0.0]

    score_all([{"function": plain}, {"function": named}], [prefilled(["a"])])
    assert seen == [(["a"], None), (["a"], "<think>\n")]


@pytest.mark.parametrize(("reward", "columns"), [("accuracy", {"solution": "26"}), ("exact_match", {"answer": "26"})])
def test_evaluation_reads_the_prefix(reward, columns):
    grader = build_grader(reward, {})
    texts = [r"<answer>26</answer>", "</think><answer>26</answer>"]
    try:
        (graded,) = grader.grade([prefilled(texts, **columns)])
    finally:
        grader.close()
    assert [verdict.reward for verdict in graded.verdicts] == [0.0, 1.0]
    assert [verdict.answer for verdict in graded.verdicts] == [None, "26"]
