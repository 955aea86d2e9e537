"""How the section `data` renders problems, in sources and in every shipped recipe."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.config import GRPORecipe
from grpo.recipe.data import DataConfig
from grpo.recipe.load import load_recipe
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.stages.pipeline.graph import build_graph, unresolved
from rollout.data.prompts import Prompter
from tests.conftest import byte_tokenizer

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize(
    "data",
    [
        {"task": "countdown", "template": "r1_zero", "system_prompt": "Be brief."},
        {"template": "chat", "system_prompt": "Be brief.", "mixture": [
            {"name": "a", "task": "countdown"}, {"name": "b", "task": "arithmetic", "template": "r1_zero"}
        ]},
    ],
)  # fmt: skip
def test_a_system_prompt_without_the_chat_template_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"system_prompt='Be brief\.' with template='r1_zero': only template chat has"):
        DataConfig(**data)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_shipped_recipe_can_render_its_prompts(path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    recipe = load_recipe(path)
    recipes: list[Any] = [recipe]
    if isinstance(recipe, PipelineRecipe):
        nodes = build_graph(recipe)
        results = unresolved(recipe.base, [node.name for node in nodes])
        recipes = [node.recipe(results) for node in nodes]
    for rendering in [found for one in recipes for found in sections_with("template", one.model_dump())]:
        keys = ("template", "system_prompt", "chat_template_kwargs")
        Prompter(tokenizer, max_prompt_length=32, **{key: rendering[key] for key in keys if key in rendering})


def sections_with(key: str, value: Any) -> Iterator[dict[str, Any]]:
    """The mappings with this key, at any depth."""
    if isinstance(value, dict) and key in value:
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from sections_with(key, item)


def test_the_engine_s_context_holds_held_out_prompts_and_completions_too() -> None:
    sections = {
        "model": {"model_name_or_path": "base"},
        "data": {"task": "countdown", "max_prompt_length": 32},
        "rollout": {"max_completion_length": 64},
        "rewards": [{"function": "countdown"}],
    }

    def context(**evaluation: Any) -> int:
        recipe = load_recipe(None, sections=sections | {"evaluation": evaluation})
        assert isinstance(recipe, GRPORecipe)
        return recipe.max_model_len

    assert context() == context(max_completion_length=128) == 96  # nothing is held out
    assert context(num_problems=8, max_completion_length=128) == 32 + 128
    assert context(num_problems=8, max_completion_length=16) == 96
    assert context(num_problems=8, data={"task": "arithmetic"}) == 512 + 64
