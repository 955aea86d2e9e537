"""A pipeline's graph and ledger: what is refused, in which order stages run, and what runs again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.stages.pipeline import PipelineRecipe
from grpo.stages.pipeline.graph import Node, build_graph, selected
from grpo.stages.pipeline.ledger import Entry, Ledger, expected, set_aside

RL: dict[str, Any] = {
    "stage": "grpo",
    "from": "base",
    "data": {"task": "countdown"},
    "rewards": [{"function": "countdown"}],
}
SET: dict[str, Any] = {"data": {"task": "countdown"}, "rewards": [{"function": "countdown"}]}


def pipeline(stages: dict[str, Any], **values: Any) -> PipelineRecipe:
    recipe = load_recipe(None, sections={"stage": "pipeline", "base": "v3", "output": "r1", "stages": stages, **values})
    assert isinstance(recipe, PipelineRecipe)
    return recipe


def names(recipe: PipelineRecipe) -> list[str]:
    return [node.name for node in build_graph(recipe)]


def test_inputs_come_first_and_ties_keep_the_recipes_order() -> None:
    stages = {"late": {**RL, "from": "early"}, "other": RL, "early": RL}
    assert names(pipeline(stages)) == ["other", "early", "late"]


def test_a_stage_starts_from_its_inputs_folder_and_gets_folder_and_seed() -> None:
    stages = {"one": RL, "two": {**RL, "from": "one", "trainer": {"seed": 7}}}
    one, two = build_graph(pipeline(stages, seed=43))
    results = {"base": "v3", "one": "r1/one/checkpoint-9"}
    recipes: list[Any] = [one.recipe(results), two.recipe(results, resume=True)]
    assert [recipe.model.model_name_or_path for recipe in recipes] == ["v3", "r1/one/checkpoint-9"]
    assert [recipe.trainer.output_dir for recipe in recipes] == ["r1/one", "r1/two"]
    assert [recipe.trainer.seed for recipe in recipes] == [43, 7]
    assert [recipe.trainer.resume_from_checkpoint for recipe in recipes] == [False, True]


@pytest.mark.parametrize("stage", ["grpo", "rejection"])
def test_a_seed_in_the_file_that_a_stage_extends_is_kept(stage: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("trainer: {seed: 7}\n" if stage == "grpo" else "seed: 7\n")
    stages = {"own": {**RL, "stage": stage, "extends": str(own)}, "shared": {**RL, "stage": stage}}
    recipes: list[Any] = [node.recipe({"base": "v3"}) for node in build_graph(pipeline(stages, seed=43))]
    assert [recipe.trainer.seed if stage == "grpo" else recipe.seed for recipe in recipes] == [7, 43]


def test_an_evaluation_follows_its_model_once_its_rewards_inputs_are_there() -> None:
    judged = {**SET, "rewards": [{"function": "reward_model", "options": {"model_name_or_path": "stage:two"}}]}
    stages = {"one": RL, "two": {**RL, "from": "one"}}
    plain = pipeline(stages, evaluation={"sets": {"maths": SET}})
    assert names(plain) == ["base (evaluation)", "one", "one (evaluation)", "two", "two (evaluation)"]
    late = pipeline(stages, evaluation={"sets": {"maths": judged}})
    assert names(late) == ["one", "two", "base (evaluation)", "one (evaluation)", "two (evaluation)"]


def test_from_and_until_choose_a_part_with_its_evaluations() -> None:
    stages = {"one": RL, "two": {**RL, "from": "one"}, "three": {**RL, "from": "two"}}
    nodes = build_graph(pipeline(stages, evaluation={"sets": {"maths": SET}}))
    assert selected(nodes, "two", "two") == {"two", "two (evaluation)"}
    assert selected(nodes, None, "one") == {"base (evaluation)", "one", "one (evaluation)"}
    assert selected(nodes, "three", None) == {"three", "three (evaluation)"}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            {"rl": {**RL, "from": "cold_strat"}, "cold_start": RL},
            r"stages.rl: reads from 'cold_strat', which is not a stage of this pipeline. Did you mean 'cold_start'\?",
        ),
        (
            {"a": {**RL, "from": "b"}, "b": {**RL, "from": "a"}},
            r"stages: a reads from b; b reads from a: a cycle, so none of them can start.",
        ),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": SET}}, "rl": {**RL, "from": "checked"}},
            r"stages.rl.from='checked': starts from a model, and stage 'checked' makes metrics.",
        ),
        (
            {"rl": {**RL, "model": {"model_name_or_path": "v4"}}},
            r"stages.rl: has both from='base' and model.model_name_or_path='v4', which name different models.",
        ),
        ({"rl": {**RL, "stage": "grop"}}, r"stages.rl.stage='grop': must be one of .* Did you mean 'grpo'\?"),
        ({"maths": {"stage": "eval"}}, r"stages.maths.stage='eval': a pipeline evaluates .* on evaluation.sets. Name"),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": SET}, "rollout": {"engine": "server"}}},
            r"rollout.engine.* engine 'server' serves its own model. Use vllm, hf.",
        ),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": SET}, "rollout": {"temperature": 0.0}}},
            r"num_samples=4 at temperature=0: greedy decoding gives the same completion every time. Set num_samples=1",
        ),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": SET}, "rollout": {"max_model_len": 600}}},
            r"rollout.max_model_len=600: the engine's context must hold the longest prompt and completion, 1024 to",
        ),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": {**SET, "reward": "countdwn"}}}},
            r"sets.x: reward='countdwn': must be one of the set's rewards, countdown. Did you mean 'countdown'\?",
        ),
        (
            {"checked": {"stage": "held_out", "from": "base", "sets": {"x": {**SET, "rewards": SET["rewards"] * 2}}}},
            r"sets.x: rewards: 'countdown' is listed 2 times, but names must be unique.",
        ),
        ({"rl": {**RL, "trainer": {"max_step": 3}}}, r"stages.rl:\n  - trainer.max_step: unknown key"),
        (
            {"rl": {**RL, "model": {"lora": {}}}, "more": {**RL, "from": "rl"}},
            r"stages.rl.model.lora: the stage writes adapters, and more needs a whole model. Remove lora, or end the",
        ),
    ],
)
def test_a_wrong_graph_is_refused_before_anything_runs(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_graph(pipeline(stages))


def test_a_pipelines_evaluation_has_the_rules_of_the_stage() -> None:
    gated = {**SET, "rewards": [{"function": "countdown", "requires": "format"}]}
    with pytest.raises(
        RecipeError, match=r"evaluation.sets.maths: rewards: 'countdown' requires 'format', which is not"
    ):
        pipeline({"one": RL}, evaluation={"sets": {"maths": gated}})
    with pytest.raises(RecipeError, match=r"evaluation: rollout.max_model_len=600: .* 1024 tokens"):
        pipeline({"one": RL}, evaluation={"sets": {"maths": SET}, "rollout": {"max_model_len": 600}})


def test_adapters_end_a_pipeline_and_are_not_evaluated() -> None:
    stages = {"first": RL, "rl": {**RL, "from": "first", "model": {"lora": {}}}}
    assert names(pipeline(stages)) == ["first", "rl"]
    with pytest.raises(
        RecipeError, match=r"stages.rl.model.lora: the stage writes adapters, and rl \(evaluation\) needs"
    ):
        build_graph(pipeline(stages, evaluation={"sets": {"maths": SET}}))


def test_a_change_reaches_everything_made_from_it(tmp_path: Path) -> None:
    def entries(steps: int, **more: Any) -> dict[str, Any]:
        stages = {"one": {**RL, "trainer": {"max_steps": steps, **more}}, "two": {**RL, "from": "one"}, "apart": RL}
        found: dict[str, Any] = {}
        for node in build_graph(pipeline(stages)):
            found[node.name] = expected(node, "v3", {name: entry.identity for name, entry in found.items()})
        return found

    before, same, after = entries(30), entries(30, num_reward_workers=4, save_steps=5), entries(50)
    assert {name: entry.identity for name, entry in same.items()} == {n: e.identity for n, e in before.items()}
    assert after["one"].changes(before["one"]) == ["trainer.max_steps was 30, now 50"]
    assert after["two"].changes(before["two"]) == ["its input one"]
    assert after["apart"].identity == before["apart"].identity
    # A key that a later version adds, null by default, makes no result another one.
    assert "null" not in before["one"].values.values()

    (node,) = build_graph(pipeline({"one": RL}))
    ledger = Ledger(tmp_path)
    assert ledger.read(node) is None
    ledger.write(node, before["one"])
    assert ledger.read(node) == before["one"]


def test_free_settings_are_free_in_their_place_alone() -> None:
    """A set may be called `report` and a column `output`: a change of these is one."""

    def entry(problems: int, column: str) -> Entry:
        data = {"dataset_name": "d.jsonl", "columns": {"output": column}}
        sets = {"report": {**SET, "data": data, "num_problems": problems}}
        (node,) = build_graph(pipeline({"checked": {"stage": "held_out", "from": "base", "sets": sets}}))
        return expected(node, "v3", {})

    assert len({entry(8, "a").identity, entry(9, "a").identity, entry(8, "b").identity}) == 3


def test_a_stage_that_cannot_resume_starts_in_a_new_folder() -> None:
    stages = {"rl": RL, "checked": {"stage": "held_out", "from": "rl", "sets": {"x": SET}}}
    kept = {"stage": "rejection", "from": "rl", "data": {"task": "countdown"}, "rewards": RL["rewards"]}
    rl, checked, rejection = build_graph(pipeline(stages | {"kept": {**kept, "resume": False}}))
    assert (rl.resumes, checked.resumes, rejection.resumes) == (True, False, True)
    found: Any = rejection.recipe({"base": "v3", "rl": "runs/rl"}, resume=True)
    assert found.resume is True


def test_the_first_stage_must_not_come_after_the_last() -> None:
    nodes = build_graph(pipeline({"one": RL, "two": {**RL, "from": "one"}, "three": {**RL, "from": "two"}}))
    with pytest.raises(RecipeError, match=r"--from two --until one: one comes before two\. Exchange them\."):
        selected(nodes, "two", "one")


def test_a_stage_goes_on_in_its_folder_if_it_allows_the_change() -> None:
    before = Entry({"filters": "[]", "seed": "42"}, {"rl": "3f9c"}, None)
    done = replace(before, result="runs/kept")
    filtered = replace(before, values={**before.values, "filters": "[1]", "select.order": "random"})
    allowed = ("filters", "select")
    assert before.continues(before, allowed) and filtered.continues(before, allowed)
    assert filtered.continues(done, allowed) and not filtered.continues(done, ())
    assert not before.continues(done, allowed)  # nothing changed: its folder is gone
    assert not replace(filtered, inputs={"rl": "77ab"}).continues(done, allowed)
    assert not replace(before, values={**before.values, "seed": "43"}).continues(done, allowed)


def test_an_unfinished_stage_goes_on_with_what_a_run_of_its_own_may_always_change() -> None:
    def entry(**trainer: Any) -> Entry:
        (node,) = build_graph(pipeline({"rl": {**RL, "trainer": trainer}}))
        return expected(node, "v3", {})

    begun = entry()
    done = replace(begun, result="r1/rl/checkpoint-100")
    for change in ({"max_tokens_per_micro_batch": 4096}, {"gradient_checkpointing": True}, {"max_steps": 200}):
        assert entry(**change).continues(begun, ()) and not entry(**change).continues(done, ())
    faster = entry(learning_rate=1e-4, allow_changes=["trainer.learning_rate"])
    assert faster.continues(begun, ["trainer.learning_rate"]) and not faster.continues(begun, ())
    assert faster.changes(begun) == ["trainer.learning_rate was 1e-06, now 0.0001"]


def test_room_for_the_engine_makes_no_result_another_one() -> None:
    def identity(**rollout: Any) -> str:
        (node,) = build_graph(pipeline({"rl": {**RL, "rollout": {"engine": "server", **rollout}}}))
        return expected(node, "v3", {}).identity

    urls = [{"servers": {"urls": [f"http://{machine}:8000/v1"]}} for machine in ("one", "two")]
    assert identity(**urls[0]) == identity(**urls[1], max_model_len=4096) != identity(**urls[0], temperature=0.5)


def test_what_a_recipe_file_extends_counts(tmp_path: Path) -> None:
    def write(steps: int) -> list[Node]:
        (tmp_path / "deepest.yaml").write_text(f"trainer: {{max_steps: {steps}}}\nmodel: {{dtype: bfloat16}}\n")
        (tmp_path / "deep.yaml").write_text("extends: deepest.yaml\n")
        stages = {"one": {**RL, "extends": str(tmp_path / "deep.yaml")}}
        return build_graph(pipeline(stages, evaluation={"sets": {"maths": SET}}))

    base, before, evaluation = write(30)
    assert [node.values["model"].get("dtype") for node in (base, evaluation)] == [None, "bfloat16"]
    _, after, _ = write(50)
    assert expected(after, "v3", {}).changes(expected(before, "v3", {})) == []  # both read the file as it is now
    first = expected(before, "v3", {})
    write(30)
    assert first.changes(expected(before, "v3", {})) == ["trainer.max_steps was 30, now 50"]


def test_an_earlier_folder_is_kept_under_another_name(tmp_path: Path) -> None:
    assert set_aside(tmp_path / "rl") is None
    for number in (1, 2):
        (tmp_path / "rl").mkdir()
        assert set_aside(tmp_path / "rl") == tmp_path / f"rl.previous-{number}"
