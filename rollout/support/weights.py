"""Has a loaded model got its own weights? For those a folder lacks, transformers takes random ones, and prints so."""

from collections.abc import Collection, Mapping
from typing import Any

# For from_pretrained: it returns what `whole` takes, and leaves the judgement on shapes to it.
REPORTING: Mapping[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
_SHOWN = 3


def whole(loaded: Any, name: object, *, new: Collection[str] = ()) -> Any:
    """The model of `from_pretrained(…, **REPORTING)`.

    Args:
        name: the folder or Hub name, for messages.
        new: weights that may be missing, because they are yet to be trained.

    Raises:
        ValueError: a weight is missing, or of another shape than config.json says.
    """
    model, report = loaded
    kind = type(model).__name__
    if missing := sorted(set(report["missing_keys"]) - set(new)):
        raise ValueError(
            f"{name} lacks {len(missing)} of the weights of a {kind} ({_some(missing)}), which would be random. Give "
            "the folder of a whole model of this kind."
        )
    if others := sorted(f"{key} {list(stored)}, not {list(own)}" for key, stored, own in report["mismatched_keys"]):
        raise ValueError(
            f"{name} holds {len(others)} weights of other shapes than its config.json gives a {kind} ({_some(others)})."
            " Correct config.json, or give the folder of another model."
        )
    return model


def _some(names: list[str]) -> str:
    return ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
