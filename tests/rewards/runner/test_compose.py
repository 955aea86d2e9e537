"""Combined rewards: gates and data sources, and their effect on plan, metrics and samples."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grpo
from grpo.algorithm.plan import Plan, Shapes
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import values
from grpo.report.records import deterministic
from grpo.report.rollout_metrics import rollout_metrics
from rewards.runner.score import RewardError, Rewards, RewardSpec
from tests.grpo.stages.test_trainer import rollout_of, rows, write_recipe
from tests.rewards.runner.test_score import group, score_all

GOOD, LOOSE, WRONG = (
    "<think>.</think><answer>8*3+2</answer>",
    "<answer>8*3+2</answer>",
    "<think>.</think><answer>8</answer>",
)
COUNTDOWN = {"numbers": [3, 8, 2], "target": 26}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_reward_counts_only_if_its_gate_is_open(num_workers):
    specs = [{"function": "countdown", "requires": "format"}, {"function": "format", "weight": 0.5}]
    (scored,) = score_all(specs, [group([GOOD, LOOSE, WRONG], **COUNTDOWN)], num_workers)
    assert scored.rewards == [1.5, 0.0, 0.5]
    assert scored.breakdown == {"countdown": [1.0, 1.0, 0.0], "format": [1.0, 0.0, 1.0]}  # before gates
    assert scored.gated == {"countdown": [False, True, False]}
    assert scored.counted == {"countdown": [1.0, 0.0, 0.0], "format": [1.0, 0.0, 1.0]}


def test_a_gate_opens_above_one_half_and_none_stays_none():
    gate = lambda prompts, **kwargs: [0.5, 0.51, None, 1.0]  # noqa: E731
    gated = lambda prompts, **kwargs: [-3.0, -3.0, -3.0, None]  # noqa: E731
    specs = [
        {"function": gated, "name": "gated", "requires": "gate"},
        {"function": gate, "name": "gate", "weight": 0.0},
    ]
    (scored,) = score_all(specs, [group(["a", "b", "c", "d"])])
    assert scored.counted["gated"] == [0.0, -3.0, 0.0, None]
    assert scored.rewards == [0.0, -3.0, 0.0, 0.0]


def test_an_unknown_gate_is_rejected():
    with pytest.raises(ValueError, match=r"'format' requires 'acuracy', which is not another reward .* Others: none"):
        Rewards([RewardSpec(function="format", requires="acuracy")], num_workers=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_data_source_selects_the_rewards(num_workers):
    specs = [
        {"function": "countdown", "data_sources": ["countdown"]},
        {"function": "exact_match", "data_sources": ["arithmetic", "words"]},
        {"function": "format", "weight": 0.5, "data_sources": ["words"]},
    ]
    groups = [
        group([GOOD], data_source="countdown", **COUNTDOWN),
        group([WRONG], data_source="words", answer="8"),
        group([WRONG], data_source="arithmetic", answer="8"),
        group([WRONG], data_source="other"),
    ]
    scored = score_all(specs, groups, num_workers)
    assert [s.breakdown for s in scored] == [
        {"countdown": [1.0], "exact_match": [None], "format": [None]},
        {"countdown": [None], "exact_match": [1.0], "format": [1.0]},
        {"countdown": [None], "exact_match": [1.0], "format": [None]},
        {"countdown": [None], "exact_match": [None], "format": [None]},
    ]
    assert [s.rewards[0] for s in scored[:3]] == [1.0, 1.5, 1.0] and math.isnan(scored[3].rewards[0])


def test_data_sources_without_the_column_are_an_error():
    with pytest.raises(RewardError, match=r"problem 'p/0' has no column 'data_source'. Map one in the recipe: columns"):
        score_all([{"function": "format", "data_sources": ["a"]}], [group(["x"])])


def test_gates_and_weights_reach_the_plan():
    specs = [{"function": "countdown", "requires": "format", "weight": 10.0}, {"function": "format"}]
    groups = score_all(specs, [group([GOOD, LOOSE, WRONG, ""], **COUNTDOWN), group([LOOSE] * 4, **COUNTDOWN)])
    shapes = Shapes.of(groups)
    assert shapes.values.tolist() == [[[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0]] * 4]
    algorithm = AlgorithmConfig(multi_objective_aggregation="normalize_then_sum")
    whole = Plan.of(shapes, algorithm, max_completion_length=8, seed=0, reward_weights=[10.0, 1.0])
    right, form = 0.75 / (0.5 + 1e-4), 0.5 / ((1 / 3) ** 0.5 + 1e-4)
    sums = np.array(
        [10 * right + form, -10 * right / 3 - form, -10 * right / 3 + form, -10 * right / 3 - form, *[0] * 4]
    )
    np.testing.assert_allclose(whole.advantages.ravel(), sums / (sums.std(ddof=1) + 1e-4), rtol=1e-12, atol=1e-12)
    parts = [Shapes.of(groups[:1]), Shapes.of(groups[1:])]
    assert Shapes.interleave(parts).values.tolist() == shapes.values.tolist()


def test_gates_and_logs_are_in_the_metrics():
    def mine(prompts, completions, log_metric, **kwargs):
        log_metric("mine/empty", sum(not text for text in completions))
        return [0.0] * len(prompts)

    specs = [{"function": "format"}, {"function": mine, "requires": "format"}]
    got = values(rollout_metrics(score_all(specs, [group([GOOD, ""]), group(["", ""])])))
    assert (got["rewards/mine/gated_ratio"], got["mine/empty"]) == (0.75, 1.5)

    def clash(prompts, log_metric, **kwargs):
        log_metric("reward", 1.0)
        return [0.0] * len(prompts)

    with pytest.raises(ValueError, match=r"\['reward'\], which the run itself reports"):
        rollout_metrics(score_all([{"function": clash}], [group(["a", "b"])]))


REWARD_FILE = """
import os, signal

def fragile(prompts, completions, log_metric, log_extra, trainer_state, kill, **kwargs):
    if kill and trainer_state.global_step == 1 and not os.path.exists(kill):
        open(kill, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    log_metric("fragile/letters", sum(map(len, completions)) / len(completions))
    log_extra("letters", [len(text) for text in completions])
    return [float(len(text) % 3) for text in completions]
"""


def test_a_worker_killed_during_a_training_step_changes_no_result(tiny_v3: Path, tmp_path: Path) -> None:
    """With gates, logs and normalise-then-sum: the run whose worker dies writes the same files as the other."""
    (tmp_path / "mine.py").write_text(REWARD_FILE)
    killed = tmp_path / "killed"

    def train(name: str, kill: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        folder = tmp_path / name
        folder.mkdir()
        fragile = {"function": f"{tmp_path}/mine.py:fragile", "options": {"kill": kill}, "requires": "random"}
        recipe = write_recipe(
            folder,
            tiny_v3,
            rollout={**rollout_of(tiny_v3, folder), "engine": "hf"},
            algorithm={"multi_objective_aggregation": "normalize_then_sum"},
            evaluation={"num_problems": 0},
        )
        grpo.train(recipe, rewards=[fragile, {"function": "random"}])
        metrics = [deterministic(row) for row in rows(folder / "run")]
        return metrics, rows(folder / "run", "samples.jsonl")

    undisturbed, disturbed = train("one", ""), train("two", str(killed))
    assert killed.exists()
    assert disturbed == undisturbed
    metrics, samples = disturbed
    assert [row["step"] for row in metrics] == [1, 2] and all(row["grad_norm"] > 0 for row in metrics)
    assert all(row["fragile/letters"] > 0 and 0 < row["rewards/fragile/gated_ratio"] < 1 for row in metrics)
    for completion in (c for row in samples for c in row["completions"]):
        assert completion["extras"] == {"letters": len(completion["text"])}
        closed = completion["rewards"]["random"] == 0
        assert completion.get("gated", []) == (["fragile"] if closed else [])
        assert completion["reward"] == completion["rewards"]["random"] + (
            0 if closed else completion["rewards"]["fragile"]
        )
    assert json.dumps(samples)
