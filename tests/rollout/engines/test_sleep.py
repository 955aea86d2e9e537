"""vLLM gives its memory back during an update. It sleeps on GPUs only, so the calls are recorded here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.engines import vllm_setup
from rollout.engines.vllm import VLLMEngine

CAPACITY: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 32,
    "max_num_seqs": 4,
    "kv_cache_gib": 0.1,
    "gpu_memory_utilization": 0.1,
}


class Recorder:
    """In place of vllm.LLM."""

    def __init__(self, **options: Any) -> None:
        self.options, self.calls = options, []

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake up {' '.join(tags)}")

    def collective_rpc(self, method: Any, kwargs: Any = None) -> None:
        if method == "reload_weights":
            self.calls.append(f"load {len(list(kwargs['weights_iterator']))}")

    def reset_prefix_cache(self) -> None:
        self.calls.append("forget prefixes")


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_setup, "import_vllm", lambda: False)
    monkeypatch.setattr(vllm_setup, "_construct", lambda options, memory, on_cpu: Recorder(**options))
    monkeypatch.setattr(vllm_setup, "_running", [])


@pytest.mark.parametrize("level", [1, 2])
def test_weights_are_loaded_before_the_kv_cache_takes_its_memory(on_gpu: None, tiny_llama: Path, level: int) -> None:
    engine = VLLMEngine(str(tiny_llama), **CAPACITY, sleep_level=level)
    llm: Any = engine._llm
    assert llm.options["enable_sleep_mode"] is True
    weights = [("a", torch.ones(1)), ("b", torch.ones(1))]
    engine.sleep()
    engine.publish(iter(weights), 1)
    engine.publish(iter(weights), 2)  # awake
    awake = ["load 2", "forget prefixes"]
    assert llm.calls == [f"sleep {level}", "wake up weights", "load 2", "wake up kv_cache", "forget prefixes", *awake]


def test_without_a_level_vllm_stays_as_it_was(on_gpu: None, tiny_llama: Path) -> None:
    llm: Any = VLLMEngine(str(tiny_llama), **CAPACITY)._llm
    assert "enable_sleep_mode" not in llm.options


def test_a_sleep_level_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> None:
    monkeypatch.setattr(vllm_setup, "import_vllm", lambda: True)
    with pytest.raises(ValueError, match=r"rollout.sleep_level=1: vLLM sleeps on GPUs only.* Set rollout.sleep"):
        VLLMEngine(str(tiny_llama), **CAPACITY, sleep_level=1)
