"""`grpo check` on a single stage."""

from rich.console import Console
from rich.table import Table

from grpo.estimate.machine import machine
from grpo.estimate.memory import caches_latents, shardable
from grpo.estimate.models import Models, UnknownModelError
from grpo.estimate.shape import BYTES, describe, kv_bytes_per_token
from grpo.estimate.stage import Estimate, estimate_stage
from grpo.estimate.wording import NOT_COUNTED, assumed_speed, count, duration, further, gib
from grpo.estimate.work import Generation
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.section import StageRecipe


def show_stage(console: Console, recipe: StageRecipe, num_processes: int) -> bool:
    """Print a stage's parameters, memory by part, tokens and FLOPs; returns False if it does not fit this machine."""
    device, available, name = machine(num_processes)
    try:
        found = estimate_stage(recipe, Models(), device=device, num_processes=num_processes)
    except UnknownModelError as error:
        console.print(f"model.{error} Its memory and FLOPs cannot be estimated.")
        return True
    if found is None:
        return True
    shape = found.shape
    console.print(f"\nModel: {describe(shape.config)}")
    trained = f", {count(shape.trained)} trained" if shape.trained < shape.total else ""
    console.print(
        f"Parameters: {count(shape.total)} total, {count(shape.active)} active per token{trained}{further(shape.mtp)}\n"
    )
    _print_memory(console, found, available, name)
    if found.work.generation:
        _print_cache(console, found.work.generation, found, device)
    fits = found.memory <= available
    console.print("It fits.\n" if fits else _advice(found, available) + "\n")
    if isinstance(recipe, OnPolicyRecipe):
        _print_step(console, recipe, found)
    _print_whole(console, found, num_processes)
    return fits


def _print_memory(console: Console, found: Estimate, available: int, name: str) -> None:
    table = Table(title="Memory per process (estimate)", title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size in found.parts.items():
        table.add_row(part, gib(size))
    table.add_row("total", gib(found.memory))
    table.add_row(f"available ({name})", gib(available))
    for part, size in found.host.items():
        table.add_row(f"in host memory: {part}", gib(size))
    console.print(table)
    if training := found.work.training:
        console.print(f"Activations are for a micro-batch of {training.rows} x {training.length} tokens.")
    for note in found.notes:
        console.print(note)


def _advice(found: Estimate, available: int) -> str:
    parts, state = found.parts, shardable(found.parts)
    rest = found.memory - state
    largest = max(parts, key=lambda part: parts[part])
    text = f"Does NOT fit: {gib(found.memory)} GiB of {gib(available)}. The largest part is {largest}.\n"
    if state <= available:
        if found.work.training:
            text += "Set trainer.gradient_checkpointing=true, or make micro-batches smaller (one full text must fit). "
        return text + ("Shrink the KV cache." if found.work.generation else "")
    shards = -(-state // (available - rest if rest < available else available))
    held = "weights, gradients, optimizer and engine take" if found.work.training else "the weights take"
    text += (
        f"One process cannot hold it: {held} {gib(state)} GiB and would need to be sharded over at least {shards} such "
        "processes. Processes are data-parallel: each holds it all, unless trainer.sharding=fsdp2 divides what stages "
        "grpo and opd train (docs/scale.md)."
    )
    if rest >= available:
        text += f" The {gib(rest)} GiB of activations and caches would still not fit: shorten the texts too."
    return text


def _print_cache(console: Console, generation: Generation, found: Estimate, device: str) -> None:
    config, width = found.shape.config, BYTES[found.dtype]
    compressed = caches_latents(generation.engine, config, device)
    per_token = kv_bytes_per_token(config, width, compressed=compressed)
    sequence = per_token * generation.context / 2**20
    line = f"KV cache: {per_token:,} bytes per token, {sequence:,.1f} MiB per full sequence"
    if getattr(config, "kv_lora_rank", None):
        other = kv_bytes_per_token(config, width, compressed=not compressed)
        line += f" ({'uncompressed' if compressed else 'as MLA latents'}: {other:,} bytes)"
    console.print(line + ".")
    if generation.engine == "vllm" and device == "cpu":
        size = generation.section.kv_cache_gib
        held = size * 2**30 / (per_token * generation.context)
        console.print(f"rollout.kv_cache_gib={size:g} holds {held:,.1f} full sequences.")


def _print_step(console: Console, recipe: OnPolicyRecipe, found: Estimate) -> None:
    rollout, steps = recipe.rollout, recipe.trainer.max_steps
    samples = rollout.problems_per_step * rollout.num_generations
    tokens = samples * (recipe.data.max_prompt_length + rollout.max_completion_length)
    assert found.update_flops is not None
    console.print(
        f"One step: {rollout.problems_per_step} problems x {rollout.num_generations} completions = {samples:,} "
        f"samples, at most {samples * rollout.max_completion_length:,} tokens sampled and {tokens:,} trained on.\n"
        f"At full length: rollout {found.sampling_flops / steps:.2e} FLOP, update {found.update_flops / steps:.2e} "
        "FLOP. Shorter samples need proportionally less, and samples with zero gradient are dropped before the update."
    )


def _print_whole(console: Console, found: Estimate, num_processes: int) -> None:
    work = [f"sampling {found.sampling_flops:.2e} FLOP"] if found.work.generation else []
    if found.work.training and found.update_flops is not None:
        work.append(f"updates {found.update_flops:.2e} FLOP")
    seconds = found.seconds(num_processes)
    if seconds is None:
        return
    console.print(
        f"The stage, every text at full length: {', '.join(work)}, {duration(seconds)} on this machine.\n"
        f"{assumed_speed(found.dtype, num_processes)} Not counted: {NOT_COUNTED}."
    )
