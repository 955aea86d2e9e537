"""Whole runs ahead of the update, over real HTTP, against a server with vLLM's API: its log-probs are made up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo
from grpo.recipe.errors import RunError
from tests.rollout.engines.servers.test_faults import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    found = FakeServer()
    yield found
    found.released.set()
    found.http.shutdown()
    found.http.server_close()


def train(server: FakeServer, model: Path, folder: Path, *, held_out: int = 0, **trainer: Any) -> Path:
    reward = folder / "mine.py"
    reward.write_text("def first(completions, **_):\n    return [float(i == 0) for i in range(len(completions))]\n")
    recipe = {
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "template": "{prompt} :", "max_prompt_length": 40},
        "rollout": {
            "engine": "server",
            "servers": {"urls": [server.url], "weights_dir": str(folder), "patience": 0.3},
            "max_staleness": 2,
            "problems_per_step": 3,
            "num_generations": 2,
            "max_completion_length": 4,
        },
        "rewards": [{"function": str(reward) + ":first"}],
        "algorithm": {"max_logp_difference": 100.0},
        "trainer": {"output_dir": str(folder / "run"), "num_reward_workers": 1, "max_steps": 4, **trainer},
        "report": {"num_logged_groups": 3},
        "evaluation": {"num_problems": held_out, "num_samples": 2, "eval_steps": held_out},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return grpo.train(path)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / name).read_text().splitlines()]


def trained(folder: Path) -> list[str]:
    return [row["problem_id"] for row in rows(folder, "samples.jsonl")]


def test_a_run_ahead_of_its_updates_evaluates_saves_and_says_how_stale_it_was(
    server: FakeServer, tiny_llama: Path, tmp_path: Path
) -> None:
    assert train(server, tiny_llama, tmp_path, held_out=2).name == "checkpoint-4"
    steps = [row for row in rows(tmp_path, "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    for row in steps:
        assert row["rollout/staleness_max"] <= min(2, row["step"] - 1)
        shares = [row[f"rollout/staleness_share_{age}"] for age in range(3)]
        assert sum(shares) == pytest.approx(1.0)
        assert "sampling/importance_sampling_ratio/clipped_share" in row
        # Trainer against engine: on fresh tokens only.
        assert ("sampling/sampling_logp_difference/mean" in row) == (shares[0] > 0)
        assert row["frac_trained_samples"] == 1.0
    assert len(set(trained(tmp_path))) == 12
    evaluations = [row["step"] for row in rows(tmp_path, "metrics.jsonl") if "eval/pass@1" in row]
    assert evaluations == [0, 2, 4]


def test_a_run_whose_servers_are_lost_saves_and_continues_with_each_problem_once(
    server: FakeServer, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollout.engines.servers.engine import ServersEngine

    publish = ServersEngine.publish

    def then_lost(self: ServersEngine, weights: Any, policy_version: int) -> None:
        publish(self, weights, policy_version)
        if policy_version == 2:
            server.fault, server.health = "drop", 500

    monkeypatch.setattr(ServersEngine, "publish", then_lost)
    with pytest.raises(RunError, match=r"^stopped at step \d: no server is left"):
        train(server, tiny_llama, tmp_path)
    monkeypatch.undo()
    server.fault, server.health = "", 200
    train(server, tiny_llama, tmp_path, resume_from_checkpoint=True)
    assert len(trained(tmp_path)) == len(set(trained(tmp_path))) == 12
