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
from grpo.stages.pipeline.graph import BASE, PREFIX, Node, unresolved


def show_pipeline(console: Console, nodes: list[Node], base: str, num_processes: int) -> bool:
    """Print every stage's inputs, memory, FLOPs and time; returns False if one does not fit this machine.

    Raises:
        RecipeError: a local model's configuration cannot be read.
    """
    results = unresolved(base, [node.name for node in nodes])
    recipes = {node.name: node.recipe(results) for node in nodes}
    models = Models(recipes)
    device, available, memory = machine(num_processes)
    found: dict[str, Estimate] = {}
    notes: dict[str, list[str]] = {}  # a remark -> the stages it is about
    for node in nodes:
        try:
            one = _estimate(node.name, recipes[node.name], models, device, num_processes)
        except UnknownModelError as error:
            notes.setdefault(f"{error} What it needs is not known before that model is there.", []).append(node.name)
            continue
        if one is not None:
            found[node.name] = one
            for note in one.notes:
                notes.setdefault(note, []).append(node.name)
    console.print()
    console.print(_table(nodes, found, num_processes))
    console.print()
    for note, names in notes.items():
        console.print(f"{', '.join(names)}: {note}")
    if not found:
        return True
    for dtype in sorted({one.dtype for one in found.values()}):
        console.print(assumed_speed(dtype, num_processes))
    console.print(
        "GiB: one process, estimated. FLOP: an upper limit, with every step done and every text at full length; time "
        f"is for all of it. Not counted: {NOT_COUNTED}."
    )
    too_large = [name for name, one in found.items() if one.memory > available]
    if too_large:
        console.print(f"Do NOT fit in {gib(available)} GiB ({memory}): {', '.join(too_large)}.")
    else:
        console.print(f"All that is known fits in {gib(available)} GiB ({memory}).")
    return not too_large


def _table(nodes: list[Node], found: dict[str, Estimate], num_processes: int) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "stage", "reads"):
        table.add_column(title)
    for title in ("GiB", "FLOP", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    flops = seconds = 0.0
    for node in nodes:
        one = found.get(node.name)
        table.add_row(node.name, node.stage, ", ".join(_reads(node)), *_needs(one, num_processes))
        if one and one.flops is not None:
            flops += one.flops
            seconds += one.seconds(num_processes) or 0.0
    if flops:
        table.add_row("all that is known", "", "", "", f"{flops:.1e}", duration(seconds))
    return table


def _estimate(name: str, recipe: StageRecipe, models: Models, device: str, num_processes: int) -> Estimate | None:
    try:
        check_world(recipe, num_processes)
        return estimate_stage(recipe, models, device=device, num_processes=num_processes)
    except UnknownModelError:
        raise
    except (RunError, ValueError) as error:
        raise RecipeError(f"stages.{name}: {error}") from None


def _reads(node: Node) -> list[str]:
    """Its inputs, the model it starts from before the others."""
    start = node.values.get("model", {}).get("model_name_or_path", "").removeprefix(PREFIX)
    return list(dict.fromkeys([*([start] if start in (BASE, *node.inputs) else []), *node.inputs]))


def _needs(found: Estimate | None, num_processes: int) -> tuple[str, str, str]:
    """Memory, FLOPs and time as cells of the table."""
    if found is None:
        return "?", "?", "?"
    seconds = found.seconds(num_processes)
    if found.flops is None or seconds is None:
        return gib(found.memory), "?", "?"
    return gib(found.memory), f"{found.flops:.1e}", duration(seconds)
