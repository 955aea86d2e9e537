"""The estimate of one stage: memory of a process, FLOPs of the whole stage, and the time these take here."""

from dataclasses import dataclass, field

from grpo.estimate.machine import machine_flops
from grpo.estimate.memory import (
    Parts,
    beyond_update,
    engine_parts,
    reward_parts,
    take_offloaded,
    teacher_parts,
    teacher_shapes,
    training_parts,
)
from grpo.estimate.models import Models
from grpo.estimate.shape import BYTES, ModelShape, forward_flops, mtp_flops
from grpo.estimate.work import Training, Work, work_of
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.section import StageRecipe
from grpo.recipe.stages.opd import OPDRecipe
from rollout.engines.base import check_context

# Shares of the speed of a large matrix product, assumed: decoding reads all weights for a few tokens at a time.
UPDATE_UTILISATION, SAMPLING_UTILISATION = 0.3, 0.1


@dataclass(slots=True)
class Estimate:
    """What a stage needs, with every text at full length."""

    work: Work
    shape: ModelShape
    dtype: str
    parts: Parts = field(default_factory=dict)  # on the device, in one process
    engine: int = 0  # that samples, as a whole; asleep during updates, it has only a share of `parts`
    host: Parts = field(default_factory=dict)  # in host memory beside it; on CPU everything is in `parts`
    sampling_flops: float = 0.0  # of all processes
    update_flops: float | None = 0.0  # None: they depend on the data's rows
    notes: list[str] = field(default_factory=list)

    @property
    def memory(self) -> int:
        return sum(self.parts.values())

    @property
    def flops(self) -> float | None:
        """Of all processes; None: they depend on the data's rows."""
        return None if self.update_flops is None else self.sampling_flops + self.update_flops

    def seconds(self, processes: int) -> float | None:
        """Time for all FLOPs at the speed measured on this machine; None if these are not known."""
        if self.update_flops is None:
            return None
        updates, sampling = self.update_flops / UPDATE_UTILISATION, self.sampling_flops / SAMPLING_UTILISATION
        return (updates + sampling) / machine_flops(self.dtype, processes)


def estimate_stage(
    recipe: StageRecipe, models: Models, *, device: str, num_processes: int = 1, memory: int | None = None
) -> Estimate | None:
    """Estimate a stage; None for a kind of stage that is not estimated.

    memory: bytes of each process's GPU; None: of the one here.

    Raises:
        RecipeError: a local folder holds no configuration.
        UnknownModelError: the stage's model cannot be known now.
        ValueError: adapters, or a multi-token prediction, do not fit the model.
    """
    work = work_of(recipe, models.rows, num_processes)
    if work is None:
        return None
    dtype = getattr(recipe.model, "dtype", "float32")  # type: ignore[attr-defined]
    width, training = BYTES[dtype], work.training
    rows, length = (training.rows, training.length) if training else (0, 0)
    of_model = {}
    if isinstance(recipe, OnPolicyRecipe):
        of_model = {"lora": recipe.model.lora, "quantization": recipe.model.quantization}
    if training:
        of_model["mtp"] = training.mtp
    shape = models.shape(models.of_recipe(recipe), rows=rows, length=length, width=width, **of_model)
    found = Estimate(work, shape, dtype, notes=_context_note(work, shape))
    if training:
        trained = training_parts(training, shape, width, device=device, num_processes=num_processes)
        host = take_offloaded(training, trained)
        _add(found, trained, host, device)
        found.update_flops = update_flops(training, shape)
        if found.update_flops is None:
            found.notes.append("The FLOPs depend on how many rows the data has.")
    if isinstance(recipe, OPDRecipe):
        teachers, unknown = teacher_shapes(recipe, shape, models)
        found.notes += unknown
        shards = training.shards if training else 1
        on_device, host = teacher_parts(recipe, teachers, device=device, num_processes=num_processes, shards=shards)
        _add(found, on_device, host, device)
        if training and training.texts and found.update_flops is not None:
            found.update_flops += max(forward_flops(teacher, training.texts) for teacher in teachers)
    on_device, host, unknown = reward_parts(work, models, device)
    _add(found, on_device, host, device)
    found.notes += unknown
    if work.generation:
        engine = engine_parts(work.generation, shape, width, device=device, memory=memory)
        found.engine = sum(engine.values())
        if isinstance(recipe, OnPolicyRecipe) and recipe.rollout.sleep_level:
            engine = beyond_update(engine, found.parts)
        found.parts |= engine
        found.sampling_flops = forward_flops(shape, work.generation.texts)
    return found


def update_flops(training: Training, shape: ModelShape) -> float | None:
    """FLOPs of all updates; None: the data's rows are not known.

    The reference model and, with several steps per rollout, the old policy take one more forward each. A multi-token
    prediction runs only where it learns.
    """
    if training.texts is None:
        return None
    learning = learning_forwards(training, shape)
    forwards = (learning + training.more_forwards) * forward_flops(shape, training.texts)
    return forwards + learning * mtp_flops(shape, training.texts)


def learning_forwards(training: Training, shape: ModelShape) -> float:
    """FLOPs of a forward and its backward, in forwards: the gradients of activations and of the weights that train take
    one each, and checkpointing one more.
    """
    return 2 + shape.trained_share + training.checkpointed


def _context_note(work: Work, shape: ModelShape) -> list[str]:
    longest = max(
        work.training.length if work.training else 0,
        work.generation.context if work.generation else 0,
    )
    try:
        check_context(shape.config, longest)
    except ValueError:
        context = shape.config.get_text_config().max_position_embeddings
        return [f"Texts of up to {longest:,} tokens exceed the model's context of {context:,}: they will be refused."]
    return []


def _add(found: Estimate, on_device: Parts, host: Parts, device: str) -> None:
    found.parts |= on_device
    if device == "cpu":
        found.parts |= host
    else:
        found.host |= host
