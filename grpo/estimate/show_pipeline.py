"""`grpo check` on a pipeline: its graph with a line per stage, in the order they run."""

from rich.console import Console
from rich.table import Table

from grpo.estimate.machine import machine
from grpo.estimate.models import Models, UnknownModelError
from grpo.estimate.stage import Estimate, estimate_stage
from grpo.estimate.wording import NOT_COUNTED, assumed_speed, duration, gib
from grpo.recipe.errors import RunError
from grpo.recipe.load import RecipeError
from grpo.recipe.record import check_world
from grpo.recipe.section import StageRecipe
from grpo.stages.pipeline.graph import BASE, Node, unresolved


def show_pipeline(console: Console, nodes: list[Node], base: str, num_processes: int) -> bool:
    """Print every stage's inputs, memory, FLOPs and time; returns False if one does not fit this machine.

    Raises:
        RecipeError: a local model's configuration cannot be read.
    """
    results = unresolved(base, [node.name for node in nodes])
    recipes = {node.name: node.recipe(results) for node in nodes}
    models = Models(recipes)
    device, available, name = machine(num_processes)
    table = Table(box=None, pad_edge=False)
    for title in ("stage", "runs", "reads"):
        table.add_column(title)
    for title in ("GiB", "FLOP", "time"):
        table.add_column(title, justify="right")
    too_large, notes, speeds = [], [], dict[str, str]()
    for node in nodes:
        try:
            found = _estimate(node.name, recipes[node.name], models, device, num_processes)
        except UnknownModelError as error:
            found = None
            notes.append(f"{node.name}: {error} Its needs are not known before that model is there.")
        table.add_row(node.name, node.stage, ", ".join(_reads(node)), *_needs(found, num_processes))
        if found is None:
            continue
        notes += [f"{node.name}: {note}" for note in found.notes]
        if found.update_flops is None:
            notes.append(f"{node.name}: its FLOPs depend on how many rows its data has (data.max_rows, max_steps).")
        too_large += [node.name] if found.memory > available else []
        speeds[found.dtype] = assumed_speed(found.dtype, num_processes)
    console.print()
    console.print(table)
    console.print()
    for line in [*notes, *speeds.values()]:
        console.print(line)
    console.print(
        "GiB: one process, estimated. FLOP: an upper limit, with every step done and every text at full length; time is "
        f"for all of it. Not counted: {NOT_COUNTED}."
    )
    if too_large:
        console.print(f"Do NOT fit in {gib(available)} GiB ({name}): {', '.join(too_large)}.")
    else:
        console.print(f"All that is known fits in {gib(available)} GiB ({name}).")
    return not too_large


def _estimate(name: str, recipe: StageRecipe, models: Models, device: str, num_processes: int) -> Estimate | None:
    try:
        check_world(recipe, num_processes)
        return estimate_stage(recipe, models, device=device, num_processes=num_processes)
    except RunError as error:
        raise RecipeError(f"stages.{name}: {error}") from None


def _reads(node: Node) -> list[str]:
    model = node.values.get("model")
    from_base = isinstance(model, dict) and model.get("model_name_or_path") == BASE
    return [*([BASE] if from_base else []), *node.inputs]


def _needs(found: Estimate | None, num_processes: int) -> tuple[str, str, str]:
    """Memory, FLOPs and time as cells of the table."""
    if found is None:
        return "?", "?", "?"
    seconds = found.seconds(num_processes)
    if found.update_flops is None or seconds is None:
        return gib(found.memory), "?", "?"
    return gib(found.memory), f"{found.sampling_flops + found.update_flops:.1e}", duration(seconds)
