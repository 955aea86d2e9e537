"""Built-in rewards on literal completions, including hostile ones."""

import time

import pytest

from rewards import answer_text, countdown, exact_match, format, random_reward

TEN_MB = 10_000_000


def wrap(answer):
    return f"<think>1+1</think><answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>6*7</think><answer> 42\n</answer>", "42"),
        ("6*7</think> <answer>42</answer>", "42"),  # the template pre-filled <think>
        ("<answer>42</answer>", "42"),
        ("<answer>41</answer> no, <answer>42</answer>", "42"),
        ("<answer></answer>", ""),
        ("42", None),
        ("", None),
        ("<answer>42", None),
        ("<answer>42</answer> or <answer>43", None),
        ("</answer>42<answer>", None),
        ("<think><answer>42</answer>", None),
        ("<think><answer>42</answer></think>", None),
        ("<answer>42</answer><think>", None),
        ("<answer>42</answer></think>", None),
    ],
)
def test_the_answer_is_the_last_closed_tag_after_thinking(completion, expected):
    assert answer_text(completion) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("8*3+2", 1.0),
        (" ( 8 * 3 ) + 2 ", 1.0),
        ("2+3*8", 1.0),
        ("8*3-2", 0.0),  # 22
        ("8*3+2=26", 0.0),
        ("26", 0.0),
        ("8*3+2+0", 0.0),
        ("8*3+1+1", 0.0),
        ("8+8+8+2", 0.0),
        ("83+2", 0.0),
        ("24+2", 0.0),
        ("--8*3+2", 0.0),
        ("+8*3+2", 0.0),
        ("8*3+(2)", 1.0),
        ("8**3+2", 0.0),
        ("8*3//2", 0.0),
        ("8/(3-3)+2", 0.0),
        ("8(3)+2", 0.0),
        ("08*3+2", 0.0),
        ("8_0*3+2", 0.0),
        ("٨*3+2", 0.0),  # Arabic eight
        ("８*3+2", 0.0),  # full-width eight
        ("8*3+2 # 26", 0.0),
        ("8*3+2\n", 1.0),
        ("8*3\n+2", 0.0),
        ("__import__('os').getpid()", 0.0),
        ("9**9**9", 0.0),
        ("9*9" * TEN_MB, 0.0),
        ("(" * 5000 + "8*3+2" + ")" * 5000, 0.0),
        ("(" * 90 + "8*3+2" + ")" * 90, 1.0),
        ("(" * 97 + "8*3+2", 0.0),
        ("-" * 199 + "8", 0.0),
        ("", 0.0),
        ("()", 0.0),
    ],
)
def test_countdown_requires_every_number_once_and_the_target(answer, expected):
    assert countdown(["use 3,8,2 make 26"], [wrap(answer)], [[3, 8, 2]], [26]) == [expected]


def test_countdown_divides_exactly():
    answers = ["8/(3-8/3)", "8/3*3"]
    assert countdown([""] * 2, [wrap(a) for a in answers], [[8, 3, 8, 3], [8, 3, 3]], [24, 8]) == [1.0, 1.0]


def test_countdown_rejects_a_division_by_zero():
    assert countdown([""], [wrap("0*(1/0)")], [[0, 1, 0]], [0]) == [0.0]


def test_exact_match_compares_only_the_answer():
    completions = [wrap(" 4 "), wrap("04"), "4", wrap("4.0"), "<think>4</think>", wrap("٤")]
    assert exact_match([""] * 6, completions, ["4"] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert exact_match([""], [wrap("4")], [4]) == [1.0]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>\nb\n</answer>\n", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("a</think><answer>b</answer>", 0.0),
        ("<think>a</think>b", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b</answer> so b", 0.0),
        ("Well: <think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think> hence <answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>b</answer></answer>", 0.0),
        ("< think>a</think><answer>b</answer>", 0.0),
        ("<THINK>a</THINK><ANSWER>b</ANSWER>", 0.0),
        ("", 0.0),
    ],
)
def test_format_requires_each_tag_once_in_order_and_nothing_outside(completion, expected):
    assert format([""], [completion]) == [expected]


def test_format_allows_a_prefilled_think_tag():
    completions = ["a</think><answer>b</answer>", "<think>a</think><answer>b</answer>"]
    assert format([""] * 2, completions, think_prefilled=True) == [1.0, 0.0]


def test_message_lists_are_graded_by_their_text():
    completions = [[{"role": "assistant", "content": wrap("8*3+2")}]]
    prompts = [[{"role": "user", "content": "use 3,8,2 make 26"}]]
    assert countdown(prompts, completions, [[3, 8, 2]], [26]) == [1.0]
    assert format(prompts, completions) == [1.0]
    assert exact_match(prompts, completions, ["8*3+2"]) == [1.0]


def test_ten_megabytes_are_graded_in_seconds():
    texts = ["<answer>" * (TEN_MB // 8), "</think>" * (TEN_MB // 8), "x" * TEN_MB, "\ud800" * 1000]
    started = time.process_time()
    assert countdown([""] * 4, texts, [[1]] * 4, [1] * 4) == [0.0] * 4
    assert exact_match([""] * 4, texts, ["1"] * 4) == [0.0] * 4
    assert format([""] * 4, texts) == [0.0] * 4
    assert set(random_reward([""] * 4, texts)) <= {0.0, 1.0}
    assert time.process_time() - started < 10


def test_random_reward_has_rate_p_and_is_reproducible():
    completions = [str(i % 10) for i in range(4000)]
    rewards = random_reward(["q"] * 4000, completions, p=0.25, seed=7)
    assert rewards == random_reward(["q"] * 4000, completions, p=0.25, seed=7)
    assert rewards != random_reward(["q"] * 4000, completions, p=0.25, seed=8)
    assert 0.22 < sum(rewards) / 4000 < 0.28
    assert random_reward(["q"] * 2, ["a", "b"], p=1.0) == [1.0, 1.0]
    assert random_reward(["q"] * 2, ["a", "b"], p=0.0) == [0.0, 0.0]


def test_random_reward_favours_no_answer():
    """Identical answers are drawn independently; otherwise a policy could learn which texts pay."""
    assert 400 < sum(random_reward(["q"] * 1000, ["42"] * 1000)) < 600
