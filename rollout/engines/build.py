"""From an engine's name to the engine."""

from typing import TYPE_CHECKING, Any

from rollout.engines.base import Engine

if TYPE_CHECKING:
    import torch


def build_engine(
    name: str,
    model_name_or_path: str,
    *,
    dtype: str,
    device: "torch.device",
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_gib: float,
    gpu_memory_utilization: float,
    vllm_options: dict[str, Any],
    base_url: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Engine:
    """The named engine (vllm, hf or server) with the model loaded."""
    if name == "server":
        from rollout.engines.server import ServerEngine

        assert base_url is not None
        return ServerEngine(
            model_name_or_path,
            base_url=base_url,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            trust_remote_code=trust_remote_code,
        )
    if name == "hf":
        from rollout.engines.hf import HFEngine

        return HFEngine(
            model_name_or_path,
            dtype=dtype,
            device=device,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    from rollout.engines.vllm import VLLMEngine

    return VLLMEngine(
        model_name_or_path,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        kv_cache_gib=kv_cache_gib,
        gpu_memory_utilization=gpu_memory_utilization,
        vllm_options={"revision": revision, "trust_remote_code": trust_remote_code} | vllm_options,
    )
