"""`grpo plan`, printed."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grpo.estimate.layout.advice import what_fits
from grpo.estimate.layout.gpus import GPUS, find_gpu
from grpo.estimate.layout.layout import Layout, lay_out
from grpo.estimate.layout.lengths import Lengths, full_length, read_run
from grpo.estimate.layout.phases import Phase, awaited, concurrent, overlap, phases
from grpo.estimate.memory import Parts
from grpo.estimate.models import Models, UnknownModelError
from grpo.estimate.shape import describe
from grpo.estimate.wording import count, duration, further, gib
from grpo.launch.processes import quieten
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.report.terminal import PLAIN_WIDTH
from rollout.support.names import nearest


def plan_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    gpus: int,
    gpu: str,
    completion: int | None = None,
    run: Path | None = None,
) -> Layout:
    """Print a recipe's layout, memory per GPU, time per step and bottleneck; without weights or data.

    gpu: a name of `GPUS`, or "cpu": processes on this machine.
    completion: mean tokens of a completion; run: a finished run that says it, and the share of samples trained on.

    Raises:
        RecipeError: the recipe is invalid, or the layout cannot be; with what would fit.
    """
    recipe = load_recipe(path, overrides)
    if not isinstance(recipe, OnPolicyRecipe):
        raise RecipeError(f"{path}: stage {recipe.stage} has no rollout to lay out. Plan stages grpo and opd.")
    if gpu not in (*GPUS, "cpu"):
        raise RecipeError(f"--gpu {gpu}: must be one of {', '.join(GPUS)}, cpu.{nearest(gpu, [*GPUS, 'cpu'])}")
    quieten()
    kind, models = find_gpu(gpu, gpus), Models()
    try:
        try:
            layout = lay_out(recipe, models, kind, gpus)
            excess = layout.excess()
        except RecipeError as error:
            layout, excess = None, str(error).rstrip(".")
        if layout is None or excess:
            better = what_fits(path, overrides, models, kind, gpus)
            raise RecipeError(f"{path} does not fit on {gpus} x {gpu}: {excess}. {better}")
    except UnknownModelError as error:
        raise RecipeError(f"model.{error}") from None
    lengths = read_run(run).lengths if run else full_length(recipe, completion)
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PLAIN_WIDTH
    _print(Console(highlight=False, soft_wrap=True, width=width), recipe, layout, lengths)
    return layout


def bottleneck(found: Sequence[Phase]) -> str:
    """One sentence or two: of the phases that make the step, the longest, what bounds it, what helps."""
    longest = max(found, key=lambda phase: phase.seconds)
    share = longest.seconds / sum(phase.seconds for phase in found)
    return f"Bottleneck: {longest.name} takes {share:.0%} of a step, bound by {longest.bound}. {longest.remedy}".strip()


def _print(console: Console, recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> None:
    shape, gpu = layout.shape, layout.gpu
    console.print(
        f"Model: {describe(shape.config)}; {count(shape.total)} parameters, {count(shape.active)} active"
        f"{further(shape.mtp)}\n"
    )
    console.print("\n".join(_lines(layout)) + "\n")
    _print_memory(console, f"A trainer's {gpu.name} (estimate)", layout.on_trainer, gpu.memory)
    if layout.servers:
        _print_memory(console, f"A server's {gpu.name} (estimate)", layout.on_server, gpu.memory)
    for part, size in layout.estimate.host.items():
        console.print(f"In host memory of each trainer: {part}, {gib(size)} GiB.")
    found = phases(recipe, layout, lengths)
    samples = recipe.rollout.problems_per_step * recipe.rollout.num_generations
    console.print(
        f"One step: {samples:,} samples of {lengths.prompt:,.0f} + {lengths.completion:,.0f} tokens (longest "
        f"{lengths.longest:,.0f}), {lengths.trained:.0%} of them trained on; an engine decodes up to "
        f"{concurrent(recipe, layout, lengths):,.0f} sequences at once."
    )
    step = awaited(found, overlap=overlap(recipe, layout))
    _print_phases(console, found, sum(phase.seconds for phase in step), samples * lengths.completion)
    if overlap(recipe, layout):
        console.print(_waiting(recipe.rollout.max_staleness, found, step))
    console.print(bottleneck(step))
    around = f" (with {gpu.elementwise:.0f} FLOPs per byte kept for backward)" if gpu.elementwise else ""
    console.print(
        f"Assumed: {gpu.update:.0%} of {gpu.flops:.3g} FLOP/s in the update{around}, "
        f"{gpu.prefill:.0%} without gradient, "
        f"{gpu.decode:.0%} of {gpu.bandwidth:.3g} B/s of memory, {gpu.links:.0%} of {gpu.link:.3g} B/s within a "
        f"machine and {gpu.network:.3g} between machines. Not counted: rewards, teachers, evaluations, checkpoints."
    )


def _lines(layout: Layout) -> list[str]:
    gpu, machine = layout.gpu, layout.gpu.per_machine
    unit = "processes on this machine" if gpu.device == "cpu" else f"x {gpu.name}"
    held = f"{layout.replicas} x fsdp2 over {layout.shards}" if layout.shards > 1 else "each with the whole policy"
    lines = [f"{layout.gpus} {unit}", f"  {layout.trainers} trainers, {held}"]
    if layout.shards > machine:
        lines[-1] += f", across {-(-layout.shards // machine)} machines of {machine}"
    if not layout.servers:
        return [*lines, "  an engine in every trainer"]
    size = f"of {layout.server_gpus} GPUs" if layout.server_gpus > 1 else "of one GPU"
    lines.append(f"  {layout.servers} servers {size}")
    if layout.server_gpus > 1:
        options = f"--tensor-parallel-size {layout.server_gpus}"
        if getattr(layout.shape.config, "num_experts_per_tok", None):
            options += f" --enable-expert-parallel: each holds 1/{layout.server_gpus} of the experts"
        lines[-1] += f", {options}"
    if layout.server_gpus > machine:
        lines[-1] += f", across {layout.server_gpus // machine} machines"
    return lines


def _print_memory(console: Console, title: str, parts: Parts, memory: int) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size in parts.items():
        table.add_row(part, gib(size))
    table.add_row("total", gib(sum(parts.values())))
    table.add_row("of", gib(memory))
    console.print(table)
    console.print()


def _waiting(max_staleness: int, found: Sequence[Phase], step: Sequence[Phase]) -> str:
    """Who waits for whom when sampling runs beside the update."""
    sampling, *training, _ = (phase.seconds for phase in found)
    whole = sum(phase.seconds for phase in step)
    waiting, idle = (
        ("trainers", sampling - sum(training)) if step[0] is found[0] else ("servers", sum(training) - sampling)
    )
    return (
        f"With max_staleness={max_staleness} sampling runs beside the update: a step takes the longer of both, and "
        f"sync. The {waiting} wait for {idle / whole:.0%} of it."
    )


def _print_phases(console: Console, found: Sequence[Phase], whole: float, tokens: float) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("phase", "time per step", "share", "sampled tokens/s", "bound by"):
        table.add_column(column, justify="left" if column in ("phase", "bound by") else "right")
    for phase in found:
        if phase.seconds > 0:
            share, speed = f"{phase.seconds / whole:.0%}", f"{tokens / phase.seconds:,.0f}"
            table.add_row(phase.name, _time(phase.seconds), share, speed, phase.bound)
    table.add_row("step", _time(whole), "", f"{tokens / whole:,.0f}", "")
    console.print(table)
    console.print()


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{seconds:.2g} seconds"
