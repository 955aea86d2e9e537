"""AdamW and its schedule: the optimizer of every stage that trains."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from grpo.recipe.section import Section

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
# The transformers schedules that need no arguments beyond warm-up and length.
Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]


class AdamWConfig(Section):
    """AdamW, for every stage that trains."""

    learning_rate: PositiveFloat = 1e-6  # the peak
    warmup_steps: NonNegativeInt = 0  # optimizer steps in which the learning rate rises from 0
    weight_decay: NonNegativeFloat = 0.0  # of matrices; norms, biases and embeddings have none
    adam_beta1: Decay = 0.9  # decay of the first moment
    adam_beta2: Decay = 0.999  # decay of the second moment
    adam_epsilon: PositiveFloat = 1e-8  # added to the root of the second moment
    max_grad_norm: PositiveFloat = 1.0  # a gradient's largest norm; longer ones are scaled down


class OptimizerConfig(AdamWConfig):
    """AdamW with one of transformers' learning-rate schedules."""

    lr_scheduler_type: Schedule = "constant_with_warmup"  # of transformers
