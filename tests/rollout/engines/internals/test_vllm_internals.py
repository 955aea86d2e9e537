"""Every vLLM internal that the engine patches or uses, so that an upgrade that moves one fails here by name.

test_engines.py and test_weight_updates.py test what they are used for.
"""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.engines.vllm import VLLMEngine
from rollout.types import Sampling
from tests.rollout.engines.agreement import make_prompts

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module", autouse=True)
def engine(vllm_v3: VLLMEngine) -> VLLMEngine:
    """Started first: vLLM reads its environment while it is imported."""
    return vllm_v3


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vllm.platforms", "current_platform.is_cpu"),
        ("vllm.platforms", "current_platform.simple_compile_backend"),
        ("vllm.envs", "disable_envs_cache"),
        ("vllm.envs", "VLLM_NO_USAGE_STATS"),
        ("vllm.envs", "VLLM_ENABLE_V1_MULTIPROCESSING"),
        ("vllm.envs", "VLLM_MLA_DISABLE"),
        ("vllm.envs", "VLLM_LOGGING_LEVEL"),
        ("vllm.v1.engine.core", "cleanup_dist_env_and_memory"),
        ("vllm.distributed", "destroy_model_parallel"),
        ("vllm.logprobs", "FlatLogprobs"),
        ("vllm.sampling_params", "RequestOutputKind.FINAL_ONLY"),
        ("vllm.compilation.decorators", "IGNORE_COMPILE_KEY"),
        ("vllm.compilation.wrapper", "TorchCompileWithNoGuardsWrapper"),
        ("vllm.v1.attention.backends.cpu_attn", "CPUAttentionBackend.get_supported_head_sizes"),
        ("vllm.model_executor.layers.vocab_parallel_embedding", "ParallelLMHead"),
        ("vllm", "LLM.sleep"),
        ("vllm", "LLM.wake_up"),
        ("vllm.distributed.weight_transfer.base", "WeightTransferEngine.parse_update_info"),
        ("vllm.distributed.weight_transfer.factory", "WeightTransferEngineFactory._registry"),
        ("vllm.distributed.weight_transfer.factory", "WeightTransferEngineFactory.register_engine"),
        ("vllm.distributed.weight_transfer.factory", "WeightTransferTrainerFactory.trainer_init"),
        ("vllm.model_executor.layers.fused_moe.runner.moe_runner", "MoERunner.layer_id"),
        ("vllm.model_executor.layers.fused_moe.router.base_router", "BaseRouter.set_capture_fn"),
        ("vllm.v1.sample.ops.topk_topp_sampler", "TopKTopPSampler.register_forward_hook"),
        ("vllm.config.model", "ModelConfig.return_sampling_mask"),
        ("vllm.outputs", "SamplingMask"),
        ("vllm.v1.worker.gpu_worker", "Worker.reload_weights"),
        ("vllm.v1.worker.cpu_worker", "CPUWorker.reload_weights"),
        ("vllm.v1.worker.cpu_worker", "CPUWorker.get_model"),
    ],
)
def test_vllm_still_has(module: str, name: str) -> None:
    value: Any = import_module(module)
    for part in name.split("."):
        assert hasattr(value, part), f"{module} has no {name}"
        value = getattr(value, part)


@pytest.mark.parametrize(
    "name",
    [
        "engine_core.shutdown",
        "add_request",
        "step",
        "has_unfinished_requests",
        "abort_request",
    ],
)
def test_llm_engine_still_has(engine: VLLMEngine, name: str) -> None:
    value: Any = engine._llm.llm_engine
    for part in name.split("."):
        value = getattr(value, part)
    assert callable(value)


def test_a_batch_that_was_begun_ahead_is_finished(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM on GPU begins one before it knows that a stop token has ended the last request."""
    core = engine._llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
    assert core.batch_queue is None  # on CPU
    groups = engine.generate(make_prompts(2), Sampling(num_generations=1, max_completion_length=2))
    next(groups)
    begun = [1, 2]
    monkeypatch.setattr(core, "batch_queue", begun)
    monkeypatch.setattr(engine._llm.llm_engine, "step", begun.pop)
    groups.close()  # type: ignore[attr-defined]
    assert not begun


@pytest.mark.parametrize("name", ["n", "seed", "stop", "stop_token_ids", "flat_logprobs", "detokenize", "output_kind"])
def test_sampling_params_still_take(name: str) -> None:
    from vllm import SamplingParams

    assert name in inspect.signature(SamplingParams).parameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprobs_mode", "processed_logprobs"),
        ("generation_config", "vllm"),
        ("enforce_eager", True),
        ("max_model_len", 256),
    ],
)
def test_options_reach_the_model_config(engine: VLLMEngine, name: str, value: object) -> None:
    assert getattr(engine._llm.llm_engine.vllm_config.model_config, name) == value


def test_chunked_prefill_and_custom_kernels_are_off(engine: VLLMEngine) -> None:
    config = engine._llm.llm_engine.vllm_config
    assert not config.scheduler_config.enable_chunked_prefill
    assert config.compilation_config.custom_ops == ["none"]


def test_stopping_calls_the_cleanup_that_is_replaced() -> None:
    """core.cleanup_dist_env_and_memory would destroy the trainer's process group."""
    from vllm.v1.engine.core import EngineCore

    assert "cleanup_dist_env_and_memory()" in inspect.getsource(EngineCore.shutdown)


def test_the_transformers_backend_decorates_the_model_class() -> None:
    """`_separate_classes` undoes this; if `support_torch_compile` leaves classes alone, it can go."""
    from vllm.compilation import decorators

    source = inspect.getsource(decorators._support_torch_compile)
    for line in (
        "cls.__bases__ = cls.__bases__ + (TorchCompileWithNoGuardsWrapper,)",
        "old_init = cls.__init__",
        "cls.__init__ = __init__",
        "cls.__call__ = __call__",
        "cls.save_aot_compiled_function = save_aot_compiled_function",
        "setattr(cls, IGNORE_COMPILE_KEY, False)",
    ):
        assert line in source


def test_the_cpu_worker_replaces_set_num_threads() -> None:
    """If it no longer does, restoring the function can go."""
    import vllm.v1.worker.cpu_worker

    assert "torch.set_num_threads = " in Path(vllm.v1.worker.cpu_worker.__file__).read_text()


def test_reload_weights_takes_an_iterator() -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert "weights_iterator" in inspect.signature(GPUModelRunner.reload_weights).parameters


def test_collective_rpc_runs_a_function_in_this_process(engine: VLLMEngine) -> None:
    seen: list[Any] = []
    engine._llm.collective_rpc(seen.append)
    (worker,) = seen
    assert worker.device == torch.device("cpu")
    assert isinstance(worker.get_model(), torch.nn.Module)


def test_cpu_experts_and_head_repack_their_weights(engine: VLLMEngine) -> None:
    """moe_kernel.fused_experts and ParallelLMHead.quant_method, both with process_weights_after_loading."""
    seen: list[Any] = []
    engine._llm.collective_rpc(lambda worker: seen.extend(worker.get_model().modules()))
    kernels = [m.quant_method.moe_kernel for m in seen if getattr(getattr(m, "quant_method", None), "moe_kernel", None)]
    heads = [module for module in seen if type(module).__name__ == "ParallelLMHead"]
    assert len(kernels) == 2 and len(heads) == 1  # two of the tiny model's three layers have experts
    assert all(callable(kernel.fused_experts.process_weights_after_loading) for kernel in kernels)
    assert callable(heads[0].quant_method.process_weights_after_loading)


def test_flat_logprobs_hold_one_value_per_token() -> None:
    from vllm.logprobs import FlatLogprobs

    assert FlatLogprobs().logprobs == []


def test_routers_and_runner_tell_whose_tokens_go_where(engine: VLLMEngine) -> None:
    """What `vllm_routes` captures routes with on CPU."""
    from vllm.model_executor.layers.fused_moe.layer import MoERunner
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    seen: list[Any] = []
    engine._llm.collective_rpc(seen.append)
    runner = seen[0].model_runner
    modules: list[Any] = [module for module in seen[0].get_model().modules() if isinstance(module, MoERunner)]
    assert [module.layer_id for module in modules] == [1, 2]
    assert all(isinstance(module.router, BaseRouter) for module in modules)
    batch = runner.input_batch  # of the last step, whoever asked for it
    assert isinstance(batch.req_ids, list) and batch.num_reqs == len(batch.req_ids)
    assert runner.query_start_loc.np.ndim == runner.positions.ndim == 1
