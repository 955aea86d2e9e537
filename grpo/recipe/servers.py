"""The section `rollout.servers`: vLLM servers that sample for the trainer."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, model_validator

from grpo.recipe.algorithm import RATIO_TO_ENGINE
from grpo.recipe.section import Section

OWN_GPU_MEMORY = 0.9  # of a GPU that an engine shares with nothing


class ServersConfig(Section):
    """vLLM servers that sample for the trainer, docs/engines.md. A list is short for {urls: …}."""

    urls: list[str] = []  # such as http://host:8000, each started with `grpo serve MODEL --for-training`
    start: NonNegativeInt = 0  # instead: how many to start on this machine
    api_key_env: str | None = None  # environment variable with the servers' API key
    weights: Literal["file", "nccl"] = "file"  # how new weights travel; nccl: between GPUs
    weights_dir: str | None = None  # for `file`: a folder all machines see; None: shared memory of this machine
    start_timeout: PositiveFloat = 1800.0  # seconds until started servers must be up
    health_timeout: PositiveFloat = 60.0  # seconds without an answer until a server is left out
    request_timeout: PositiveFloat = 3600.0  # seconds for one group's completions
    update_timeout: PositiveFloat = 600.0  # seconds for a request that brings weights
    patience: PositiveFloat = 60.0  # seconds to wait for a server's return when none is left

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, values: Any) -> Any:
        return {"urls": values} if isinstance(values, list) else values


def with_own_gpus(values: Any) -> Any:
    """Values of the section `rollout`, before they are checked: servers that a run starts share GPUs with nothing."""
    match values:
        case {"servers": {"start": int(start)}} if start > 0:
            return {"gpu_memory_utilization": OWN_GPU_MEMORY, **values}
    return values


def server_conflicts(engine: str, servers: ServersConfig | None, max_staleness: int) -> Iterator[str]:
    """Value, rule and remedy for each combination of these keys of `rollout` that cannot be."""
    if max_staleness and engine != "server":
        yield (
            f"rollout.max_staleness={max_staleness} with rollout.engine={engine}: an engine in the trainer's process "
            "cannot generate while the policy is updated. Set rollout.engine=server and rollout.servers={start: 1}, or "
            "max_staleness=0."
        )
    if (engine == "server") != (servers is not None):
        yield (
            f"rollout.engine={engine} {'without' if servers is None else 'with'} rollout.servers: engine server needs "
            "servers, and no other does. Set rollout.engine=server and rollout.servers={start: 1} or "
            "[http://host:8000], or remove rollout.servers."
        )
    if servers and bool(servers.urls) == bool(servers.start):
        yield (
            f"rollout.servers: {len(servers.urls)} urls and start={servers.start}: either name servers or say how many "
            "to start. Set one of them."
        )


def ahead_conflicts(max_staleness: int, keys: Iterable[str]) -> Iterator[str]:
    """keys: those in use that decide what is sampled by what the rollouts before have shown, or by the step."""
    for key in keys:
        yield (
            f"rollout.max_staleness={max_staleness} with {key}: what it decides for a rollout is not known when the "
            f"rollout is sampled ahead of the update. Set rollout.max_staleness=0, or remove {key}."
        )


def corrected_if_stale(values: Any) -> Any:
    """A recipe's values, before they are checked, with `tis` if it samples ahead and names no correction.

    Stale samples are another policy's, so they are weighed; losses whose ratio is to the engine weigh them already.
    """
    sections = [values.get(name, {}) for name in ("rollout", "algorithm")] if isinstance(values, dict) else []
    match sections:
        case [{"max_staleness": int(stale)}, dict(algorithm)] if stale > 0:
            if algorithm.get("loss_type") not in RATIO_TO_ENGINE and not algorithm.get(
                "importance_sampling_correction"
            ):
                return {**values, "algorithm": {**algorithm, "importance_sampling_correction": "tis"}}
    return values
