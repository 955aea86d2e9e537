"""Rewards of spans of a completion's text: what they may be, and the tokens that they end at."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from rewards.runner.load import returns_spans
from rewards.runner.score import RewardError, Rewards, RewardSpec, ScoredGroup
from rewards.runner.values import LAST, Spans
from rollout.types import Completion, Group, Problem
from tests.conftest import byte_tokenizer
from tests.rewards.runner.test_score import group, score_all

TOKENIZER, EOS = byte_tokenizer(), 257


def decode(ids: Sequence[int]) -> str:
    return TOKENIZER.decode([i for i in ids if i != EOS])


def stepped(text: str, specs: list[dict[str, Any]], decode=decode, ids: Sequence[int] | None = None) -> ScoredGroup:
    """One completion of these bytes and EOS, scored."""
    ids = [*TOKENIZER.encode(text), EOS] if ids is None else ids
    completion = Completion(token_ids=ids, logprobs=[0.0] * len(ids), text=text, finish_reason="stop", policy_version=0)
    rewards = Rewards([RewardSpec(**spec) for spec in specs], num_workers=0)
    rewards.decode = decode
    one = Group(problem=Problem(id="p", prompt="q"), prompt_ids=[1], completions=[completion])
    (scored,) = rewards.score([one])
    rewards.close()
    return scored


def returning(value: Any, name: str = "mine", **spec: Any) -> dict[str, Any]:
    function = returns_spans(lambda completions, **_: [value] * len(completions))
    return {"function": function, "name": name, **spec}


def test_the_reward_is_the_sum_of_the_spans():
    (scored,) = score_all([returning([(0, 1, 0.25), (1, 3, 0.5)], weight=2.0)], [group(["abc"])])
    assert scored.breakdown == {"mine": [0.75]} and scored.rewards == [1.5]
    assert isinstance(value := scored.breakdown["mine"][0], Spans) and value.spans == ((0, 1, 0.25), (1, 3, 0.5))
    assert scored.steps == []  # nothing knows the tokens


@pytest.mark.parametrize(
    "span",
    [(0, 4, 1.0), (-1, 2, 1.0), (2, 1, 1.0), (1, 1, 1.0), (0.0, 1, 1.0), (0, 1, math.nan), (0, 1, math.inf), (0, 1)],
)
def test_a_span_that_is_none_of_the_text_names_the_reward_and_the_completion(span):
    with pytest.raises(RewardError) as error:
        score_all([returning([(0, 1, 0.0), span])], [group(["abc"])])
    assert f"reward 'mine' returned the span {span!r} for completion 1 of 1 for problem 'p/0'" in str(error.value)
    assert "whole numbers with 0 <= start < end <= 3, the characters of the completion's text" in str(error.value)


def test_a_span_ends_at_the_token_that_completes_its_last_character():
    """é is bytes 1 and 2, 漢 3 to 5, 🙂 6 to 9 of a text of one token per byte."""
    scored = stepped("né漢🙂x", [returning([(0, 1, 1.0), (1, 2, 2.0), (2, 3, 4.0), (0, 4, 8.0)])])
    assert scored.steps == [[(0, 1.0), (2, 2.0), (5, 4.0), (9, 8.0)]]


def test_a_span_that_ends_inside_a_token_ends_with_it():
    words = {0: "The ", 1: "answer", 2: " is 4", 3: ".", EOS: ""}

    def spell(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids)

    spans = [(0, 4, 1.0), (2, 5, 2.0), (4, 10, 4.0), (4, 12, 8.0)]  # the second ends in "answer", the last in " is 4"
    scored = stepped("The answer is 4.", [returning(spans)], decode=spell, ids=[0, 1, 2, 3, EOS])
    assert scored.steps == [[(0, 1.0), (1, 6.0), (2, 8.0)]]  # what ends at one token is one step


def test_numbers_and_spans_that_end_with_the_text_are_the_completions_last_step():
    """Weighted, also where a number does not apply or has no weight; a closed gate counts as 0."""
    specs = [
        returning([(0, 1, 1.0), (0, 3, 0.5)], weight=2.0),
        returning(3.0, "number", weight=0.5),
        returning(None, "absent"),
        returning(7.0, "measured", weight=0.0),
        returning([(0, 1, 9.0)], "gated", requires="closed"),
        returning(0.0, "closed"),
    ]
    scored = stepped("abc", specs)
    assert scored.steps == [[(0, 2.0), (LAST, 2.5)]]
    assert scored.rewards == [4.5]


def test_without_spans_there_are_no_steps():
    assert stepped("abc", [returning(1.0)]).steps == []
    assert stepped("abc", [returning([])]).steps == [[]]


def test_spans_come_out_of_a_worker(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rewards.runner.load import returns_spans\n@returns_spans\ndef mine(completions, **kwargs):\n"
        "    return [[(0, 1, 0.5), (1, 2, 0.25)] for _ in completions]\n"
    )
    (scored,) = score_all([{"function": f"{file}:mine"}], [group(["ab"])], num_workers=1)
    value = scored.breakdown["mine"][0]
    assert value == 0.75 and isinstance(value, Spans) and value.spans == ((0, 1, 0.5), (1, 2, 0.25))


@pytest.mark.parametrize("spans", [[(0, 1, 0.5)], []])
def test_spans_of_a_function_that_does_not_declare_them_are_refused(spans: list) -> None:
    def mine(completions, **_):
        return [None] * (len(completions) - 1) + [spans]

    with pytest.raises(RewardError) as error:
        score_all([{"function": mine}], [group(["ab", "c"])])
    assert str(error.value) == (
        "reward 'mine' returned spans for completion 2 of 2 for problem 'p/0', which begins 'c', and does not say so "
        "beforehand, when the run checks that its algorithm takes them. Mark the function with @returns_spans of "
        "rewards.runner.load."
    )


def test_rewards_with_a_weight_that_declare_spans_are_known_before_they_run(tmp_path) -> None:
    """Functions, also those that a factory makes, and objects; without a weight they have no steps either."""

    class Grader:
        returns_spans = True

        def __call__(self, completions, **_):
            return [[(0, 1, 1.0)]] * len(completions)

    file = tmp_path / "made.py"
    file.write_text(
        "from rewards.runner.load import returns_spans\ndef make(size=1):\n    @returns_spans\n"
        "    def made(completions, **kwargs):\n        return [[(0, size, 1.0)] for _ in completions]\n"
        "    return made\n"
    )
    measured = returning([(0, 1, 1.0)], "measured", weight=0.0)
    specs = [measured, {"function": Grader(), "name": "object"}, {"function": f"{file}:make"}, {"function": "format"}]
    rewards = Rewards([RewardSpec(**spec) for spec in specs], num_workers=0)
    assert rewards.with_spans == ["object", "make"]
    rewards.close()
    assert stepped("abc", [measured, {"function": "random"}]).steps == []
