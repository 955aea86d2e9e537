"""One entry of a recipe's `rewards`."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from grpo.recipe.section import Section

NOT_IMPORTABLE = "not importable: "  # how recipe.yaml records a Python function that a relaunch cannot find


def _importable(function: str) -> str:
    if function.startswith(NOT_IMPORTABLE):
        name = function.removeprefix(NOT_IMPORTABLE)
        raise ValueError(
            f"{function!r} was passed from Python and cannot be imported. Define {name!r} at the top level of a module "
            "and name it here as path/to/file.py:function, or remove this entry and pass reward_functions again."
        )
    return function


class RewardConfig(Section):
    """One reward function: a built-in name, `package.module:function` or `path/to/file.py:function`."""

    function: Annotated[str, AfterValidator(_importable)]
    weight: Annotated[float, Field(ge=-1e18, le=1e18)] = 1.0
    options: dict[str, Any] = {}  # keyword arguments, fixed for the run
    name: str = ""  # used in metrics and `evaluation.reward`; empty: the function's name
    requires: str | None = None  # counts as 0 unless the completion scores above 0.5 on the reward with this name
    data_sources: list[str] | None = None  # only for problems with one of these in column data_source; None: for all

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("function"), str):
            return {"name": values["function"].rpartition(":")[2], **values}
        return values
