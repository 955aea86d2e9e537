"""A pipeline's stages as a graph: every recipe checked, every reference resolved, in the order they run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.registry import STAGES
from grpo.recipe.section import StageRecipe
from grpo.recipe.stages.pipeline import PipelineRecipe
from rollout.support.names import nearest

BASE = "base"
PREFIX = "stage:"  # "stage:NAME" in a recipe is the folder that stage NAME wrote
EVALUATION = " (evaluation)"  # "NAME (evaluation)" is the node that evaluates stage NAME


@dataclass(frozen=True, slots=True)
class Node:
    """One stage of the graph.

    Node("cold_start", "sft", {"model": {"model_name_or_path": "base"}, …}, inputs=("cold_start_data",), folder=Path(…))
    """

    name: str
    stage: str  # a key of STAGES
    values: dict[str, Any]  # its recipe as a mapping; references are not resolved
    extends: str | None  # a recipe file that `values` are merged over
    inputs: tuple[str, ...]  # nodes whose folders it reads
    folder: Path
    seed: int  # where its recipe sets none

    @property
    def makes_model(self) -> bool:
        return STAGES[self.stage].makes == "a model"

    @property
    def is_evaluation(self) -> bool:
        return self.name.endswith(EVALUATION)

    @property
    def resumes(self) -> bool:
        """Whether an interrupted run goes on in its folder."""
        return bool(STAGES[self.stage].resume)

    def recipe(self, results: Mapping[str, str], *, resume: bool = False) -> StageRecipe:
        """Its recipe, with the folders that its inputs wrote.

        Raises:
            RecipeError: lists every error.
        """
        values = _resolved(self.values, results)
        if resume:
            section, _, key = STAGES[self.stage].resume.rpartition(".")
            values |= {section: {**(values.get(section) or {}), key: True}} if section else {key: True}
        try:
            return _seeded(load_recipe(self.extends, sections=values).in_folder(self.folder), self.seed)
        except RecipeError as error:
            _, _, lines = str(error).partition("\n")
            raise RecipeError(f"stages.{self.name}:\n{lines or error}") from None


def build_graph(pipeline: PipelineRecipe) -> list[Node]:
    """The stages in an order in which every input comes first; ties in the order of the recipe.

    Each stage that makes a model is followed by a node that evaluates it, as soon as what its rewards need is there.

    Raises:
        RecipeError: a recipe is invalid, a reference is unknown or of the wrong kind, the stages form a cycle, or one
            would read adapters.
    """
    nodes = {name: _node(pipeline, name, dict(values)) for name, values in pipeline.stages.items()}
    for node in nodes.values():
        for name in node.inputs:
            if name not in nodes:
                raise RecipeError(
                    f"stages.{node.name}: reads from {name!r}, which is not a stage of this pipeline."
                    f"{nearest(name, nodes)} Stages: {', '.join(nodes)}."
                )
        source = pipeline.stages[node.name].get("from", BASE)
        if source in nodes and not nodes[source].makes_model:
            raise RecipeError(
                f"stages.{node.name}.from={source!r}: starts from a model, and stage {source!r} makes "
                f"{STAGES[nodes[source].stage].makes}. Name a stage that trains one, or base."
            )
    for limit, name in (("first", pipeline.first), ("last", pipeline.last)):
        if name is not None and name not in nodes:
            raise RecipeError(f"{limit}={name!r}: not a stage of this pipeline.{nearest(name, nodes)}")
    ordered = _ordered(nodes)
    recipes = {node.name: node.recipe(unresolved(pipeline.base, nodes)) for node in ordered}
    evaluations = []
    if pipeline.evaluation.sets:
        evaluations.append(_evaluation(pipeline, BASE, {"model_name_or_path": BASE}))
        for node in ordered:
            if node.makes_model:
                model: Any = recipes[node.name].model_dump(mode="json").get("model", {})
                settings = {key: model[key] for key in ("dtype", "trust_remote_code") if key in model}
                evaluations.append(
                    _evaluation(pipeline, node.name, {"model_name_or_path": PREFIX + node.name, **settings})
                )
    for node in evaluations:
        node.recipe(unresolved(pipeline.base, nodes))
    for node in [*ordered, *evaluations]:
        for name in node.inputs:
            _check_whole(name, recipes[name], read_by=node.name)
    return _interleaved([*ordered, *evaluations])


def unresolved(base: str, names: Iterable[str]) -> dict[str, str]:
    """Results that stand for themselves: every stage's is its own reference."""
    return {BASE: base, **{name: PREFIX + name for name in names}}


def selected(nodes: list[Node], first: str | None, last: str | None) -> set[str]:
    """The nodes from `first` to `last` in their order, evaluations included."""
    names = [node.name for node in nodes]
    start = 0 if first is None else names.index(first)
    stages = [name for name in names if not name.endswith(EVALUATION)]
    if last is None or last == stages[-1]:
        return set(names[start:])
    if first is not None and stages.index(first) > stages.index(last):
        raise RecipeError(f"--from {first} --until {last}: {last} comes before {first}. Exchange them.")
    following = stages[stages.index(last) + 1]
    return set(names[start : names.index(following)])


def _node(pipeline: PipelineRecipe, name: str, values: dict[str, Any]) -> Node:
    extends, source = values.pop("extends", None), values.pop("from", None)
    if source is not None:
        reference = source if source == BASE else PREFIX + str(source)
        model = dict(values.get("model") or {})
        if "model_name_or_path" in model:
            raise RecipeError(
                f"stages.{name}: has both from={source!r} and model.model_name_or_path="
                f"{model['model_name_or_path']!r}, which name different models. Remove one of them."
            )
        values["model"] = {"model_name_or_path": reference, **model}
    stage = values.get("stage") or (str(load_recipe(extends).stage) if extends else "grpo")
    known = [other for other in STAGES if other not in ("pipeline", "eval")]
    if stage == "eval":
        raise RecipeError(
            f"stages.{name}.stage='eval': a pipeline evaluates its models on evaluation.sets. Name the sets there, or "
            "run grpo eval on the models afterwards."
        )
    if stage not in known:
        raise RecipeError(
            f"stages.{name}.stage={stage!r}: must be one of {', '.join(known)}.{nearest(str(stage), known)}"
        )
    values["stage"] = stage
    inputs = tuple(dict.fromkeys(_references(values)))
    return Node(name, stage, values, extends, inputs, pipeline.output_dir / name, pipeline.seed)


def _evaluation(pipeline: PipelineRecipe, name: str, model: dict[str, Any]) -> Node:
    """The node that evaluates the model of a stage, or the base."""
    settings = pipeline.evaluation.model_dump(mode="json")
    values = {"stage": "held_out", "model": model, **settings}
    inputs = tuple(dict.fromkeys(_references(values)))
    folder = pipeline.output_dir / "evaluation" / name
    return Node(name + EVALUATION, "held_out", values, None, inputs, folder, pipeline.seed)


def _check_whole(name: str, recipe: StageRecipe, *, read_by: str) -> None:
    """Refuse a stage that writes adapters if another one reads them."""
    if isinstance(recipe, OnPolicyRecipe) and recipe.model.lora is not None:
        raise RecipeError(
            f"stages.{name}.model.lora: the stage writes adapters, and {read_by} needs a whole model. Remove lora, or "
            "end the pipeline there, without evaluation.sets, and go on from what `grpo merge` makes of them."
        )


def _references(values: Any) -> Iterator[str]:
    """The stages named as "stage:NAME" anywhere in a value."""
    if isinstance(values, Mapping):
        for value in values.values():
            yield from _references(value)
    elif isinstance(values, list):
        for value in values:
            yield from _references(value)
    elif isinstance(values, str) and values.startswith(PREFIX):
        yield values.removeprefix(PREFIX)


def _resolved(values: Any, results: Mapping[str, str]) -> Any:
    if isinstance(values, Mapping):
        return {
            key: results[BASE] if key == "model_name_or_path" and value == BASE else _resolved(value, results)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [_resolved(value, results) for value in values]
    if isinstance(values, str) and values.startswith(PREFIX):
        return results[values.removeprefix(PREFIX)]
    return values


def _seeded(recipe: StageRecipe, seed: int) -> StageRecipe:
    """The recipe with this seed, unless it sets one."""
    section: Any = getattr(recipe, "trainer", recipe)
    if "seed" in section.model_fields_set:
        return recipe
    seeded = section.model_copy(update={"seed": seed})
    return seeded if section is recipe else recipe.model_copy(update={"trainer": seeded})


def _ordered(nodes: Mapping[str, Node]) -> list[Node]:
    done: list[Node] = []
    waiting = list(nodes.values())
    while waiting:
        names = {node.name for node in done}
        ready = next((node for node in waiting if names.issuperset(node.inputs)), None)
        if ready is None:
            raise RecipeError(
                "stages: " + "; ".join(f"{node.name} reads from {', '.join(node.inputs)}" for node in waiting) + ": "
                "a cycle, so none of them can start. Remove one of these references."
            )
        waiting.remove(ready)
        done.append(ready)
    return done


def _interleaved(nodes: list[Node]) -> list[Node]:
    """The stages, each followed by the evaluations that can run once it has finished."""
    stages = [node for node in nodes if not node.is_evaluation]
    left = [node for node in nodes if node.is_evaluation]
    order: list[Node] = []
    for stage in [None, *stages]:
        order += [stage] if stage else []
        names = {node.name for node in order}
        ready = [node for node in left if names.issuperset(node.inputs)]
        order += ready
        left = [node for node in left if node not in ready]
    return order
