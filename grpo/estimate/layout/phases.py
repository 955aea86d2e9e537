"""How long the phases of a step take, and what bounds each of them.

A phase takes as long as its slowest resource: the GPUs' FLOP/s, their memory's bandwidth, or the links between them;
while sampling and publishing, the host's time comes on top. Not counted: rewards, judges and teachers, evaluations,
checkpoints, traffic within a server, kernel launches while training, unevenly loaded experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grpo.estimate.layout.gpus import Gpu
from grpo.estimate.layout.layout import Layout, kv_per_token
from grpo.estimate.layout.lengths import Lengths
from grpo.estimate.memory import caches_latents
from grpo.estimate.shape import BYTES, ModelShape, forward_flops, mtp_flops
from grpo.estimate.stage import learning_forwards
from grpo.recipe.config import OnPolicyRecipe

MASTER = BYTES["float32"]  # what trains


@dataclass(frozen=True, slots=True)
class Phase:
    """Phase(name="generate", seconds=12.3, bound="memory bandwidth", remedy="…")"""

    name: str  # as in the metrics: time/generate
    seconds: float  # per optimizer step
    bound: str
    remedy: str


def phases(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> list[Phase]:
    """generate, score, update, sync: what a run logs as time/…, per optimizer step."""
    return [
        generate(recipe, layout, lengths),
        score(recipe, layout, lengths),
        update(recipe, layout, lengths),
        sync(recipe, layout),
    ]


def overlap(recipe: OnPolicyRecipe, layout: Layout) -> bool:
    """Whether servers sample while the trainers update; on CPU, both would share the same cores."""
    return recipe.rollout.max_staleness > 0 and layout.gpu.device != "cpu"


def awaited(found: Sequence[Phase], *, overlap: bool) -> list[Phase]:
    """The phases whose seconds make the step: all; with `overlap` those of the longer side, and sync, which both do."""
    if not overlap:
        return list(found)
    sampling, *training, sync = found
    longer = [sampling] if sampling.seconds > sum(phase.seconds for phase in training) else training
    return [*longer, sync]


def concurrent(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> float:
    """Sequences that an engine decodes at once."""
    samples = _samples_per_rollout(recipe) / layout.engines
    context = recipe.max_model_len / (lengths.prompt + lengths.completion)
    return max(1.0, min(recipe.rollout.max_num_seqs, samples, layout.sequences * context))


def generate(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> Phase:
    """Every iteration of an engine reads the weights once, and the keys and values of each sequence."""
    gpu, shape = layout.gpu, layout.shape
    samples = _samples_per_rollout(recipe) / layout.engines
    tokens = samples * lengths.completion
    batch = concurrent(recipe, layout, lengths)
    iterations = max(lengths.longest, tokens / batch)
    weights = iterations * _weights_read(shape, batch) * BYTES[recipe.model.dtype]
    cache = tokens * (lengths.prompt + lengths.completion / 2) * kv_per_token(recipe, shape, gpu, layout.engine_gpus)
    flops = forward_flops(shape, ((1, round(lengths.prompt + lengths.completion)),)) * samples
    cached = forward_flops(shape, ((1, _cached(recipe, layout, lengths)),))
    flops -= cached * (samples - samples / recipe.rollout.num_generations)
    read = gpu.bandwidth * gpu.decode * layout.engine_gpus
    times = {
        "memory bandwidth": (weights + cache) / read,
        "FLOP/s": flops / (gpu.flops * gpu.prefill * layout.engine_gpus),
        "the engine's own work per iteration and token": iterations * gpu.per_iteration + tokens * gpu.per_token,
    }
    bound = max(times, key=lambda name: times[name])
    *device, host = times.values()
    seconds = max(device) + host
    per_iteration = iterations * gpu.per_iteration + (weights / read if bound == "memory bandwidth" else 0)
    if iterations == lengths.longest and per_iteration > seconds / 2:
        remedy = "The longest completion sets the number of iterations: more engines would not help."
    elif bound == "memory bandwidth" and weights > cache:
        remedy = "Weights are read for few sequences at once: fewer engines, more samples or a larger KV cache help."
    elif bound == "memory bandwidth":
        remedy = "Keys and values are most of what is read: more engines help."
    else:
        remedy = "More engines help."
    return Phase("generate", seconds / _steps(recipe), bound, remedy)


def score(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> Phase:
    """Log-probs of the reference model and, with several steps per rollout, of the old policy."""
    training = layout.estimate.work.training
    assert training
    flops = training.more_forwards * _trained_flops(recipe, layout, lengths) / layout.trainers
    passes = training.more_forwards * _micro_batches(recipe, layout, lengths)
    times = {
        "FLOP/s": flops / (layout.gpu.flops * layout.gpu.prefill),
        "links between trainers": passes * _gather(recipe, layout),
    }
    bound = max(times, key=lambda name: times[name])
    return Phase("score", times[bound], bound, _trainer_remedy(bound))


def update(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> Phase:
    """Forward and backward of every micro-batch, sums over trainers, and the optimizer's step."""
    gpu, training = layout.gpu, layout.estimate.work.training
    assert training
    forwards = learning_forwards(training, layout.shape)
    flops = forwards * _trained_flops(recipe, layout, lengths, mtp=True) / layout.trainers
    kept = layout.shape.kept_bytes / (training.rows * training.length) * _trained_tokens(recipe, layout, lengths)
    flops += gpu.elementwise * kept / layout.trainers
    state = layout.shape.trained * MASTER / layout.shards
    if layout.shards > 1:
        # Gathered for forward and backward; gradients of what trains summed after each, in float32.
        summing = layout.shape.trained_share * _all_float32(layout)
        traffic = _micro_batches(recipe, layout, lengths) * (2 * _gather(recipe, layout) + summing)
        if layout.replicas > 1:
            traffic += 2 * state / _speed(gpu, layout.trainers)
    else:
        traffic = 2 * state * (layout.trainers > 1) / _speed(gpu, layout.trainers)
    # Weights are read forward and backward, gradients of what trains read and written; once per micro-batch.
    moved = 2 * _micro_batches(recipe, layout, lengths) * (layout.shape.run + layout.shape.trained) * MASTER
    times = {
        "FLOP/s": flops / (gpu.flops * gpu.update),
        "memory bandwidth": moved / (gpu.bandwidth * gpu.decode),
        "links between trainers": traffic,
    }
    bound = max(times, key=lambda name: times[name])
    optimizer = 7 * state / (gpu.bandwidth * gpu.decode)  # reads weight, gradient and both moments, writes all but one
    return Phase("update", times[bound] + optimizer, bound, _trainer_remedy(bound))


def sync(recipe: OnPolicyRecipe, layout: Layout) -> Phase:
    """New weights to the engines: gathered if they are sharded, then copied, broadcast, or written and read."""
    gpu, shape, servers = layout.gpu, layout.shape, recipe.rollout.servers
    if recipe.rollout.adapters == "send":
        gathering = shape.trained_share * _all_float32(layout)
        files = 2 * shape.trained * MASTER / gpu.files
        return Phase("sync", (gathering + files) / _steps(recipe), "writing and reading files", "")
    size = shape.total * BYTES[recipe.model.dtype]
    times = {"gathering the shards": _all_float32(layout), "the host, per tensor": _tensors(shape) * gpu.per_tensor}
    if servers is None or gpu.device == "cpu":
        times["memory bandwidth"] = 2 * size / (gpu.bandwidth * gpu.decode)
    elif servers.weights == "nccl":
        times["the broadcast"] = size / (gpu.network * gpu.links)
    else:
        times["writing and reading files"] = 2 * size / gpu.files
    bound = max(times, key=lambda name: times[name])
    remedy = "rollout.servers.weights=nccl is faster." if "files" in bound else ""
    return Phase("sync", sum(times.values()) / _steps(recipe), bound, remedy)


def _steps(recipe: OnPolicyRecipe) -> int:
    return recipe.policy_gradient.steps_per_generation


def _samples_per_rollout(recipe: OnPolicyRecipe) -> int:
    return recipe.problems_per_rollout * recipe.rollout.num_generations


def _cached(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> int:
    """Tokens of a prompt that vLLM computes once for its group: full blocks, without that of the last token."""
    options, on_cpu = recipe.rollout.vllm_options, layout.gpu.device == "cpu"
    records_on_cpu = on_cpu and recipe.policy_gradient.routing_replay == "R3"  # which needs every token's forward
    if recipe.rollout.engine == "hf" or not options.get("enable_prefix_caching", not records_on_cpu):
        return 0
    is_wide = on_cpu and not caches_latents("vllm", layout.shape.config, "cpu")
    block = options.get("block_size", 128 if is_wide else 16)  # vLLM's own
    return int(lengths.prompt - 1) // block * block


def _trained_flops(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths, *, mtp: bool = False) -> float:
    """Of one forward over an optimizer step's samples; on CPU, a group has its prompt once, unless samples are whole.

    mtp: with that of a multi-token prediction which learns.
    """
    texts = ((1, round(_trained_length(recipe, layout, lengths))),)
    flops = forward_flops(layout.shape, texts) + mtp * mtp_flops(layout.shape, texts)
    return flops * _trained_samples(recipe, lengths)


def _trained_tokens(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> float:
    return _trained_length(recipe, layout, lengths) * _trained_samples(recipe, lengths)


def _trained_samples(recipe: OnPolicyRecipe, lengths: Lengths) -> float:
    """Per optimizer step."""
    return recipe.rollout.problems_per_step * recipe.rollout.num_generations * lengths.trained


def _trained_length(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> float:
    """Tokens of a sample that the trainer computes."""
    whole = recipe.model.mtp == "detached" or recipe.model.sequence_balance_coefficient > 0  # as the policy has them
    once = layout.gpu.device == "cpu" and not whole
    return lengths.prompt / (recipe.rollout.num_generations if once else 1) + lengths.completion


def _micro_batches(recipe: OnPolicyRecipe, layout: Layout, lengths: Lengths) -> int:
    """Of one trainer in an optimizer step."""
    length = lengths.prompt + lengths.completion
    samples = _trained_samples(recipe, lengths) / layout.trainers
    return max(1, math.ceil(samples / max(1, recipe.trainer.max_tokens_per_micro_batch // length)))


def _gather(recipe: OnPolicyRecipe, layout: Layout) -> float:
    """Seconds until every trainer has received all weights once, in the precision that layers are gathered in."""
    width = BYTES[recipe.model.dtype] if layout.shape.cast_in_parts else MASTER
    return _all_float32(layout) * width / MASTER


def _all_float32(layout: Layout) -> float:
    """Seconds until every trainer has received all weights once in float32, or sent all gradients."""
    missing = (layout.shards - 1) / layout.shards
    return layout.shape.total * MASTER * missing / _speed(layout.gpu, layout.shards)


def _speed(gpu: Gpu, members: int) -> float:
    """Bytes per second and GPU in a collective of so many."""
    return gpu.links * (gpu.link if members <= gpu.per_machine else gpu.network)


def _weights_read(shape: ModelShape, batch: float) -> float:
    """Parameters that an iteration reads: of a mixture, the experts that at least one of `batch` tokens chose."""
    experts, chosen = _experts(shape)
    if not experts:
        return shape.total
    idle = (1 - chosen / experts) ** batch
    in_experts = (shape.total - shape.active) / (1 - chosen / experts)
    return shape.total - idle * in_experts


def _tensors(shape: ModelShape) -> int:
    """About how many weights a checkpoint names: a dozen per layer, and three per expert."""
    return shape.config.num_hidden_layers * (12 + 3 * _experts(shape)[0])


def _experts(shape: ModelShape) -> tuple[int, int]:
    """(experts, chosen per token); zeros for a dense model."""
    experts = getattr(shape.config, "n_routed_experts", None) or getattr(shape.config, "num_experts", None)
    return (experts, shape.config.num_experts_per_tok) if experts else (0, 0)


def _trainer_remedy(bound: str) -> str:
    if bound == "FLOP/s":
        return "More trainers help."
    if bound == "memory bandwidth":
        return "Larger micro-batches read the weights less often."
    return (
        "Larger micro-batches gather less often; trainer.sharding_replicas equal to the number of machines keeps "
        "gathering within one, if its GPUs hold a copy."
    )
