"""The stage from a recipe to a dataset, with the hf engine on a tiny model."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from grpo.recipe.errors import RefusedError, RunError
from grpo.recipe.load import RecipeError, load_recipe
from grpo.stages.rejection import run as stage
from grpo.stages.rejection.candidates import Candidates
from grpo.stages.run import run
from rewards.runner.score import ScoredGroup
from rollout.data.sources import load_source
from rollout.types import Completion, Group, Problem

ROOT = Path(__file__).parents[4]
FINISHED = {"name": "finished"}


def sections(model: Path, folder: Path, **values: Any) -> dict[str, Any]:
    """5 problems in 3 batches; every completion is as long as it may be, so `finished` removes all."""
    return {
        "stage": "rejection",
        "model": {"model_name_or_path": str(model)},
        "data": {"task": "countdown", "max_prompt_length": 64, "template": "{prompt}<think>"},
        "rollout": {
            "engine": "hf",
            "num_problems": 5,
            "num_generations": 3,
            "problems_per_batch": 2,
            "max_completion_length": 4,
        },
        "rewards": [{"function": f"{Path(__file__).parent / 'scores.py'}:even"}],
        "filters": [{"name": "correct", "reward": "even"}],
        "output": str(folder),
        **values,
    }


def recipe(model: Path, folder: Path, **values: Any) -> Any:
    return load_recipe(None, sections=sections(model, folder, **values))


def content(folder: Path) -> dict[str, bytes]:
    """Every file that does not say where and when the run was."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name not in ("run.lock", "environment.json", "recipe.yaml", "done.json")
    }


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    return run(recipe(tiny_llama, tmp_path_factory.mktemp("whole") / "run"))


def test_the_dataset_loads_by_its_folder(whole: Path) -> None:
    rows: Any = load_dataset(str(whole), split="train")
    counts = json.loads((whole / "filters.json").read_text())
    assert 0 < len(rows) == counts["kept"] < counts["sampled"] == 15
    assert rows.column_names == [
        *("prompt", "completion", "data_source", "problem_id", "sample", "num_tokens", "rewards/even", "model", "seed")
    ]
    assert all(row["completion"].startswith("<think>") and row["rewards/even"] == 1 for row in rows)
    assert len(rows) == load_source(dataset_name=str(whole)).size
    assert "| correct (even > 0.5) | 15 |" in (whole / "README.md").read_text()


def test_a_run_killed_between_batches_ends_with_the_same_bytes(
    whole: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Candidates.write

    def killed(self: Candidates, *batch: Any) -> None:
        write(self, *batch)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage.Candidates, "write", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(recipe(tiny_llama, tmp_path / "run"))
    monkeypatch.undo()
    assert len(Candidates(tmp_path / "run/candidates").files) == 2
    assert content(run(recipe(tiny_llama, tmp_path / "run"))) == content(whole)


def test_two_processes_write_what_one_does(whole: Path, tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(sections(tiny_llama, tmp_path / "run")))
    command = ["train", "--cpu", "--num_processes", "2", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "grpo", *command], check=True, cwd=tmp_path, env=environment)
    assert content(tmp_path / "run") == content(whole)


def test_filters_may_change_without_sampling_again(
    whole: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(recipe(tiny_llama, tmp_path / "run"))
    monkeypatch.delattr(stage, "_sample")
    run(recipe(tiny_llama, folder, filters=[], select={"deduplicate": False}))
    assert len(load_dataset(str(folder), split="train")) == 15
    with pytest.raises(RecipeError, match=r"rollout\.temperature: was 1\.0, now 0\.5"):
        rollout = sections(tiny_llama, folder)["rollout"] | {"temperature": 0.5}
        run(recipe(tiny_llama, folder, rollout=rollout))


def test_samples_of_other_weights_are_not_used_again_even_if_all_are_there(tiny_llama: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_llama, tmp_path / "model")
    folder = run(recipe(model, tmp_path / "run"))
    (model / "more.safetensors").write_bytes(b"other weights")
    with pytest.raises(RefusedError, match=r"run has samples from other weights than those now in .*/model \(hash"):
        run(recipe(model, folder, filters=[]))
    shutil.rmtree(model)
    run(recipe(model, folder, filters=[]))
    assert len(load_dataset(str(folder), split="train")) == 15


def test_a_prefilled_answer_moves_from_the_prompt_to_the_completion(tiny_llama: Path, tmp_path: Path) -> None:
    question, answer = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}
    done = Completion(token_ids=[7, 8], logprobs=[], text=" 4", finish_reason="length", policy_version=0)
    problem = Problem(id="sums/train/0", prompt=[question, answer], columns={"data_source": "sums"})
    group = Group(problem=problem, prompt_ids=[1], completions=[done], completion_prefix="It is")
    rows = list(stage._rows(recipe(tiny_llama, tmp_path), ScoredGroup(group, [1.0], {"even": [None]})))
    Candidates(tmp_path).write(rows, ["even"], state={})
    (table,) = Candidates(tmp_path).tables()
    assert (
        table.to_pylist()
        == rows
        == [
            {
                "prompt": [question],
                "completion": "It is 4",
                "data_source": "sums",
                "problem_id": "sums/train/0",
                "sample": 0,
                "num_tokens": 2,
                "finished": False,
                "rewards/even": None,
            }
        ]
    )


def test_a_reward_behind_a_closed_gate_is_zero(tiny_llama: Path, tmp_path: Path) -> None:
    """`requires`: accuracy counts where format does, for filters too."""
    done = [Completion(token_ids=[7], logprobs=[], text=t, finish_reason="stop", policy_version=0) for t in "ab"]
    problem = Problem(id="sums/train/0", prompt="2 + 2?", columns={"data_source": "sums"})
    scored = ScoredGroup(
        Group(problem=problem, prompt_ids=[1], completions=done),
        [1.0, 0.0],
        {"accuracy": [1.0, 1.0], "format": [1.0, 0.0]},
        gated={"accuracy": [False, True]},
    )
    rows = list(stage._rows(recipe(tiny_llama, tmp_path), scored))
    assert [row["rewards/accuracy"] for row in rows] == [1.0, 0.0]


def test_an_empty_result_says_which_filter_took_how_many(tiny_llama: Path, tmp_path: Path) -> None:
    filters = [{"name": "correct", "reward": "even"}, {"name": "reward", "reward": "even", "min": 2}]
    rollout = sections(tiny_llama, tmp_path)["rollout"]
    with pytest.raises(RunError) as error:
        run(recipe(tiny_llama, tmp_path / "run", filters=filters, rollout=rollout))
    counts = (
        r"kept none of 15 samples of 5 problems: correct \(even > 0.5\) took (\d+) of 15, reward \(even >= 2\) took "
    )
    assert error.match(counts)


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ([{"name": "correct", "reward": "evn"}], "filters.0.reward='evn': must be one of the recipe's rewards, even."),
        ([{"name": "correct"}], "filters.0.reward: is required."),
        ([{"name": "finshed"}], "filters.0.name='finshed': must be one of 'correct', 'reward', 'finished'"),
        ([{"name": "paragraph_length"}], "needs a limit. Set max_words"),
        ([FINISHED, FINISHED], "filters: finished is listed 2 times"),
    ],
)
def test_wrong_filters_are_refused_with_the_recipe(
    filters: list[dict[str, Any]], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(tiny_llama, tmp_path, filters=filters)
    assert message in str(error.value)
