"""`schedules`: numbers that change during a run. A number is a pure function of the step, so a resumed run has it too.

    schedules: {rollout.max_completion_length: {0: 32768, 8200: 65536}}

A value holds from the first rollout at or after its step. The key's own section has the largest value, which everything
is sized by: the engine's context, micro-batches, estimates.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError

from grpo.recipe.algorithm import AlgorithmConfig
from rollout.support.names import nearest

RecipeT = TypeVar("RecipeT", bound=BaseModel)
SchedulesOf = Mapping[str, Mapping[int, int | float]]  # key -> step -> value

REASONS = {
    "algorithm.ref_model_sync_steps": "it is an interval already",
    "algorithm.steps_per_generation": "rollouts and their random numbers are counted by it",
    "rollout.problems_per_step": "a mixture's from_step is counted by it",
    "trainer.learning_rate": "trainer.lr_scheduler_type is its schedule",
}


def _is_number(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return any((get_args(kind)[0] if get_origin(kind) is Annotated else kind) in (int, float) for kind in kinds)


# What the loop reads anew at each rollout.
SAMPLING = ("max_completion_length", "num_generations", "temperature", "top_p", "top_k", "min_p")
NUMBERS = (f"algorithm.{name}" for name, field in AlgorithmConfig.model_fields.items() if _is_number(field.annotation))
SCHEDULED = (*(f"rollout.{name}" for name in SAMPLING), *(key for key in NUMBERS if key not in REASONS))


def _step(key: Any) -> Any:
    """JSON's keys are strings."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _known(schedules: dict[str, dict[int, int | float]]) -> dict[str, dict[int, int | float]]:
    for key, values in schedules.items():
        if key in REASONS:
            raise ValueError(f"{key}: it cannot change during a run: {REASONS[key]}. Remove it.")
        if key not in SCHEDULED:
            raise ValueError(
                f"{key}: only what each rollout reads anew can change during a run.{nearest(key, SCHEDULED)} "
                f"That is: rollout.{{{', '.join(SAMPLING)}}} and the numbers of section algorithm."
            )
        if 0 not in values:
            raise ValueError(f"{key}: steps {sorted(values)} leave the first rollout without a value. Add step 0.")
    return schedules


Step = Annotated[int, Field(ge=0), BeforeValidator(_step)]
Schedules = Annotated[dict[str, dict[Step, int | float]], AfterValidator(_known)]


def sized_by_largest(values: Any) -> Any:
    """A recipe's mapping, with the largest value of each schedule where the key's section has none."""
    if not isinstance(values, dict) or not isinstance(values.get("schedules"), dict):
        return values
    filled = dict(values)
    for key, steps in values["schedules"].items():
        section, _, name = key.partition(".")
        numbers = list(steps.values()) if isinstance(steps, dict) else []
        is_usable = key in SCHEDULED and all(isinstance(n, int | float) for n in numbers)
        if numbers and is_usable and isinstance(filled.get(section, {}), dict):
            filled[section] = {name: max(numbers), **filled.get(section, {})}
    return filled


def recipe_at(recipe: RecipeT, schedules: SchedulesOf, step: int) -> RecipeT:
    """The recipe as it is after `step` optimizer steps."""
    changes: dict[str, dict[str, int | float]] = {}
    for key, steps in schedules.items():
        section, _, name = key.partition(".")
        changes.setdefault(section, {})[name] = steps[max(one for one in steps if one <= step)]
    return recipe.model_copy(
        update={section: getattr(recipe, section).model_copy(update=values) for section, values in changes.items()}
    )


def schedule_conflicts(recipe: BaseModel, schedules: SchedulesOf, *, max_steps: int) -> Iterator[str]:
    """What does not fit the rest of the recipe, which is checked with the values of every step."""
    for key, steps in schedules.items():
        section, _, name = key.partition(".")
        own, largest = getattr(getattr(recipe, section), name), max(steps.values())
        if own != largest:
            yield (
                f"{key}={own} with schedules: {key} goes up to {largest}, which the engine and memory are sized by. "
                f"Set {key}={largest}, or leave it out; schedules=null removes the schedules."
            )
        if late := [step for step in steps if step >= max_steps]:
            yield (
                f"schedules: {key} changes at step {late[0]} of a run of trainer.max_steps={max_steps}, so it never "
                "does. Lower the step, or remove it."
            )
    # Without a KL term from some step on, what belongs to it is still of use before.
    kl = "algorithm.beta"
    checked = {
        key: {step: value or max(steps.values()) if key == kl else value for step, value in steps.items()}
        for key, steps in schedules.items()
    }
    for step in sorted({step for steps in schedules.values() for step in steps}):
        one = recipe_at(recipe, checked, step).model_copy(update={"schedules": None})
        try:
            type(recipe).model_validate_json(one.model_dump_json(), strict=True)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                where = ".".join(map(str, item["loc"]))
                yield f"schedules, from step {step}: {where}{': ' * bool(where)}{item['msg']}"
