"""From an engine's name to the engine.

To add an engine, write one file that implements `rollout.engines.base.Engine` and add one line to `ENGINES`. The
constructor takes the model and, by name, whichever of `build_engine`'s settings it needs.
"""

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout.engines.adapter import AdapterFormat, with_room_for
from rollout.engines.base import Engine, check_context
from rollout.engines.servers.settings import ServerSettings
from rollout.support.loading import load_object
from rollout.support.names import nearest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A reference, not a class: an engine's libraries are imported only when that engine is built."""

    reference: str  # the class that samples
    trains: str | None  # the one that also takes new weights (`Publisher`)
    records: bool  # its completions can carry the experts that their tokens took, and the tokens that were kept
    check: str | None = None  # refuses, from files and settings alone, what the one that trains would refuse


ENGINES = {
    "vllm": EngineEntry(
        "rollout.engines.vllm:VLLMEngine",
        "rollout.engines.vllm:VLLMEngine",
        records=True,
        check="rollout.engines.vllm_setup:check",
    ),
    "hf": EngineEntry("rollout.engines.hf:HFEngine", "rollout.engines.hf:HFEngine", records=True),
    "server": EngineEntry(
        "rollout.engines.server:ServerEngine",
        "rollout.engines.servers.engine:ServersEngine",
        records=False,
        check="rollout.engines.servers.start:check",
    ),
}


def check_name(name: str) -> str:
    """The name of an engine. ValueError for any other."""
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}.{nearest(name, ENGINES)} Engines: {', '.join(ENGINES)}.")
    return name


def check_trainable(name: str) -> str:
    """The name of an engine that takes new weights. ValueError for any other."""
    if not ENGINES[check_name(name)].trains:
        able = ", ".join(name for name, entry in ENGINES.items() if entry.trains)
        raise ValueError(f"engine {name!r} serves its own model and cannot take the trainer's weights. Use {able}.")
    return name


def check_in_process(name: str) -> str:
    """The name of an engine that loads the model itself. ValueError for any other."""
    if check_name(name) == "server":
        raise ValueError("engine 'server' serves its own model. Use vllm, hf.")
    return name


def check_engine(
    name: str,
    model_name_or_path: str,
    *,
    max_model_len: int,
    vllm_options: dict[str, Any],
    sleep_level: int,
    servers: ServerSettings | None,
    revision: str | None,
    trust_remote_code: bool,
    adapter: AdapterFormat | None = None,
) -> None:
    """Refuse now what an engine that trains would refuse once the policy has been loaded.

    Arguments as of `build_engine`. Raises ValueError.
    """
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    _check_length(name, model_name_or_path, max_model_len, vllm_options, source)
    if reference := ENGINES[name].check:
        check = load_object(reference, kind="check")
        options = with_room_for(adapter, vllm_options)
        settings = {"vllm_options": options, "sleep_level": sleep_level, "servers": servers, **source}
        check(model_name_or_path, **{n: v for n, v in settings.items() if n in inspect.signature(check).parameters})


def _check_length(
    name: str, model: str, max_model_len: int, vllm_options: dict[str, Any], source: dict[str, Any]
) -> None:
    """ValueError for a context that the model does not have, or that vLLM's options cut short."""
    own = max_model_len if name == "hf" else vllm_options.get("max_model_len", max_model_len)
    if own < max_model_len:  # vLLM would cut completions, and call that their length limit
        raise ValueError(
            f"vllm_options.max_model_len={own}: prompt and completion may have {max_model_len} tokens together. "
            "Remove it, or lower max_completion_length."
        )
    if name != "server" and "hf_overrides" not in vllm_options:  # vLLM's overrides may extend the context
        from transformers import AutoConfig

        check_context(AutoConfig.from_pretrained(model, **source), own)


def build_engine(
    name: str,
    model_name_or_path: str,
    *,
    dtype: str,
    device: "torch.device | str",
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_gib: float,
    gpu_memory_utilization: float,
    vllm_options: dict[str, Any],
    sleep_level: int = 0,
    base_url: str | None = None,
    servers: ServerSettings | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    return_routes: bool = False,
    return_kept: bool = False,
    adapter: AdapterFormat | None = None,
) -> Engine:
    """The named engine with the model loaded; each engine ignores the settings that do not apply to it.

    Args:
        name: a key of `ENGINES`.
        model_name_or_path: Hugging Face folder or Hub name; "server" loads only the tokenizer from it.
        dtype: "float32", "bfloat16" or "float16".
        device: where "hf" runs.
        max_model_len: context length in tokens, prompt and completion together.
        max_num_seqs: sequences decoded concurrently.
        kv_cache_gib: vLLM's KV cache on CPU, in GiB.
        gpu_memory_utilization: fraction of GPU memory vLLM uses for weights and KV cache.
        vllm_options: further arguments of `vllm.LLM`.
        sleep_level: of "vllm", see `VLLMEngine`.
        base_url: URL of the server, including /v1; for "server" that only samples.
        servers: for "server" that trains.
        return_routes: completions carry the experts that their tokens took; for engines that can (`records`).
        return_kept: completions carry the tokens that they were drawn from, where the sampling truncates; likewise.
        adapter: weights that are published are those of such an adapter; for "vllm" and "server".

    Raises:
        ValueError: unknown engine, a context the model does not have, or the engine cannot start; see its class.
    """
    settings = {
        "dtype": dtype,
        "device": device,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "kv_cache_gib": kv_cache_gib,
        "gpu_memory_utilization": gpu_memory_utilization,
        "vllm_options": vllm_options,
        "sleep_level": sleep_level,
        "base_url": base_url,
        "servers": servers,
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "return_routes": return_routes,
        "return_kept": return_kept,
        "adapter": adapter,
    }
    entry = ENGINES[check_name(name)]
    constructor = load_object(entry.trains if servers and entry.trains else entry.reference, kind="engine")
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    _check_length(name, model_name_or_path, max_model_len, vllm_options, source)
    accepted = inspect.signature(constructor).parameters
    return constructor(
        model_name_or_path, **{setting: value for setting, value in settings.items() if setting in accepted}
    )
