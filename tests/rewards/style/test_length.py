"""Length and repetition rewards: computed by hand, and compared with TRL."""

import math

import numpy as np
import pytest

from rewards import cosine_scaled, relative_length, repetition_penalty, soft_overlong_punishment

RIGHT, WRONG = r"\boxed{42}", r"\boxed{41}"


def ids(*lengths):
    return [[7] * n for n in lengths]


def texts(*contents, conversational):
    return [[{"role": "assistant", "content": text}] for text in contents] if conversational else list(contents)


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0), (101, -1.0), (10_000, -1.0)],
)
def test_soft_overlong_punishment_grows_over_the_last_tokens(length, expected):
    options = {"max_completion_len": 100, "soft_punish_cache": 20}
    assert soft_overlong_punishment(["q"], ["a"], ids(length), **options) == [expected]


def test_soft_overlong_punishment_without_a_soft_range_is_a_step():
    options = {"max_completion_len": 100, "soft_punish_cache": 0}
    assert soft_overlong_punishment([""] * 2, [""] * 2, ids(100, 101), **options) == [0.0, -1.0]
    with pytest.raises(ValueError, match=r"soft_punish_cache=101 with max_completion_len=100.*Choose"):
        soft_overlong_punishment([""], [""], ids(1), max_completion_len=100, soft_punish_cache=101)


@pytest.mark.parametrize("conversational", [False, True])
def test_cosine_scaled_is_steepest_for_short_completions(conversational):
    completions = texts(RIGHT, RIGHT, RIGHT, RIGHT, WRONG, WRONG, WRONG, WRONG, conversational=conversational)
    lengths = ids(*[0, 50, 100, 150] * 2)
    expected = [1.0, 0.75, 0.5, 0.5, -1.0, -0.75, -0.5, -0.5]
    assert cosine_scaled([""] * 8, completions, lengths, solution=["42"] * 8, max_len=100) == pytest.approx(expected)


def test_cosine_scaled_with_the_papers_values_punishes_reaching_the_limit():
    paper = {"max_len": 100, "max_value_correct": 2.0, "min_value_correct": 1.0, "min_value_wrong": -10.0}
    paper |= {"max_value_wrong": 0.0, "exceed_penalty": -10.0}
    got = cosine_scaled([""] * 4, [RIGHT, WRONG, RIGHT, WRONG], ids(99, 99, 100, 100), solution=["42"] * 4, **paper)
    edge = (1 + math.cos(0.99 * math.pi)) / 2
    assert got == pytest.approx([1 + edge, -10 * edge, -10.0, -10.0])


def test_the_named_reward_decides_correctness():
    answers = ["<answer>8*3+2</answer>", "<answer>8*3-2</answer>"]
    columns = {"numbers": [[3, 8, 2]] * 2, "target": [26] * 2, "correctness": "countdown"}
    assert cosine_scaled([""] * 2, answers, ids(0, 0), max_len=9, **columns) == [1.0, -1.0]
    assert relative_length([""] * 2, answers, ids(3, 5), **columns) == [0.5, -0.5]


@pytest.mark.parametrize("conversational", [False, True])
def test_relative_length_favors_short_correct_completions_but_no_wrong_one(conversational):
    completions = texts(RIGHT, RIGHT, RIGHT, WRONG, WRONG, conversational=conversational)
    got = relative_length([""] * 5, completions, ids(10, 15, 20, 10, 20), solution=["42"] * 5)
    assert got == [0.5, 0.0, -0.5, 0.0, -0.5]


def test_relative_length_is_zero_for_equal_lengths():
    assert relative_length([""] * 2, [RIGHT, WRONG], ids(7, 7), solution=["42"] * 2) == [0.0, 0.0]
    assert relative_length([""], [RIGHT], ids(0), solution=["42"]) == [0.0]


def test_length_rewards_are_none_if_correctness_is_none():
    assert cosine_scaled([""], [RIGHT], ids(3), solution=[""], max_len=9) == [None]
    assert relative_length([""], [RIGHT], ids(3), solution=[""]) == [None]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4], 0.0),
        ([5, 5, 5, 5, 5], -0.75),  # one bigram of four
        ([1, 2, 1, 2], -1 / 3),
        ([1], 0.0),
        ([], 0.0),
    ],
)
def test_repetition_penalty_is_the_share_of_repeated_ngrams(tokens, expected):
    assert repetition_penalty(["q"], ["a"], [tokens], ngram_size=2) == pytest.approx([expected])


@pytest.mark.parametrize("conversational", [False, True])
def test_repetition_penalty_of_plain_text_counts_words(conversational):
    completions = texts("so it is\nSo it is so it is", "each word once", "", conversational=conversational)
    got = repetition_penalty([""] * 3, completions, max_penalty=-2.0)
    assert got == pytest.approx([-2.0 * (1 - 3 / 7), 0.0, 0.0])
    assert str(got[1]) == "0.0"
    with pytest.raises(ValueError, match="a penalty must not be positive"):
        repetition_penalty([""], [""], max_penalty=0.5)


def test_length_and_repetition_rewards_match_trl():
    trl = pytest.importorskip("trl.rewards")
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 4, n).tolist() for n in rng.integers(0, 130, 200)]
    completions = [[{"role": "assistant", "content": RIGHT if i % 2 else WRONG}] for i in range(200)]
    prompts, solution = [[{"role": "user", "content": "q"}]] * 200, ["$42$"] * 200
    overlong = {"max_completion_len": 100, "soft_punish_cache": 30}
    assert soft_overlong_punishment(prompts, completions, tokens, **overlong) == trl.get_soft_overlong_punishment(
        **overlong
    )(completion_ids=tokens)
    for size in (1, 2, 3, 8):
        theirs = trl.get_repetition_penalty_reward(ngram_size=size, max_penalty=-0.7)(completion_ids=tokens)
        ours = repetition_penalty(prompts, completions, tokens, ngram_size=size, max_penalty=-0.7)
        assert ours == pytest.approx(theirs, abs=1e-12)
    theirs = trl.get_cosine_scaled_reward(max_len=100)(completions, solution, tokens)
    ours = cosine_scaled(prompts, completions, tokens, solution=solution, max_len=100)
    assert ours == pytest.approx(theirs, abs=1e-12)
