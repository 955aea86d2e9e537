"""Names in a recipe that are not there are found without torch, all of them at once."""

from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.load import RecipeError, load_recipe
from grpo.stages.checks.references import check_references


def problems(**sections: Any) -> list[str]:
    given = {
        "model": {"model_name_or_path": "base"},
        "data": {"task": "countdown"},
        "rewards": [{"function": "random"}],
    }
    recipe = load_recipe(None, sections=given | sections)
    try:
        check_references(recipe, "recipe.yaml")
    except RecipeError as error:
        head, *lines = str(error).splitlines()
        assert head == ("recipe.yaml:" if len(lines) == 1 else f"recipe.yaml: {len(lines)} errors")
        return lines
    return []


def test_all_that_is_missing_is_named_together(tmp_path: Path) -> None:
    found = problems(
        data={"task": "countdwn"},
        evaluation={"num_problems": 2, "data": {"task": "arithmetic", "columns": {"prompt": "question"}}},
        rewards=[
            {"function": "acuracy"},
            {"function": "format", "options": {"think": True}},
            {"function": f"{tmp_path}/mine.py:score"},
        ],
    )
    starts = [
        "  - data: task 'countdwn' is unknown. Did you mean 'countdown'?",
        "  - rewards.0: no built-in reward is called 'acuracy'. Did you mean 'accuracy'?",
        "  - rewards.1: reward 'format' has no option 'think'.",
        f"  - rewards.2: reward: file {tmp_path}/mine.py does not exist.",
        "  - evaluation.data: columns={'prompt': 'question'}: task 'arithmetic' has no column 'question'.",
    ]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_a_user_s_file_is_read_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit(3)\ndef score(completions, **columns): ...\nalias = score\n")
    assert problems(rewards=[{"function": f"{file}:score"}, {"function": f"{file}:alias"}]) == []
    assert "does not define 'scores'. Did you mean 'score'?" in problems(rewards=[{"function": f"{file}:scores"}])[0]
    file.write_text("def score(:\n")
    assert f"{file}:1: invalid syntax. Correct the file." in problems(rewards=[{"function": f"{file}:score"}])[0]


def test_sources_of_a_mixture_are_looked_at_and_datasets_left_to_the_run() -> None:
    (found,) = problems(
        data={"mixture": [{"name": "a", "dataset_name": "no.jsonl"}, {"name": "b", "task": "arithmetc"}]}
    )
    assert "data.mixture.1: task 'arithmetc' is unknown. Did you mean 'arithmetic'?" in found


def test_a_pipeline_s_stages_are_checked(tmp_path: Path) -> None:
    zero = {"stage": "grpo", "from": "base", "data": {"task": "countdown"}, "rewards": [{"function": "acuracy"}]}
    recipe = load_recipe(None, sections={"stage": "pipeline", "base": "base", "stages": {"zero": zero}})
    with pytest.raises(RecipeError, match=r"  - stages.zero.rewards.0: no built-in reward is called 'acuracy'"):
        check_references(recipe, "recipe.yaml")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[4] / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_names_what_is_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parents[1])
    check_references(load_recipe(path), path)
