"""The section data.mixture: its rules, its schedule, and that every source is scored."""

from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.config import GRPORecipe, OnPolicyRecipe
from grpo.recipe.data import MixedSource
from grpo.recipe.load import RecipeError, load_recipe
from grpo.stages.build import _check_mixture, _rewards
from grpo.stages.problems import training_stream
from tests.conftest import byte_tokenizer

REQUEST = str(Path(__file__).parents[3] / "recipes/courtesy.py:request")
MATHS = {"name": "maths", "weight": 3, "task": "arithmetic"}
GENERAL = {"name": "general", "task": REQUEST, "template": "{prompt} :", "from_step": -400}


def recipe(*, max_steps: int = 1700, **sections: Any) -> GRPORecipe:
    whole = {
        "model": {"model_name_or_path": "base"},
        "data": {"mixture": [MATHS, GENERAL], "max_prompt_length": 64},
        "rewards": [
            {"function": "exact_match", "data_sources": ["maths"]},
            {"function": f"{REQUEST.rpartition(':')[0]}:courtesy", "data_sources": ["general"]},
        ],
        "trainer": {"max_steps": max_steps},
        **sections,
    }
    found = load_recipe(None, sections=whole)
    assert isinstance(found, GRPORecipe)
    return found


@pytest.mark.parametrize(
    ("from_step", "max_steps", "first"), [(-400, 1700, 1300), (-400, 5, 0), (0, 1700, 0), (900, 1700, 900)]
)
def test_a_negative_step_counts_from_the_end(from_step: int, max_steps: int, first: int) -> None:
    assert MixedSource(name="g", task="countdown", from_step=from_step).first_step(max_steps) == first


def test_the_stream_follows_the_schedule_with_each_sources_template() -> None:
    shard = {"process_index": 0, "num_processes": 1}
    stream = training_stream(recipe(max_steps=401), byte_tokenizer(), **shard)
    before, after = stream.take(32), stream.take(32)  # problems_per_step is 32
    assert {prompt.problem.columns["data_source"] for prompt in before} == {"maths"}
    general = [prompt for prompt in after if prompt.problem.columns["data_source"] == "general"]
    assert len(general) == 11
    assert byte_tokenizer().decode(general[0].token_ids) == f"{general[0].problem.prompt} :"


def test_sources_are_rendered_as_the_section_says_unless_they_say_otherwise() -> None:
    maths, general = {**MATHS, "template": "chat"}, {k: v for k, v in GENERAL.items() if k != "template"}
    one = recipe(data={"template": "Q: {prompt}", "mixture": [maths, general]})
    assert [source.template for source in one.data.mixture] == ["chat", "Q: {prompt}"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": [MATHS], "task": "countdown"}, "task='countdown' beside mixture"),
        ({"mixture": [MATHS], "streaming": True}, "streaming=True beside mixture"),
        ({"mixture": [MATHS, MATHS]}, "'maths' names several sources"),
        ({"mixture": [{**MATHS, "from_step": 1700}, {**GENERAL, "from_step": 0}]}, "'maths' has from_step=1700"),
        ({"mixture": [GENERAL]}, "no source starts at step 0"),
        ({"mixture": [{**MATHS, "task": None}]}, "problems come from exactly one of them"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(data=data)
    assert message in str(error.value)


def test_held_out_tasks_need_one_template() -> None:
    with pytest.raises(RecipeError, match="the sources may have several templates, and tasks need one"):
        recipe(evaluation={"tasks": ["gsm8k"]})


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([{"function": "exact_match", "data_sources": ["maths"]}], "no reward with a weight applies to .* 'general'"),
        (
            [{"function": "exact_match"}, {"function": "format", "data_sources": ["generall"]}],
            "names 'generall', which is not a source of data.mixture",
        ),
        (
            [
                {"function": "exact_match", "data_sources": ["maths"]},
                {"function": "format", "data_sources": ["general"], "weight": 0},
            ],
            "no reward with a weight applies to .* 'general'",
        ),
    ],
)
def test_a_source_without_a_reward_is_refused(rewards: list[dict[str, Any]], message: str) -> None:
    one = recipe(rewards=rewards)
    with pytest.raises(ValueError, match=message):
        _check_mixture(one, _rewards(one))


def test_the_mixture_above_is_accepted() -> None:
    one = recipe()
    _check_mixture(one, _rewards(one))


def test_where_teachers_judge_a_source_needs_no_reward() -> None:
    teacher = {"model_name_or_path": "teacher"}
    sections = {
        "stage": "opd",
        "model": {"model_name_or_path": "student"},
        "data": {"mixture": [MATHS, {**GENERAL, "from_step": 0}]},
        "teachers": {"maths": teacher, "general": teacher},
        "teacher_column": "data_source",
    }
    one = load_recipe(None, sections=sections)
    assert isinstance(one, OnPolicyRecipe)
    _check_mixture(one, _rewards(one))
