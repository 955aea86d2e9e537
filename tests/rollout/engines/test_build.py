"""One builder for every engine: each gets the settings it takes, and its libraries load only when it is built."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from rollout.engines.adapter import AdapterFormat
from rollout.engines.base import load_tokenizer, may_be_on_hub
from rollout.engines.build import build_engine, check_engine
from rollout.engines.hf import HFEngine
from rollout.engines.servers.settings import ServerSettings
from rollout.types import Problem, Prompt, Sampling

SETTINGS: dict[str, Any] = {
    "dtype": "float32",
    "device": "cpu",
    "max_model_len": 64,
    "max_num_seqs": 4,
    "kv_cache_gib": 0.1,
    "gpu_memory_utilization": 0.1,
    "vllm_options": {},
}


def test_hf_is_built_by_name_and_generates(tiny_llama: Path) -> None:
    engine = build_engine("hf", str(tiny_llama), **SETTINGS)
    assert isinstance(engine, HFEngine)
    prompt = Prompt(problem=Problem(id="p", prompt="hi"), token_ids=[104, 105])
    (group,) = engine.generate([prompt], Sampling(num_generations=2, max_completion_length=3))
    assert len(group.completions) == 2
    engine.close()


def test_an_option_that_vllm_does_not_have_is_named_with_the_nearest(tiny_llama: Path) -> None:
    options = {**SETTINGS, "vllm_options": {"max_num_batched_token": 5}}
    message = r"vllm_options.max_num_batched_token=5: .*Did you mean 'max_num_batched_tokens'\?"
    with pytest.raises(ValueError, match=message):
        build_engine("vllm", str(tiny_llama), **options)


def test_server_gets_its_address(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/v1/models.*ConnectError"):
        build_engine("server", str(tiny_llama), base_url="http://127.0.0.1:9/v1", **SETTINGS)


@pytest.mark.parametrize("name", ["hf", "vllm"])
def test_a_context_beyond_the_model_s_is_an_error(tiny_llama: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"max_model_len=513: the model's context is 512 tokens .* to at most 512"):
        build_engine(name, str(tiny_llama), **SETTINGS | {"max_model_len": 513})


def test_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'vlm'. Did you mean 'vllm'\? Engines: vllm, hf, server"):
        build_engine("vlm", "model", **SETTINGS)


def test_the_builder_loads_no_engine() -> None:
    code = (
        "import sys, rollout.engines.build; print([name for name in ('torch', 'vllm', 'httpx', 'transformers') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.vllm
def test_one_engine_over_the_gpus_of_several_processes_is_refused(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM would put them into one group, and take each process's requests for those of all."""
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"vllm_options\.tensor_parallel_size=2 with 2 processes: each process has an"):
        build_engine("vllm", str(tiny_llama), **{**SETTINGS, "vllm_options": {"tensor_parallel_size": 2}})


@pytest.mark.parametrize("name", ["vllm", "server"])
def test_a_context_that_an_option_cuts_short_is_refused(tiny_llama: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"vllm_options\.max_model_len=63: .* 64 tokens together"):
        build_engine(name, str(tiny_llama), **SETTINGS | {"vllm_options": {"max_model_len": 63}})


def check(name: str, model: Path, **changes: Any) -> None:
    """What a trainer asks before it loads its model."""
    settings: dict[str, Any] = {"vllm_options": {}, "sleep_level": 0, "servers": None, "revision": None}
    settings |= {"max_model_len": 64, "trust_remote_code": False}
    check_engine(name, str(model), **settings | changes)


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "vllm",
            {"vllm_options": {"swap_spaces": 1}},
            r"vllm_options\.swap_spaces=1: this version of vLLM has no such",
        ),
        ("vllm", {"sleep_level": 1}, "rollout.sleep_level=1: vLLM sleeps on GPUs only"),
        ("server", {"servers": ServerSettings(start=1, api_key_env="NO_SUCH_KEY")}, "NO_SUCH_KEY: .* is not set"),
    ],
)
def test_settings_are_refused_without_a_model(
    tiny_llama: Path, tmp_path: Path, name: str, changes: dict[str, Any], message: str
) -> None:
    shutil.copy(tiny_llama / "config.json", tmp_path)  # and no weights
    with pytest.raises(ValueError, match=message):
        check(name, tmp_path, **changes)


@pytest.mark.vllm
@pytest.mark.parametrize(("name", "servers"), [("vllm", None), ("server", ServerSettings(start=1))])
def test_experts_beside_adapters_are_refused_on_cpu(
    tiny_v3: Path, tiny_llama: Path, name: str, servers: ServerSettings | None
) -> None:
    with pytest.raises(
        ValueError, match=r"\(deepseek_v3\) has experts: vLLM on CPU cannot run them beside adapters\. "
    ):
        check(name, tiny_v3, servers=servers, adapter=AdapterFormat({"r": 8}))
    check(name, tiny_v3, servers=servers)
    check(name, tiny_llama, servers=servers, adapter=AdapterFormat({"r": 8}))


@pytest.mark.vllm
@pytest.mark.parametrize(("name", "servers"), [("vllm", None), ("server", ServerSettings(start=1))])
def test_head_sizes_that_vllm_lacks_on_cpu_are_refused_for_servers_too(
    tmp_path: Path, name: str, servers: ServerSettings | None
) -> None:
    LlamaConfig(hidden_size=40, num_attention_heads=2, head_dim=20).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"attention heads of 20 dimensions: vLLM on CPU supports \["):
        check(name, tmp_path, servers=servers)


@pytest.mark.vllm
def test_a_server_that_a_run_starts_on_gpus_has_one(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    options = {"vllm_options": {"tensor_parallel_size": 2}, "servers": ServerSettings(start=1)}
    with pytest.raises(
        ValueError, match=r"tensor_parallel_size=2 with rollout\.servers\.start=1: each server that a run"
    ):
        check("server", tiny_llama, **options)


def test_a_run_s_folder_in_place_of_a_model_is_told_its_newest_checkpoint(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial"):
        (tmp_path / name).mkdir()
    message = rf"'{tmp_path}' has no tokenizer: it is the folder of a run. Name a checkpoint in it, such as \S*-10\."
    with pytest.raises(ValueError, match=message):
        load_tokenizer(str(tmp_path), None, False)


def test_a_path_that_is_no_hub_name_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("was asked"))
    for name in ("runs/a/checkpoint-4", "./base", "../base", "/no/base", "runs/"):
        with pytest.raises(ValueError, match="has no tokenizer: no such folder or Hub model"):
            load_tokenizer(name, None, False)
    assert may_be_on_hub("gpt2") and may_be_on_hub("deepseek-ai/DeepSeek-V3.1_x")
