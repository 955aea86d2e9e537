"""Rules for `model.mtp`: a model's multi-token prediction while GRPO's loop trains it."""

from collections.abc import Iterator

SHARDED = "its weights are not divided over processes"


def mtp_conflicts(mtp: str | None, *, adapters: bool, sharding: str) -> Iterator[str]:
    """adapters: the recipe has model.lora."""
    if mtp and adapters:
        yield (
            f"model.mtp={mtp} with model.lora: only adapters are saved, so the multi-token prediction would be lost. "
            "Remove one of them."
        )
    if mtp and sharding != "none":
        yield f"model.mtp={mtp} with trainer.sharding={sharding}: {SHARDED}. Remove model.mtp, or set sharding=none."
