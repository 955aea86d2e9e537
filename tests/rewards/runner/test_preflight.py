"""Checks before training: problems that a reward cannot grade."""

import io
import json
import pickle
from pathlib import Path

import pytest
from rich.console import Console

import grpo
from rewards.runner.load import checked_by
from rewards.runner.preflight import inspect_problems, report_findings
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.sources import load_source
from tests.grpo.stages.test_trainer import rollout_of, write_recipe
from tests.rewards.runner.test_score import group, score_all


@checked_by(lambda columns: None if columns["solution"].isdigit() else "not a number")
def numeric(prompts, completions, solution, **kwargs):
    return [float(text == reference) for text, reference in zip(completions, solution, strict=True)]


def source_of(folder: Path, *rows: dict):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "q", **row}) + "\n" for row in rows))
    return load_source(dataset_name=str(path))


def warnings(source, *specs: RewardSpec, processes: int = 1) -> str:
    console, rewards = Console(file=io.StringIO(), width=200), Rewards(specs, num_workers=0)
    shares = [range(rank, source.size or 1, processes) for rank in range(processes)]
    found = [inspect_problems(map(source.__getitem__, share), rewards) for share in shares]
    found = pickle.loads(pickle.dumps(found))
    report_findings(found, [inspect_problems([], rewards)], rewards, console, complete=source.size is not None)
    return console.file.getvalue()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_unreadable_reference_answers_are_counted_and_ten_are_named(tmp_path, processes):
    """However many processes share the work."""
    source = source_of(tmp_path, *[{"solution": "x" if i % 2 else "7"} for i in range(24)])
    specs = [RewardSpec(function=numeric), RewardSpec(function="format")]
    assert warnings(source, *specs, processes=processes) == (
        "reward 'numeric' cannot grade 12 of 24 problems:\n"
        f"  12: not a number ({', '.join(f'rows.jsonl/train/{i}' for i in range(1, 20, 2))}, …)\n"
    )


def test_readable_reference_answers_cause_no_warning(tmp_path):
    assert warnings(source_of(tmp_path, {"solution": "7"}), RewardSpec(function=numeric)) == ""
    assert warnings(load_source(task="countdown"), RewardSpec(function="countdown")) == ""


def test_a_reward_that_can_grade_no_problem_is_an_error(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"(?s)cannot grade 1 of 1 problems:\n  1: not a number .*always return None",
    ):
        warnings(source_of(tmp_path, {"solution": "x"}), RewardSpec(function=numeric))


def test_a_missing_column_is_an_error():
    with pytest.raises(ValueError, match=r"'numeric' needs the column 'solution', but problem 'countdown/train/0' has"):
        warnings(load_source(task="countdown"), RewardSpec(function=numeric))


def test_rewards_check_only_their_own_data_sources(tmp_path):
    rows = [{"solution": "x", "data_source": "words"}, {"solution": "7", "data_source": "numbers"}]
    source = source_of(tmp_path, *rows)
    assert warnings(source, RewardSpec(function=numeric, data_sources=["numbers"]), RewardSpec(function="format")) == ""
    assert warnings(source, RewardSpec(function=numeric, data_sources=["numbers"])) == (
        "no reward applies to data_source words: training ignores those problems.\n"
    )
    with pytest.raises(
        ValueError, match=r"data_sources names nunbers, but no problem has .* The dataset has: numbers, words"
    ):
        warnings(source, RewardSpec(function=numeric, data_sources=["nunbers"]), RewardSpec(function="format"))


def test_a_data_source_may_be_a_number(tmp_path):
    source = source_of(tmp_path, {"solution": "7", "data_source": 1})
    assert warnings(source, RewardSpec(function=numeric, data_sources=["1"])) == ""
    texts = [group(["7", "8"], solution="7", data_source=1)]
    assert score_all([{"function": numeric, "data_sources": ["1"]}], texts)[0].rewards == [1.0, 0.0]


def test_a_run_does_not_start_on_an_unreadable_dataset(tiny_v3: Path, tmp_path: Path):
    source_of(tmp_path, {"solution": "x"})
    recipe = write_recipe(tmp_path, tiny_v3, rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"})
    with pytest.raises(ValueError, match="reward 'numeric' cannot grade 1 of 1 problems"):
        data = {"task": None, "dataset_name": str(tmp_path / "rows.jsonl")}
        grpo.train(recipe, reward_functions=[numeric], data=data, evaluation={"num_problems": 0})
