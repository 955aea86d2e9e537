"""`grpo roofline`, printed."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grpo.estimate.layout.layout import gpus_of_servers, lay_out
from grpo.estimate.layout.lengths import FinishedRun, read_run
from grpo.estimate.machine import machine, machine_bandwidth, machine_flops
from grpo.estimate.models import Models, UnknownModelError
from grpo.estimate.roofline.floors import Part, parts, peak
from grpo.recipe.load import RecipeError
from grpo.report.terminal import PLAIN_WIDTH

ENVIRONMENT = "environment.json"


def show_roofline(folder: Path) -> list[Part]:
    """Print the parts of a run's mean step: their time, their share, their floor, and what bounds them.

    Raises:
        RecipeError: the folder is not that of a run with at least two rollouts, or its model is gone.
    """
    run = read_run(folder)
    processes = json.loads((folder / ENVIRONMENT).read_text())["num_processes"]
    device, memory, name = machine(processes)
    # Every process's share: on CPU they divide the cores, on GPUs each has one.
    share = processes if device == "cpu" else 1
    flops, bandwidth = machine_flops(run.recipe.model.dtype, 1) / share, machine_bandwidth() / share
    kind = peak(device, name, flops=flops, bandwidth=bandwidth, memory=memory)
    models = Models()
    try:
        # The processes of a run are its trainers.
        layout = lay_out(run.recipe, models, kind, processes + gpus_of_servers(run.recipe, models, kind))
    except UnknownModelError as error:
        raise RecipeError(f"model.{error} Its floor cannot be computed.") from None
    found = parts(run, layout)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    console = Console(highlight=False, soft_wrap=True, width=width)
    _print(console, run, found)
    console.print(
        f"Floors: {flops:.3g} FLOP/s ({run.recipe.model.dtype} matrix product) and {bandwidth:.3g} B/s (copy) per "
        f"process, measured here just now at a load of {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. If the run "
        "was elsewhere, or this machine is busy, they are not its floors."
    )
    return found


def verdict(found: Sequence[Part]) -> str:
    """What the largest part is bound by, as far as the numbers say."""
    whole = sum(part.seconds for part in found)
    largest = max(found, key=lambda part: part.seconds)
    share = f"{largest.name} is {largest.seconds / whole:.0%} of a step"
    if largest.floor is None:
        return f"{share} and has no floor: it is time that a faster device would not shorten."
    reached = largest.floor / largest.seconds
    if reached > 1:
        return f"{share} and faster than its floor: these peaks are not those of the machine it ran on."
    if reached >= 0.4:
        return f"{share} and reaches {reached:.0%} of its floor: it is bound by {largest.bound}."
    return (
        f"{share} and reaches {reached:.0%} of its floor: it is bound neither by FLOP/s nor by memory bandwidth, "
        "but by what the host does around small operations (or by others on the machine)."
    )


def _print(console: Console, run: FinishedRun, found: Sequence[Part]) -> None:
    steps = run.recipe.policy_gradient.steps_per_generation
    lengths, whole = run.lengths, sum(part.seconds for part in found)
    of = "a step" if steps == 1 else f"a rollout and its {steps} steps"
    console.print(
        f"{run.recipe.output_dir}: mean of {len(run.rows)} rollouts after the first, {lengths.prompt:,.0f} + "
        f"{lengths.completion:,.0f} tokens, {lengths.trained:.0%} of samples trained on.\n"
    )
    table = Table(box=None, pad_edge=False)
    for column in ("part", "seconds", f"of {of}", "floor", "floor / time", "floor set by"):
        table.add_column(column, justify="left" if column in ("part", "floor set by") else "right")
    for part in found:
        floor, reached = ("", "") if part.floor is None else (f"{part.floor:.3f}", f"{part.floor / part.seconds:.0%}")
        table.add_row(part.name, f"{part.seconds:.3f}", f"{part.seconds / whole:.1%}", floor, reached, part.bound)
    table.add_row("all", f"{whole:.3f}", "", "", "", "")
    console.print(table)
    beside = sum(part.seconds for part in found if part.name not in ("generate", "update"))
    console.print(f"\nAll but generate and update: {beside / whole:.1%} of {of}.\n{verdict(found)}")
