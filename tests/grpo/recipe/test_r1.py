"""The large R1 recipes: published numbers, and a cold start from GSM8K's solutions."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from grpo.estimate.check import check_recipe
from grpo.recipe.load import load_recipe
from grpo.recipe.record import check_world
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.stages.pipeline.graph import build_graph, unresolved
from rewards import accuracy, format
from rollout.support.loading import load_object

RECIPES = Path(__file__).parents[3] / "recipes"


@cache
def stages(name: str) -> dict[str, Any]:
    pipeline = load_recipe(RECIPES / name)
    assert isinstance(pipeline, PipelineRecipe)
    nodes = build_graph(pipeline)
    results = unresolved(pipeline.base, [node.name for node in nodes])
    return {node.name: node.recipe(results) for node in nodes}


def test_r1_starts_each_stage_from_the_published_model() -> None:
    found = stages("r1_671b.yaml")
    starts = {
        name: recipe.model.model_name_or_path for name, recipe in found.items() if not name.endswith("(evaluation)")
    }
    base = str(RECIPES / "deepseek_v3")
    assert starts == {
        "r1_zero": base,
        "cold_start_data": "stage:r1_zero",
        "cold_start": base,
        "rl_reasoning": "stage:cold_start",
        "reasoning_data": "stage:rl_reasoning",
        "sft": base,  # again from the base
        "pairs": "stage:sft",
        "reward_model": "stage:sft",
        "rl_all": "stage:sft",
        "distill": "Qwen/Qwen2.5-Math-7B",
    }


def test_r1_has_the_published_numbers_of_supervised_training() -> None:
    found = stages("r1_671b.yaml")
    for name in ("cold_start", "sft"):
        settings = found[name].trainer
        assert settings.per_device_train_batch_size * settings.gradient_accumulation_steps == 128
        assert (settings.num_train_epochs, settings.learning_rate) == (2, 5e-5)
        assert settings.scheduler_arguments == {"min_lr": 5e-6}
        assert found[name].data.max_length == 32_768
    assert found["sft"].data.max_rows == 804_745
    assert [source.weight for source in found["sft"].data.sources] == [626_933, 177_812]
    distill = found["distill"]
    assert distill.trainer.learning_rate == 8e-5 and distill.trainer.gradient_accumulation_steps == 64
    assert distill.data.sources[0].dataset_name == "stage:reasoning_data"
    assert found["cold_start_data"].rollout.temperature == 1.0
    assert found["cold_start_data"].rewrite.model == "deepseek-ai/DeepSeek-V3"


def test_r1_has_the_published_numbers_of_reinforcement_learning() -> None:
    found = stages("r1_671b.yaml")
    first, last = found["rl_reasoning"], found["rl_all"]
    for recipe in (first, last):
        assert (recipe.algorithm.epsilon, recipe.algorithm.beta) == (10.0, 0.001)
        assert recipe.algorithm.ref_model_sync_steps == 400
        assert recipe.trainer.learning_rate == 3e-6
        assert recipe.rollout.problems_per_step * recipe.rollout.num_generations == 512
        assert recipe.rollout.max_completion_length == 32_768
    assert (first.rollout.temperature, last.rollout.temperature) == (1.0, 0.7)
    assert [(reward.function, reward.weight) for reward in first.rewards] == [
        ("accuracy", 1.0),
        ("format", 1.0),
        ("language", 1.0),
    ]
    assert last.trainer.max_steps == 1700
    joins = {source.name: source.first_step(1700) for source in last.data.mixture}
    assert joins == {"reasoning": 0, "general": 1300}
    # Stages join at the first rollout at or after their step: exactly at 1,300.
    assert 1300 % last.algorithm.steps_per_generation == 0
    limits = {reward.name: reward.data_sources for reward in last.rewards}
    assert limits == {"accuracy": ["reasoning"], "reward_model": ["general"], "format": None, "language": None}


def test_r1_has_the_published_numbers_of_preferences() -> None:
    found = stages("r1_671b.yaml")
    pairs, model = found["pairs"].pairs, found["reward_model"]
    assert (pairs.num_problems, pairs.num_comparisons, pairs.margin) == (66_000, 4, 0.5)
    assert found["pairs"].judge.model == "deepseek-ai/DeepSeek-V3"
    assert (model.trainer.batch_size, model.trainer.learning_rate) == (256, 6e-6)
    assert (model.trainer.num_train_epochs, model.data.max_length, model.data.summary_only) == (1, 8192, True)


def test_every_stage_of_the_small_r1_runs_in_one_and_in_two_processes() -> None:
    for recipe in stages("r1.yaml").values():
        check_world(recipe, 1)
        check_world(recipe, 2)


def test_gsm8k_solutions_become_traces_with_a_right_answer(tmp_path: Path) -> None:
    solution = "He ate 48/2 = <<48/2=24>>24 of them.\nSo 48+24 = <<48+24=72>>72 are left.\n#### 72"
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": solution}) + "\n")
    (trace,) = load_object(f"{RECIPES}/gsm8k.py:traces", kind="data.sources")(0, path=str(path))
    assert trace == {
        "prompt": "How many?",
        "completion": " <think> He ate 48/2 = 24 of them.\nSo 48+24 = 72 are left. </think> <answer> 72 </answer>",
    }
    assert accuracy(["How many?"], [trace["completion"]], [solution]) == [1.0]
    assert format(["How many?"], [trace["completion"]]) == [1.0]


def test_the_gsm8k_pipeline_fits_a_small_machine_with_a_small_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(tmp_path / "base")
    assert check_recipe(RECIPES / "r1_gsm8k_0.5b.yaml", [f"base={tmp_path}/base", "evaluation.sets={}"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row[1:2] in (["sft"], ["grpo"], ["rejection"])] == [
        "cold_start",
        "rl_reasoning",
        "reasoning_data",
        "sft",
        "rl_all",
    ]


def test_the_gsm8k_pipeline_starts_supervised_training_from_the_base_twice() -> None:
    found = stages("r1_gsm8k_0.5b.yaml")
    starts = {name: found[name].model.model_name_or_path for name in ("cold_start", "rl_reasoning", "sft", "rl_all")}
    base = "Qwen/Qwen2.5-0.5B"
    assert starts == {"cold_start": base, "rl_reasoning": "stage:cold_start", "sft": base, "rl_all": "stage:sft"}
