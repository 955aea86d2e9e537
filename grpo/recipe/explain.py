"""Turns pydantic's errors into one line each, with value, rule and remedy."""

import difflib
import re
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import PydanticUndefined
from pydantic_core.core_schema import ErrorType

from grpo.recipe.section import Section
from rollout.support.names import nearest

# Reasons for rules that are not obvious from pydantic's message.
REASONS = {
    "model.dtype": "float16's range is too small for RL's gradients and log-probs",
    "rollout.num_generations": "advantages compare the completions of a group",
    "rollout.temperature": "greedy decoding makes all completions of a group equal",
    "rewards": "without a reward there is nothing to learn",
}
# Names of TRL and transformers -> what they are here. Named where the recipe has the key that the text begins with.
BROUGHT = {
    "bf16": "model.dtype=bfloat16",
    "dataset_train_split": "data.dataset_split",
    "eval_strategy": "evaluation.eval_steps",
    "generation_batch_size": "rollout.problems_per_step, in problems",
    "gradient_accumulation_steps": "trainer.max_tokens_per_micro_batch, and rollout.problems_per_step for the batch",
    "load_in_4bit": "model.quantization=4bit",
    "lr": "trainer.learning_rate",
    "num_iterations": "algorithm.steps_per_generation, optimizer steps per rollout",
    "num_train_epochs": "trainer.max_steps",
    "per_device_train_batch_size": "trainer.max_tokens_per_micro_batch, and rollout.problems_per_step for the batch",
    "reward_funcs": "rewards, a list of {function: …}",
    "reward_weights": "rewards, where each entry has a weight",
    "torch_dtype": "model.dtype",
    "use_peft": "model.lora, such as {r: 16}",
    "use_vllm": "rollout.engine=vllm",
    "vllm_gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "vllm_mode": "rollout.engine, vllm in the trainer's process or server",
}
# pydantic's error type -> the rule
RULES: dict[ErrorType, str] = {
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "string_type": "must be a string; quote it",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping of keys",
}


def explain(error: ValidationError, cls: type[Section]) -> list[str]:
    """One line per error in a recipe of class `cls`; errors that our own validators raise keep their text."""
    lines: dict[str, None] = {}
    for item in error.errors(include_url=False):
        for line in _lines(item, cls):
            lines[line] = None  # a union reports an error for each member: list it once
    return list(lines)


def _lines(item: Any, cls: type[Section]) -> list[str]:
    location = [part for part in item["loc"] if part not in ("bool", "str")]  # unions add the member's type
    where, kind, value = _written(location, cls), item["type"], item["input"]
    if kind == "extra_forbidden":
        return [f"{where}: unknown key.{_where_it_belongs(location, cls)}"]
    if kind == "missing":
        reason = f" ({REASONS[where]})" if where in REASONS else ""
        return [f"{where}: is required{reason}. Add it."]
    if kind == "value_error":
        messages = item["msg"].removeprefix("Value error, ").splitlines()
        return [f"{where}: {line}" if where else line for line in messages]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return [_wrong_tag(where, item["ctx"])]
    rule = RULES.get(kind) or item["msg"].replace("Input should", "must")
    reason = f" ({REASONS[where]})" if where in REASONS else ""
    remedy = nearest(str(value), re.findall(r"'([^']+)'", rule)) if kind == "literal_error" else ""
    return [f"{where}={value!r}: {rule}{reason}.{remedy or _default(location, cls)}"]


def _wrong_tag(where: str, context: dict[str, str]) -> str:
    """The message for a list item whose `name` chooses no section."""
    key = context["discriminator"].strip("'")
    if "tag" not in context:
        return f"{where}.{key}: is required. Add it."
    tag, known = context["tag"], context["expected_tags"]
    close = nearest(tag, known.replace("'", "").split(", "))
    return f"{where}.{key}={tag!r}: must be one of {known}.{close}"


def _default(location: list[str | int], cls: type[Section]) -> str:
    field = _section(location[:-1], cls).model_fields.get(str(location[-1]))
    if field is None or field.default is PydanticUndefined or field.default is None:
        return ""
    return f" The default is {field.default!r}."


def _where_it_belongs(location: list[str | int], cls: type[Section]) -> str:
    key, section = str(location[-1]), _section(location[:-1], cls)
    if key in BROUGHT and _has(cls, BROUGHT[key]):
        return f" Here it is {BROUGHT[key]}."
    if key == "push_to_hub":
        return " Upload the checkpoint after the run, with `hf upload`."
    known = [field.alias or name for name, field in section.model_fields.items()]
    places = {name: _sections(field.annotation) for name, field in cls.model_fields.items()}
    for name, inner in places.items():  # before a name that is only near
        if any(key in one.model_fields for one in inner):
            return f" Did you mean {name}.{key}?"
    close = nearest(key, known)
    if close:
        return close
    for name, inner in places.items():
        for one in inner:
            match = difflib.get_close_matches(key, one.model_fields, n=1, cutoff=0.8)
            if match:
                return f" Did you mean {name}.{match[0]}?"
    return f" Known keys: {', '.join(known)}."


def _has(cls: type[Section], text: str) -> bool:
    """Whether a recipe has the key that the text begins with."""
    section, _, key = re.split(r"[^\w.]", text)[0].partition(".")
    field = cls.model_fields.get(section)
    return field is not None and (not key or any(key in one.model_fields for one in _sections(field.annotation)))


def _written(location: list[str | int], cls: type[Section]) -> str:
    """A location as a recipe writes it: without the tags that pydantic adds after the items of a list of unions."""
    parts = [part for i, part in enumerate(location) if not _is_tag(location, i, cls)]
    return ".".join(map(str, parts))


def _is_tag(location: list[str | int], index: int, cls: type[Section]) -> bool:
    if index < 2 or not isinstance(location[index - 1], int):
        return False
    field = _section(location[: index - 2], cls).model_fields.get(str(location[index - 2]))
    return field is not None and len(_sections(field.annotation)) > 1


def _section(location: list[str | int], cls: type[Section]) -> type[Section]:
    """The section class at a location; indices and a mapping's keys are skipped, a tag chooses among a union's."""
    inner: list[type[Section]] = []
    in_mapping = False
    for part in location:
        if isinstance(part, int) or in_mapping:
            in_mapping = False
            continue
        tagged = [section for section in inner if len(inner) > 1 and part in _tags(section)]
        if not tagged:
            inner = _sections(cls.model_fields[part].annotation) if part in cls.model_fields else []
        if not (tagged or inner):
            break
        in_mapping = not tagged and get_origin(cls.model_fields[str(part)].annotation) is dict
        cls, inner = (tagged[0], []) if tagged else (inner[0], inner)
    return cls


def _tags(section: type[Section]) -> set[Any]:
    return {tag for field in section.model_fields.values() for tag in get_args(field.annotation)}


def _sections(annotation: Any) -> list[type[Section]]:
    """The section classes in an annotation such as `list[RewardConfig]` or `DataConfig | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections(argument)]
