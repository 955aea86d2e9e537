"""`grpo check`: what a recipe needs and whether it fits this machine, without loading weights or data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import load_recipe
from grpo.recipe.record import check_world

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from grpo.estimate.memory import ModelShape


def check_recipe(path: str | Path, overrides: Sequence[str] = (), *, num_processes: int = 1) -> bool:
    """Print a recipe's parameters, memory by part, tokens and FLOPs; returns whether it fits this machine.

    Raises:
        grpo.recipe.load.RecipeError: the recipe is invalid, or its model's configuration cannot be read.
    """
    console = Console(highlight=False, soft_wrap=True)
    recipe = load_recipe(path, overrides)
    check_world(recipe, num_processes)
    console.print(f"{path} is valid.")
    if not isinstance(recipe, GRPORecipe):
        return True  # the model size depends on the tokenizer, which a check does not build
    from grpo.estimate import memory as estimate

    config = estimate.load_config(recipe.model)
    rows, length = estimate.micro_batch(recipe)
    shape = estimate.measure_shape(config, rows=rows, length=length, width=estimate.BYTES[recipe.model.dtype])
    console.print(f"\nModel: {estimate.describe(config)}")
    console.print(f"Parameters: {_count(shape.total)} total, {_count(shape.active)} active per token\n")
    fits = _print_memory(console, recipe, shape, num_processes)
    _print_step(console, recipe, shape)
    return fits


def _print_memory(console: Console, recipe: GRPORecipe, shape: "ModelShape", num_processes: int) -> bool:
    from grpo.estimate import memory as estimate

    device, memory, name = _machine(num_processes)
    parts = estimate.memory_parts(recipe, shape, device=device, num_processes=num_processes)
    total, (rows, length) = sum(parts.values()), estimate.micro_batch(recipe)
    table = Table(title="Memory per process (estimate)", title_justify="left", box=None, pad_edge=False)
    table.add_column("part")
    table.add_column("GiB", justify="right")
    for part, size in parts.items():
        table.add_row(part, _gib(size))
    table.add_row("total", _gib(total))
    table.add_row(f"available ({name})", _gib(memory))
    console.print(table)
    console.print(f"Activations are for a micro-batch of {rows} x {length} tokens.")
    _print_cache(console, recipe, shape.config, device)
    if total <= memory:
        console.print("It fits.\n")
        return True
    largest = max(parts, key=lambda part: parts[part])
    console.print(f"Does NOT fit: {_gib(total)} GiB of {_gib(memory)}. The largest part is {largest}.")
    console.print(_remedy(parts, memory) + "\n")
    return False


def _remedy(parts: dict[str, int], memory: int) -> str:
    from grpo.estimate.memory import shardable

    state = shardable(parts)
    rest = sum(parts.values()) - state
    if state <= memory:
        return (
            "Set trainer.gradient_checkpointing=true, lower trainer.max_tokens_per_micro_batch (one full sample must "
            "fit), or shrink the KV cache."
        )
    shards = -(-state // (memory - rest if rest < memory else memory))
    text = (
        f"One process cannot hold it: weights, gradients, optimizer and engine take {_gib(state)} GiB and would need "
        f"to be sharded over at least {shards} such processes. Training is data-parallel: each process holds it all."
    )
    if rest >= memory:
        text += f" The {_gib(rest)} GiB of activations and caches would still not fit: shorten the completions too."
    return text


def _print_cache(console: Console, recipe: GRPORecipe, config: "PretrainedConfig", device: str) -> None:
    from grpo.estimate.memory import BYTES, caches_latents, kv_bytes_per_token

    width = BYTES[recipe.model.dtype]
    compressed = caches_latents(recipe, config, device)
    per_token = kv_bytes_per_token(config, width, compressed=compressed)
    sequence = per_token * recipe.max_model_len / 2**20
    line = f"KV cache: {per_token:,} bytes per token, {sequence:,.1f} MiB per full sequence"
    if getattr(config, "kv_lora_rank", None):
        other = kv_bytes_per_token(config, width, compressed=not compressed)
        line += f" ({'uncompressed' if compressed else 'as MLA latents'}: {other:,} bytes)"
    console.print(line + ".")
    if recipe.rollout.engine == "vllm" and device == "cpu":
        held = recipe.rollout.kv_cache_gib * 2**30 / (per_token * recipe.max_model_len)
        console.print(f"rollout.kv_cache_gib={recipe.rollout.kv_cache_gib:g} holds {held:,.1f} full sequences.")


def _print_step(console: Console, recipe: GRPORecipe, shape: "ModelShape") -> None:
    from grpo.estimate.memory import flops_per_step, sample_lengths

    prompt, completion = sample_lengths(recipe)
    samples = recipe.rollout.problems_per_step * recipe.rollout.num_generations
    rollout, update = flops_per_step(recipe, shape)
    console.print(
        f"One step: {recipe.rollout.problems_per_step} problems x {recipe.rollout.num_generations} completions = "
        f"{samples:,} samples, at most {samples * completion:,} tokens sampled and {samples * (prompt + completion):,} "
        f"trained on.\nAt full length: rollout {rollout:.2e} FLOP, update {update:.2e} FLOP. Shorter samples need "
        "proportionally less, and samples with zero gradient are dropped before the update."
    )


def _machine(num_processes: int) -> tuple[str, int, str]:
    """Device type, bytes available to one process, and the name of that memory."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return "cuda", torch.cuda.get_device_properties(0).total_memory, torch.cuda.get_device_name(0)
    name = "RAM" if num_processes == 1 else f"RAM / {num_processes}"
    return "cpu", psutil.virtual_memory().total // num_processes, name


def _count(number: int) -> str:
    unit, name = next((u, n) for u, n in ((1e9, "B"), (1e6, "M"), (1e3, "K"), (1, "")) if number >= u)
    return f"{number / unit:.2f}{name}"


def _gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
