"""What rewards cannot judge is said before training."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import grpo
from rewards.runner.load import checked_by
from rewards.runner.preflight import check_problems
from rewards.runner.score import Rewards, RewardSpec
from rollout.data.sources import load_source
from tests.grpo.stages.test_trainer import rollout_of, write_recipe


@checked_by(lambda columns: None if columns["solution"].isdigit() else "the gold is no number")
def numeric(prompts, completions, solution, **kwargs):
    return [float(text == gold) for text, gold in zip(completions, solution, strict=True)]


def source_of(folder: Path, *rows: dict):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": "q", **row}) + "\n" for row in rows))
    return load_source(dataset_name=str(path))


def said(source, *specs: RewardSpec) -> str:
    console = Console(file=io.StringIO(), width=200)
    check_problems(source, [], Rewards(specs, num_workers=0), console)
    return console.file.getvalue()


def test_golds_that_cannot_be_read_are_counted_and_ten_are_named(tmp_path):
    source = source_of(tmp_path, *[{"solution": "x" if i % 2 else "7"} for i in range(24)])
    assert said(source, RewardSpec(function=numeric), RewardSpec(function="format")) == (
        "reward 'numeric' cannot judge 12 of 24 problems:\n"
        f"  12: the gold is no number ({', '.join(f'rows.jsonl/train/{i}' for i in range(1, 20, 2))}, …)\n"
    )


def test_nothing_is_said_where_all_golds_can_be_read(tmp_path):
    assert said(source_of(tmp_path, {"solution": "7"}), RewardSpec(function=numeric)) == ""
    assert said(load_source(task="countdown"), RewardSpec(function="countdown")) == ""


def test_a_reward_that_can_judge_nothing_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)cannot judge 1 of 1 problems:\n  1: the gold is no number .*never say"):
        said(source_of(tmp_path, {"solution": "x"}), RewardSpec(function=numeric))


def test_a_column_that_is_missing_is_an_error():
    with pytest.raises(ValueError, match=r"'numeric' reads the column 'solution', and problem 'countdown/train/0' has"):
        said(load_source(task="countdown"), RewardSpec(function=numeric))


def test_rewards_look_at_their_own_data_sources(tmp_path):
    rows = [{"solution": "x", "data_source": "words"}, {"solution": "7", "data_source": "numbers"}]
    source = source_of(tmp_path, *rows)
    assert said(source, RewardSpec(function=numeric, data_sources=["numbers"]), RewardSpec(function="format")) == ""
    assert said(source, RewardSpec(function=numeric, data_sources=["numbers"])) == (
        "no reward is for the data_source words: those problems train nothing.\n"
    )
    with pytest.raises(
        ValueError, match=r"data_sources names nunbers, and no problem has .* There are: numbers, words"
    ):
        said(source, RewardSpec(function=numeric, data_sources=["nunbers"]), RewardSpec(function="format"))


def test_a_run_does_not_start_on_a_dataset_that_no_rule_can_read(tiny_v3: Path, tmp_path: Path):
    source_of(tmp_path, {"solution": "x"})
    recipe = write_recipe(tmp_path, tiny_v3, rollout={**rollout_of(tiny_v3, tmp_path), "engine": "hf"})
    with pytest.raises(ValueError, match="reward 'numeric' cannot judge 1 of 1 problems"):
        data = {"task": None, "dataset_name": str(tmp_path / "rows.jsonl")}
        grpo.train(recipe, reward_functions=[numeric], data=data, evaluation={"num_problems": 0})
