"""What would fit: the first of a few changes, on as few GPUs as possible."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from grpo.estimate.layout.gpus import GPUS, Gpu, find_gpu
from grpo.estimate.layout.layout import lay_out, server_gpus_of
from grpo.estimate.models import Models
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError, load_recipe

MOST_GPUS = 4096
CHECKPOINTING, SHARDING = "trainer.gradient_checkpointing=true", "trainer.sharding=fsdp2"
OFFLOAD = ("trainer.activation_offloading=true", "trainer.offload_params=true")

Change = tuple[tuple[str, ...], str]  # overrides, and how they are written


def what_fits(path: str | Path, overrides: Sequence[str], models: Models, gpu: Gpu, gpus: int) -> str:
    """One sentence: which changes, on how many GPUs of which kind."""
    larger = sorted((other for other in GPUS.values() if other.memory > gpu.memory), key=lambda other: other.memory)
    on_cpu = gpu.device == "cpu"
    for kind in [gpu] if on_cpu else [gpu, *larger]:
        count = gpus
        while count <= (gpus if on_cpu else max(gpus, MOST_GPUS)):
            for changes, words in _changes(path, overrides, kind, count, models):
                if _fits(path, [*overrides, *changes], models, kind, count):
                    return f"{count:,} x {kind.name} would hold it{words and ' with '}{words}."
            count *= 2
    return f"Nothing tried would: up to {MOST_GPUS:,} GPUs, sharding, gradient checkpointing, offload, servers apart."


def _changes(path: str | Path, overrides: Sequence[str], gpu: Gpu, gpus: int, models: Models) -> Iterator[Change]:
    """From the smallest change to the largest; each also with the batch that the trainers can share."""
    recipe = _load(path, overrides)
    most = (SHARDING, CHECKPOINTING, *OFFLOAD)
    for changes in ((), (CHECKPOINTING,), (SHARDING,), (SHARDING, CHECKPOINTING), most):
        changes = (*changes, *_batch(recipe, gpus))
        yield changes, " ".join(changes)
    if recipe.rollout.servers is None and gpu.device != "cpu":
        each = server_gpus_of(_load(path, [*overrides, *_servers(1)]), models.shape(models.of_recipe(recipe)), gpu)
        count = max(1, gpus // (2 * each))  # half of the GPUs serve
        if (trainers := gpus - count * each) > 0:
            changes = (SHARDING, CHECKPOINTING, *_batch(recipe, trainers))
            servers = f"rollout.engine=server and {count} servers of {each} GPUs in rollout.servers"
            yield (*changes, *_servers(count)), f"{' '.join(changes)} {servers}"


def _servers(count: int) -> tuple[str, str]:
    urls = ", ".join(f"http://server-{number}:8000" for number in range(count))
    return "rollout.engine=server", f"rollout.servers=[{urls}]"


def _batch(recipe: OnPolicyRecipe, trainers: int) -> tuple[str, ...]:
    """So many problems per step that every trainer has as many; in a rollout of the same size if that is possible."""
    per_step, steps = recipe.rollout.problems_per_step, recipe.policy_gradient.steps_per_generation
    if per_step % trainers == 0:
        return ()
    for fewer in range(steps - 1, 0, -1):
        if steps % fewer == 0 and (larger := per_step * steps // fewer) % trainers == 0:
            return f"rollout.problems_per_step={larger}", f"algorithm.steps_per_generation={fewer}"
    return (f"rollout.problems_per_step={-(-per_step // trainers) * trainers}",)


def _fits(path: str | Path, overrides: Sequence[str], models: Models, gpu: Gpu, gpus: int) -> bool:
    try:
        return not lay_out(_load(path, overrides), models, find_gpu(gpu.name, gpus), gpus).excess()
    except RecipeError:
        return False


def _load(path: str | Path, overrides: Sequence[str]) -> OnPolicyRecipe:
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, OnPolicyRecipe)
    return recipe
