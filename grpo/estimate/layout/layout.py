"""Which GPU does what, and what each kind of GPU then holds."""

from dataclasses import dataclass

from grpo.estimate.layout.gpus import Gpu
from grpo.estimate.memory import Parts, caches_latents
from grpo.estimate.models import Models
from grpo.estimate.shape import BYTES, ModelShape, kv_bytes_per_token
from grpo.estimate.stage import Estimate, estimate_stage
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError
from grpo.recipe.record import check_world

SERVER_MEMORY = 0.9  # of a GPU's memory, vLLM's own default
MOST_SERVER_GPUS = 64  # a sequence whose latents fill a GPU fits on no number of them


@dataclass(frozen=True, slots=True)
class Layout:
    """A recipe on GPUs of one kind.

    Layout(gpu=…, gpus=16, trainers=8, shards=8, servers=8, server_gpus=1, …)
    """

    gpu: Gpu
    gpus: int
    trainers: int
    shards: int  # trainers that hold one copy of the policy together
    servers: int  # 0: every trainer has an engine of its own
    server_gpus: int  # of one server: tensor parallel; a mixture's experts are divided over the same GPUs
    estimate: Estimate
    on_trainer: Parts
    on_server: Parts  # per GPU
    sequences: int  # that the KV cache of one engine holds at full length

    @property
    def shape(self) -> ModelShape:
        return self.estimate.shape

    @property
    def engines(self) -> int:
        return self.servers or self.trainers

    @property
    def engine_gpus(self) -> int:
        """GPUs of one engine."""
        return self.server_gpus if self.servers else 1

    @property
    def replicas(self) -> int:
        return self.trainers // self.shards

    def excess(self) -> str:
        """What does not fit; empty if all does."""
        for name, parts in (("trainer", self.on_trainer), ("server's GPU", self.on_server)):
            if (size := sum(parts.values())) > self.gpu.memory:
                largest = max(parts, key=lambda part: parts[part])
                return (
                    f"a {name} needs {_gib(size)} GiB of a {self.gpu.name}'s {_gib(self.gpu.memory)}, the largest part "
                    f"{largest} with {_gib(parts[largest])}"
                )
        if self.sequences < 1:
            return f"an engine's {self.engine_gpus} x {_gib(self.gpu.memory)} GiB hold no full sequence"
        return ""


def lay_out(recipe: OnPolicyRecipe, models: Models, gpu: Gpu, gpus: int) -> Layout:
    """Give each of `gpus` GPUs its work, as the recipe says.

    Raises:
        RecipeError: the GPUs are too few for the recipe's servers, or the trainers cannot share the work.
        UnknownModelError: the model cannot be known now.
    """
    count, server_gpus = _servers(recipe, models, gpu)
    trainers = gpus - gpus_of_servers(recipe, models, gpu)
    if trainers < 1:
        raise RecipeError(
            f"rollout.servers: {count} servers of {server_gpus} {gpu.name} each leave none of {gpus} GPUs to a trainer."
        )
    check_world(recipe, trainers)
    if trainers % recipe.trainer.sharding_replicas:
        raise RecipeError(
            f"trainer.sharding_replicas={recipe.trainer.sharding_replicas} does not divide {trainers} trainers."
        )
    estimate = estimate_stage(recipe, models, device=gpu.device, num_processes=trainers, memory=gpu.memory)
    assert estimate and estimate.work.training
    on_server = _server_parts(recipe, estimate.shape, gpu, server_gpus) if count else {}
    return Layout(
        gpu=gpu,
        gpus=gpus,
        trainers=trainers,
        shards=estimate.work.training.shards,
        servers=count,
        server_gpus=server_gpus,
        estimate=estimate,
        on_trainer=estimate.parts,
        on_server=on_server,
        sequences=_sequences(recipe, estimate, gpu, server_gpus),
    )


def gpus_of_servers(recipe: OnPolicyRecipe, models: Models, gpu: Gpu) -> int:
    """GPUs that do not train. On CPU none: everything shares the machine."""
    count, server_gpus = _servers(recipe, models, gpu)
    return 0 if gpu.device == "cpu" else count * server_gpus


def _servers(recipe: OnPolicyRecipe, models: Models, gpu: Gpu) -> tuple[int, int]:
    """How many servers, and the GPUs of each; zeros without."""
    servers = recipe.rollout.servers
    if servers is None:
        return 0, 0
    shape = models.shape(models.of_recipe(recipe))  # enough for what a server holds
    return len(servers.urls) or servers.start, server_gpus_of(recipe, shape, gpu)


def kv_per_token(recipe: OnPolicyRecipe, shape: ModelShape, gpu: Gpu, engine_gpus: int) -> int:
    """Bytes of KV cache per token of context, in all GPUs of an engine: each has MLA's latents, or at least a head."""
    engine = "hf" if recipe.rollout.engine == "hf" else "vllm"
    compressed = caches_latents(engine, shape.config, gpu.device)
    heads = 1 if compressed else getattr(shape.config, "num_key_value_heads", None) or shape.config.num_attention_heads
    size = kv_bytes_per_token(shape.config, BYTES[recipe.model.dtype], compressed=compressed)
    return size * max(1, engine_gpus // heads)


def server_gpus_of(recipe: OnPolicyRecipe, shape: ModelShape, gpu: Gpu) -> int:
    """The smallest power of two whose memory holds the weights and a full sequence; of servers started here, 1."""
    if recipe.rollout.servers and recipe.rollout.servers.start:
        return 1
    weights, gpus = shape.total * BYTES[recipe.model.dtype], 1

    def needed() -> int:
        return weights + kv_per_token(recipe, shape, gpu, gpus) * recipe.max_model_len

    while needed() > gpus * SERVER_MEMORY * gpu.memory and gpus < MOST_SERVER_GPUS:
        gpus *= 2
    return gpus


def _server_parts(recipe: OnPolicyRecipe, shape: ModelShape, gpu: Gpu, server_gpus: int) -> Parts:
    share = SERVER_MEMORY
    if recipe.rollout.servers and recipe.rollout.servers.start:
        share = recipe.rollout.gpu_memory_utilization
    weights = shape.total * BYTES[recipe.model.dtype] // server_gpus
    if gpu.device == "cpu":
        return {"weights": weights, "KV cache": int(recipe.rollout.kv_cache_gib * 2**30)}
    return {"weights": weights, "KV cache": max(0, int(share * gpu.memory) - weights)}


def _sequences(recipe: OnPolicyRecipe, estimate: Estimate, gpu: Gpu, server_gpus: int) -> int:
    """Sequences of the engine's whole context that its KV cache holds."""
    per_sequence = kv_per_token(recipe, estimate.shape, gpu, server_gpus or 1) * recipe.max_model_len
    weights = estimate.shape.total * BYTES[recipe.model.dtype]
    if recipe.rollout.engine == "hf":
        return recipe.rollout.max_num_seqs
    if gpu.device == "cpu":
        return int(recipe.rollout.kv_cache_gib * 2**30) // per_sequence
    if server_gpus:
        room = server_gpus * _server_parts(recipe, estimate.shape, gpu, server_gpus)["KV cache"]
    else:
        room = estimate.engine - weights
    return room // per_sequence


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}"
