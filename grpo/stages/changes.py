"""What may differ between a run's recipe and the one it is resumed with."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from grpo.recipe.load import RecipeError
from grpo.recipe.section import Section

# Keys that may always differ; a section's name covers all its keys. The table in docs/recipes.md lists them.
FREE = (
    "trainer.max_steps",
    "trainer.output_dir",
    "trainer.save_steps",
    "trainer.save_total_limit",
    "trainer.resume_from_checkpoint",
    "trainer.allow_changes",
    "trainer.num_reward_workers",
    "trainer.max_tokens_per_micro_batch",
    "trainer.gradient_checkpointing",
    "trainer.activation_offloading",
    "trainer.sharding",
    "trainer.sharding_replicas",
    "trainer.offload_params",
    "rollout.servers",  # others answer alike, and a machine's name changes when a cluster starts the run again
    "rollout.adapters",  # merged or sent, the engine computes the same up to rounding
    "rollout.max_num_seqs",
    "rollout.max_model_len",
    "rollout.gpu_memory_utilization",
    "rollout.kv_cache_gib",
    "rollout.sleep_level",
    "evaluation.eval_steps",
    "output",
    "report",
)
MISSING = object()


def check_unchanged(recipe: Section, recorded: Path, allowed: Sequence[str]) -> None:
    """Compare a recipe with the `recipe.yaml` of the run it continues.

    allowed: keys that may differ besides FREE, such as trainer.learning_rate, or whole sections.

    Raises:
        RecipeError: other keys differ, or there is no such run.
    """
    if not recorded.is_file():
        raise RecipeError(
            f"{recorded.parent} has results but no {recorded.name}, so it is not a run that can be continued. Choose "
            "another folder."
        )
    changed = differences(recipe, recorded, allowed)
    if not changed:
        return
    lines = [f"  - {key}: was {was}, now {now}" for key, (was, now) in changed.items()]
    raise RecipeError(
        "\n".join(
            [
                f"The run to resume ({recorded}) has another recipe:",
                *lines,
                _remedy(recipe, changed),
            ]
        )
    )


def _remedy(recipe: Section, changed: Iterable[str]) -> str:
    allow = f", allow the change with trainer.allow_changes=[{','.join(changed)}]" if hasattr(recipe, "trainer") else ""
    return f"Restore these values{allow}, or {afresh(recipe)}."


def afresh(recipe: Section) -> str:
    """The remedy of a run that cannot go on."""
    resume = "without trainer.resume_from_checkpoint" if hasattr(recipe, "trainer") else "with resume=false"
    return f"start a new run {resume}"


def differences(recipe: Section, recorded: Path, allowed: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
    """{"trainer.seed": ("42", "43")}: keys that differ from the recorded recipe, besides FREE and `allowed`."""
    before = dict(_flat(yaml.safe_load(recorded.read_text(encoding="utf-8"))))
    now = dict(_flat(recipe.model_dump(mode="json")))
    return {
        key: (_shown(before, key), _shown(now, key))
        for key in dict.fromkeys([*before, *now])
        if before.get(key, MISSING) != now.get(key, MISSING) and not covered(key, (*FREE, *allowed))
    }


def covered(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these or in one of these sections."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("rewards.0.weight", 1.0), …; empty mappings and lists are values."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    if not values or not items:
        yield prefix.removesuffix("."), values
        return
    for key, value in items:
        yield from _flat(value, f"{prefix}{key}.")


def _shown(values: dict[str, Any], key: str) -> str:
    return "not set" if key not in values else repr(values[key])
