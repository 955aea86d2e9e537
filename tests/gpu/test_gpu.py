"""What only a GPU can show: `make gpu-check`. Written against vLLM 0.32's and torch 2.13's APIs, and not run so far.

Bounds are wide: the figures are what the report is for.
"""

import os
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from grpo.model.forward.grouped import grouped_attention
from grpo.model.forward.head import token_logprobs
from tests.gpu.runs import BF16, SHORT, mismatch, run_python, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
Record = Callable[[str, object], None]


@pytest.mark.parametrize("invariant", ["0", "1"], ids=["default kernels", "batch-invariant kernels"])
def test_engine_and_trainer_agree_in_bfloat16(tmp_path: Path, record_property: Record, invariant: str) -> None:
    rows = train(
        tmp_path,
        "r1_zero.yaml",
        [*BF16, *SHORT, "trainer.max_steps=3"],
        environment={"VLLM_BATCH_INVARIANT": invariant},
    )
    for name, value in (found := mismatch(rows)).items():
        record_property(name, value)
    assert found["mean"] < 0.05


PACKING = """
import json, sys, numpy as np, torch
from accelerate import Accelerator
from grpo.learner.batch import Sample
from grpo.learner.scoring import Batching, completion_logprobs
from grpo.model.checks import check_model
from grpo.model.load import CompletionLogProbs, load_model
from grpo.recipe.config import ModelConfig
samples = [
    Sample(problem_id="p", prompt_ids=range(3, 3 + n), completion_ids=range(40, 40 + 7 * n), mini_batch=0,
           sampling_logprobs=0.0, advantages=1.0, token_weights=1.0)
    for n in (1, 5, 17, 40)
]
found, flash = {}, sys.argv[2]
for attention in ("sdpa", flash):
    section = ModelConfig(model_name_or_path=sys.argv[1], attn_implementation=attention, dtype="bfloat16")
    model = load_model(section)
    check_model(model, tokenizer_size=512, max_model_len=512)  # as a run does, on the CPU and in float32
    model = model.to("cuda", torch.bfloat16)
    scorer, batching = CompletionLogProbs(model, 1.0), Batching(4096, pad_token_id=0).for_model(model, model.device)
    found[attention] = np.concatenate(completion_logprobs(scorer, samples, batching, Accelerator()))
difference = np.abs(found["sdpa"] - found[flash])
print(json.dumps({"mean": float(difference.mean()), "max": float(difference.max())}))
"""


@pytest.mark.parametrize(
    ("attention", "package", "capability"),
    [("flash_attention_2", "flash-attn", 8), ("flash_attention_4", "flash-attn-4", 9)],
)
def test_packing_with_flash_attention_equals_padding(
    tmp_path: Path, record_property: Record, attention: str, package: str, capability: int
) -> None:
    """requirements/gpu.txt has the package of flash_attention_4; that of flash_attention_2 is built from its source."""
    if package not in packages_distributions().get("flash_attn", []):
        pytest.skip(f"needs the package {package}")
    if torch.cuda.get_device_capability() < (capability, 0):
        pytest.skip(f"needs a GPU of compute capability {capability}.0")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=4)
    config.num_attention_heads = config.num_key_value_heads = 4
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    found = run_python(PACKING, tmp_path, attention)
    for name, value in found.items():
        record_property(name, value)
    assert found["mean"] < 1e-2


def test_the_head_s_gradient_in_bfloat16_is_nearly_that_in_float32(record_property: Record) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 64, device="cuda"), torch.randn(1000, 64, device="cuda")
    targets = torch.arange(300, device="cuda")
    gradients = []
    for is_half in (False, True):
        w = weight.clone().requires_grad_()
        with torch.autocast("cuda", torch.bfloat16, enabled=is_half):
            token_logprobs(hidden, w, targets)[0].sum().backward()
        assert w.grad is not None and w.grad.dtype == torch.float32
        gradients.append(w.grad.flatten())
    record_property("cosine", cosine := float(torch.nn.functional.cosine_similarity(*gradients, dim=0)))
    assert cosine > 0.999


def test_grouped_attention_in_float32_does_not_hold_all_scores(record_property: Record) -> None:
    query, key, value = (torch.randn(1, heads, 8192, 64, device="cuda") for heads in (8, 2, 2))
    module: Any = SimpleNamespace(num_key_value_groups=4, is_causal=True)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    grouped_attention(module, query, key, value, None)
    gib = (torch.cuda.max_memory_allocated() - before) / 2**30
    record_property("peak_gib", gib)
    assert gib < 1  # the scores alone are 2


SLEEP = """
import json, sys, torch
from rollout.engines.vllm import VLLMEngine
from rollout.types import Problem, Prompt, Sampling
engine = VLLMEngine(sys.argv[1], dtype="bfloat16", max_model_len=256, max_num_seqs=64, kv_cache_gib=1.0,
                    gpu_memory_utilization=0.3, vllm_options={"enable_sleep_mode": True})
prompt = Prompt(problem=Problem(id="0", prompt="a"), token_ids=(5, 6, 7))
sampling = Sampling(num_generations=1, max_completion_length=32, temperature=0.0, seed=0)
tokens = lambda: [tuple(c.token_ids) for group in engine.generate([prompt], sampling) for c in group.completions]
free = lambda: torch.cuda.mem_get_info()[0] / 2**30
before, awake = tokens(), free()
engine._llm.sleep(level=1)
asleep = free()
engine._llm.wake_up()
print(json.dumps({"freed_gib": asleep - awake, "lost_gib": awake - free(), "equal": float(before == tokens())}))
"""


def test_sleep_gives_memory_back_and_waking_changes_nothing(record_property: Record) -> None:
    found = run_python(SLEEP, Path(__file__).parents[2] / "recipes/v3_base")
    for name, value in found.items():
        record_property(name, value)
    assert found["equal"] == 1 and found["freed_gib"] > 1


@two_gpus
def test_weights_reach_a_server_over_nccl(tmp_path: Path, record_property: Record) -> None:
    server = [
        "rollout.engine=server",
        "rollout.servers={start: 1, weights: nccl}",
        "rollout.vllm_options={weight_transfer_config: {backend: nccl}}",
    ]
    rows = train(tmp_path, "r1_zero.yaml", [*BF16, *SHORT, *server, "trainer.max_steps=3"])
    record_property("seconds per update", max(row["time/sync"] for row in rows[1:]))
    record_property("mean", mismatch(rows)["mean"])
    assert mismatch(rows)["mean"] < 0.05  # after updates: the server has them


@two_gpus
def test_two_sharded_processes_train_as_two_whole_ones(tmp_path: Path, record_property: Record) -> None:
    offload = [f"trainer.{name}=true" for name in ("offload_params", "gradient_checkpointing", "activation_offloading")]
    whole, *others = (
        train(tmp_path / name, "r1_zero.yaml", [*SHORT, "trainer.max_steps=2", *how], processes=2)
        for name, how in {
            "whole": [],
            "sharded": ["trainer.sharding=fsdp2"],
            "offloaded": ["trainer.sharding=fsdp2", *offload],
        }.items()
    )
    for kind, rows in zip(("sharded", "offloaded"), others, strict=True):
        for name in ("loss", "grad_norm"):
            record_property(f"{name}, {kind}", abs(rows[0][name] - whole[0][name]))
            assert rows[0][name] == pytest.approx(whole[0][name], rel=1e-3, abs=1e-5)


def test_fp8_rollouts_train_with_correction(tmp_path: Path, record_property: Record) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with FP8")
    fp8 = ["rollout.vllm_options={quantization: fp8}", "algorithm.importance_sampling_correction=tis"]
    rows = train(tmp_path, "r1_zero.yaml", [*BF16, *SHORT, *fp8, "trainer.max_steps=5"])
    for name, value in mismatch(rows).items():
        record_property(name, value)
    assert mismatch(rows)["mean"] < 0.5  # the correction's range


def test_twenty_steps_of_gsm8k(tmp_path: Path, record_property: Record) -> None:
    """GPU_CHECK_MODEL: folder of an instruct model, about 0.5B; GPU_CHECK_DATA: GSM8K as .jsonl, else from the Hub."""
    if not (model := os.environ.get("GPU_CHECK_MODEL")):
        pytest.skip("GPU_CHECK_MODEL names no folder")
    overrides = [f"model.model_name_or_path={Path(model).resolve()}", *BF16, "trainer.max_steps=20"]
    overrides += ["evaluation.tasks=[]", "evaluation.num_problems=0"]
    if data := os.environ.get("GPU_CHECK_DATA"):
        overrides += [f"data.dataset_name={Path(data).resolve()}", "data.dataset_config=null"]
    rows = train(tmp_path, "gsm8k.yaml", overrides)
    for name, part in (("first", rows[:5]), ("last", rows[-5:])):
        record_property(f"reward, {name} 5 steps", sum(row["reward"] for row in part) / 5)
    for name in ("step_time", "time/generate", "time/update", "time/sync"):
        record_property(name, sum(row[name] for row in rows[1:]) / 19)
    record_property("mean", mismatch(rows)["mean"])
    assert len(rows) == 20 and all(row["loss"] == row["loss"] for row in rows)  # no NaN
