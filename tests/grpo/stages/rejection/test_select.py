"""Filters, counts, de-duplication and balance on literal candidates."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from grpo.recipe.stages.rejection import FilterConfig, SelectConfig
from grpo.stages.rejection.candidates import Candidate, Candidates
from grpo.stages.rejection.filters import passes
from grpo.stages.rejection.select import Removal, select

THINK = "We add two and two.\n\nThat is four."


def candidate(problem: int = 0, sample: int = 0, **values: Any) -> Candidate:
    return {
        "prompt": f"question {problem}",
        "completion": f"{THINK} ({problem}, {sample})",
        "data_source": "maths",
        "problem_id": f"maths/train/{problem}",
        "sample": sample,
        "num_tokens": 10,
        "finished": True,
        "rewards/accuracy": 1.0,
        "rewards/language": 1.0,
        **values,
    }


def filters(*entries: dict[str, Any]) -> list[FilterConfig]:
    return TypeAdapter(list[FilterConfig]).validate_python(list(entries))


@pytest.mark.parametrize(
    ("entry", "kept", "removed"),
    [
        ({"name": "correct", "reward": "accuracy"}, {"rewards/accuracy": 0.6}, {"rewards/accuracy": 0.5}),
        ({"name": "correct", "reward": "accuracy"}, {}, {"rewards/accuracy": None}),
        (
            {"name": "correct", "reward": "accuracy", "threshold": 0.9},
            {"rewards/accuracy": 0.95},
            {"rewards/accuracy": 0.9},
        ),
        (
            {"name": "reward", "reward": "language", "min": 0.95},
            {"rewards/language": 0.95},
            {"rewards/language": 0.94},
        ),
        ({"name": "reward", "reward": "language", "min": 0.95}, {"rewards/language": None}, {"rewards/language": 0.0}),
        ({"name": "finished"}, {"finished": True}, {"finished": False}),
        (
            {"name": "paragraph_length", "max_words": 5},
            {"completion": "one two three\n\none two three four five"},
            {"completion": "one two three\none two three"},
        ),
        (
            {"name": "paragraph_length", "max_characters": 4},
            {"completion": "abcd\n \nabcd"},
            {"completion": "abcd\n\nabcde"},
        ),
        ({"name": "code_blocks"}, {"completion": "`x` is inline"}, {"completion": "so:\n```python\nx = 1\n```"}),
        (
            {"name": "code_blocks", "data_sources": ["maths"]},
            {"completion": "~~~\nx\n~~~", "data_source": "programs"},
            {"completion": "~~~\nx\n~~~"},
        ),
        (
            {"name": "code_blocks", "data_sources": ["1"]},
            {"completion": "~~~\nx\n~~~", "data_source": 2},
            {"completion": "~~~\nx\n~~~", "data_source": 1},
        ),
        (
            {"name": "repetition", "ngram_size": 2, "max_share": 0.5},
            {"completion": "a b a b a"},  # 4 bigrams, 2 distinct
            {"completion": "a b a b a b a"},  # 6 bigrams, 2 distinct
        ),
    ],
)
def test_each_filter_keeps_and_removes(entry: dict[str, Any], kept: dict[str, Any], removed: dict[str, Any]) -> None:
    (chosen,) = filters(entry)
    assert passes(chosen, candidate(**kept))
    assert not passes(chosen, candidate(**removed))


def written(folder: Path, *batches: list[Candidate]) -> Candidates:
    candidates = Candidates(folder)
    for batch in batches:
        candidates.write(batch, ["accuracy", "language"], state={})
    return candidates


def kept(candidates: Candidates, **section: Any) -> list[int]:
    positions, _ = select(candidates, [], SelectConfig(**section), seed=1)
    return positions.tolist()


def test_a_sample_counts_for_the_first_filter_that_removes_it(tmp_path: Path) -> None:
    wrong = {"rewards/accuracy": 0.0}
    candidates = written(
        tmp_path,
        [candidate(0, 0), candidate(0, 1, **wrong), candidate(0, 2, **wrong, finished=False)],
        [candidate(1, 0, **wrong), candidate(1, 1, finished=False), candidate(2, 0, data_source="physics")],
    )
    chosen = filters({"name": "correct", "reward": "accuracy"}, {"name": "finished"})
    positions, counts = select(candidates, chosen, SelectConfig(), seed=1)
    assert positions.tolist() == [0, 5]
    assert counts.removals == [
        Removal("correct (accuracy > 0.5)", seen=6, removed=3),
        Removal("finished", seen=3, removed=1),
        Removal("duplicates", seen=2, removed=0),
    ]
    assert (counts.sampled, counts.problems, counts.kept, counts.problems_covered) == (6, 3, 2, 2)
    assert counts.sources == {"maths": 1, "physics": 1}


def test_completions_of_one_prompt_that_differ_in_white_space_are_duplicates(tmp_path: Path) -> None:
    candidates = written(
        tmp_path,
        [candidate(0, 0, completion="2 + 2\n= 4"), candidate(0, 1, completion=" 2  + 2 = 4 ")],
        [candidate(1, 0, completion="2 + 2 = 4"), candidate(2, 0, prompt="question 0", completion="2 + 2 = 4")],
    )
    assert kept(candidates) == [0, 2]
    assert kept(candidates, deduplicate=False) == [0, 1, 2, 3]


def test_a_problem_keeps_its_preferred_samples(tmp_path: Path) -> None:
    lengths = [30, 10, 20, 10]
    candidates = written(tmp_path, [candidate(p, s, num_tokens=n) for p in range(2) for s, n in enumerate(lengths)])
    assert kept(candidates, max_per_problem=2, order="shortest") == [1, 3, 5, 7]
    assert kept(candidates, max_per_problem=2, order="first") == [0, 1, 4, 5]
    random = kept(candidates, max_per_problem=2, order="random")
    assert len(random) == 4 and sum(position < 4 for position in random) == 2


def test_a_source_over_its_limit_gives_up_second_samples_before_problems(tmp_path: Path) -> None:
    candidates = written(
        tmp_path,
        [candidate(p, s) for p in range(3) for s in range(3)],
        [candidate(3, s, data_source="physics") for s in range(3)],
    )
    # Of maths, the first sample of each problem and one second one; physics is below the limit.
    assert kept(candidates, max_per_source=4, order="first") == [0, 1, 3, 6, 9, 10, 11]
