"""Memory of one process by part, from a stage's work and its model's shape.

Estimates, not bounds. Not counted: the interpreter and its libraries (1 to 2 GiB with vLLM), memory fragmentation,
mixed precision's weight casts.
"""

from collections.abc import Sequence

import torch
from transformers import PretrainedConfig

from grpo.estimate.models import Models, UnknownModelError
from grpo.estimate.shape import BYTES, ModelShape, kv_bytes_per_token
from grpo.estimate.work import Generation, Training, Work
from grpo.model.forward.head import CHUNK_ELEMENTS, WAITING_ELEMENTS
from grpo.model.quantized import BYTES_PER_WEIGHT
from grpo.recipe.stages.opd import OPDRecipe

_MLA_KERNEL_WIDTH = 576  # kv_lora_rank + qk_rope_head_dim; vLLM on CPU caches latents only at this size

Parts = dict[str, int]  # bytes by part
INPUTS = "layers' inputs, checkpointed"


def training_parts(training: Training, shape: ModelShape, width: int, *, device: str, num_processes: int) -> Parts:
    """Weights and their states, activations of a micro-batch, and the head; `width`: bytes per value computed in."""
    rows, length, config = training.rows, training.length, shape.config
    # Trained in float32, whatever it computes in.
    layers = shape.layers
    quantized = round(shape.quantized * BYTES_PER_WEIGHT)
    trained = shape.trained * BYTES["float32"] // training.shards
    state = ((shape.held - shape.quantized) * BYTES["float32"] + quantized) // training.shards
    parts = {"weights": state, "gradients": trained, "AdamW": 2 * trained}
    if training.shards > 1:
        gathered = width if shape.cast_in_parts else BYTES["float32"]
        if gathered > width and training.checkpointed:
            parts["weights, cast for the forward"] = shape.total * width // layers
        elif gathered > width:
            parts["weights, cast for the forward"] = shape.total * width
        parts["layers, gathered"] = 2 * shape.total * gathered // layers  # one computes, one is on its way
        parts["head, gathered"] = BYTES["float32"] * config.vocab_size * config.hidden_size
        # As computed, and as copied in float32 to be summed.
        parts["a layer's gradient"] = shape.trained * (gathered + BYTES["float32"]) // layers
    elif width < BYTES["float32"]:  # quantized ones are dequantized for each product
        parts["weights, cast for the forward"] = (shape.run - shape.quantized) * width
    if training.shards == 1 and num_processes > 1:
        parts["gradient buckets"] = trained
    if training.reference:
        parts["reference"] = shape.total * BYTES["float32"] // training.shards
    # In backward, one layer at a time needs about as much again for gradients and intermediate values.
    scores = shape.score_bytes if device == "cpu" else 0
    if training.checkpointed:
        # Autocast leaves what layers hand on in float32.
        inputs = rows * length * config.hidden_size * BYTES["float32"] * layers
        if training.offloads_activations:
            parts[INPUTS] = inputs
            inputs = 0
        parts["activations, checkpointed"] = inputs + 2 * shape.kept_bytes // layers
        scores = 2 * scores // layers
    else:
        parts["activations"] = shape.kept_bytes * (layers + 1) // layers
        scores = scores * (layers + 1) // layers
    if scores:
        parts["attention scores"] = scores
    heads = 2 if layers > config.num_hidden_layers else 1  # a trained multi-token prediction reads the head too
    hidden = 2 * heads * rows * length * config.hidden_size * width
    if training.head == "chunked":
        # What waits; of a chunk the logits, and the probabilities unless they wait. All is gone when a layer's backward
        # begins, so only what exceeds that layer's part counts. Then the gradient of a trained head in float32 and
        # hidden states with their gradient.
        logits = rows * length * config.vocab_size
        waiting, chunk = min(WAITING_ELEMENTS, logits), min(CHUNK_ELEMENTS.get(device, 2**27), logits)
        alive = 4 * (heads * waiting + (1 + (logits > waiting)) * chunk)
        gradient = 4 * config.vocab_size * config.hidden_size if shape.trained >= shape.total else 0
        parts["LM head, in chunks"] = max(0, alive - shape.kept_bytes // layers) + gradient + hidden
    return parts


def take_offloaded(training: Training, parts: Parts) -> Parts:
    """Take out of a device's parts those that wait in host memory, and return them."""
    names = ["weights", "gradients", "AdamW", "reference"] if training.offloads_params else []
    return {name: parts.pop(name) for name in [*names, INPUTS] if name in parts}


def engine_parts(
    generation: Generation, shape: ModelShape, width: int, *, device: str, memory: int | None = None
) -> Parts:
    """An engine's weights and KV cache; nothing if a server has them. memory: of the GPU; None: of the one here."""
    engine, section = generation.engine, generation.section
    if engine == "server":
        return {}
    weights = shape.total * width
    per_token = kv_bytes_per_token(shape.config, width, compressed=caches_latents(engine, shape.config, device))
    if engine == "vllm" and device == "cuda":
        memory = memory or torch.cuda.get_device_properties(0).total_memory
        share = int(section.gpu_memory_utilization * memory)
        return {"engine: weights and KV cache": max(share, weights + per_token * generation.context)}
    if engine == "vllm":
        cache = int(section.kv_cache_gib * 2**30)
    else:
        cache = per_token * generation.context * section.max_num_seqs
    return {"engine: weights": weights, "engine: KV cache": cache}


def beyond_update(engine: Parts, others: Parts) -> Parts:
    """Of an engine that sleeps during updates: what it takes beyond that which only an update holds, and gives back."""
    kept = ("weights", "AdamW", "reference", "gradient buckets", "teacher", "reward models")
    update = sum(size for name, size in others.items() if name not in kept[:4] and not name.startswith(kept[4:]))
    return {"engine, beyond an update's parts": max(0, sum(engine.values()) - update)}


def caches_latents(engine: str, config: PretrainedConfig, device: str) -> bool:
    """Whether the engine caches MLA's latents instead of full keys and values."""
    if not getattr(config, "kv_lora_rank", None) or engine != "vllm":
        return False
    return device != "cpu" or config.kv_lora_rank + config.qk_rope_head_dim == _MLA_KERNEL_WIDTH


def teacher_shapes(recipe: OPDRecipe, student: ModelShape, models: Models) -> tuple[list[ModelShape], list[str]]:
    """The teachers, and what is not known of them."""
    shapes, notes = [], []
    for name, teacher in recipe.teachers.items():
        trust = recipe.model.trust_remote_code
        try:
            config = models.named(teacher.model_name_or_path, teacher.revision, trust_remote_code=trust)
            shapes.append(models.shape(config))
        except UnknownModelError as error:
            notes.append(f"teachers.{name}.{error} It is counted as large as the student.")
            shapes.append(student)
    return shapes, notes


def teacher_parts(
    recipe: OPDRecipe, teachers: Sequence[ModelShape], *, device: str, num_processes: int, shards: int
) -> tuple[Parts, Parts]:
    """(on the device, in host memory): weights of all teachers, and what they leave of a rollout.

    A single teacher stays on the device. Several are in host memory, and one at a time is copied to the device; if they
    are sharded, one layer of it.
    """
    states = [teacher.total * BYTES["float32"] // shards for teacher in teachers]
    host = {"teachers": sum(states)} if len(states) > 1 else {}
    if recipe.algorithm.divergence is not None:
        tokens = recipe.problems_per_rollout * recipe.rollout.num_generations * recipe.rollout.max_completion_length
        hidden = max(teacher.config.hidden_size for teacher in teachers)
        host["teachers' hidden states"] = tokens // num_processes * hidden * BYTES[recipe.model.dtype]
    on_device = {"teacher": states[0]} if len(states) == 1 else {}
    if shards > 1:
        layers = [2 * BYTES[recipe.model.dtype] * t.total // t.config.num_hidden_layers for t in teachers]
        on_device["a teacher's layers, gathered"] = max(layers)
    elif len(states) > 1 and device != "cpu":  # where the device is host memory, and there is no copy
        on_device["teacher, one at a time"] = max(states)
    return on_device, host


def reward_parts(work: Work, models: Models, device: str) -> tuple[Parts, Parts, list[str]]:
    """(on the device, in host memory, what is not known): trained reward models, one copy in every reward worker."""
    on_device = host = 0
    notes = []
    for reward in work.rewards:
        if reward.function != "reward_model":
            continue
        try:
            config = models.named(reward.options["model_name_or_path"], reward.options.get("revision"))
        except UnknownModelError as error:
            notes.append(f"rewards.{reward.name}.{error} Its memory is not counted.")
            continue
        # As saved by default: stage reward_model saves float32.
        width = BYTES.get(str(reward.options.get("dtype")), 4)
        size = work.reward_workers * models.shape(config).total * width
        if device == "cpu" or reward.options.get("device") != "cpu":
            on_device += size
        else:
            host += size
    name = f"reward models, in {work.reward_workers} workers"
    return ({name: on_device} if on_device else {}), ({name: host} if host else {}), notes


def shardable(parts: Parts) -> int:
    """Bytes that sharding over processes would divide: everything but activations, caches and layers at work."""
    whole = (
        "activations",
        "attention",
        "LM head",
        "layers",
        "head, gathered",
        "a layer's",
        "a teacher's layers",
        "engine: KV",
        "engine: weights and KV",
        "engine, beyond",
        "teachers' hidden",
    )
    return sum(size for name, size in parts.items() if not name.startswith(whole))
