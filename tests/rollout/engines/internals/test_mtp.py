"""A folder with a multi-token prediction, in engines that do not run it."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from grpo.model.load import load_model, new_model
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.config import ModelConfig
from grpo.recipe.stages.sft import SFTModel
from rollout.engines.base import Engine
from rollout.engines.hf import HFEngine
from rollout.types import Sampling
from tests.conftest import byte_tokenizer, sharpen, tiny_v3_config
from tests.rollout.engines.agreement import assert_agrees, load, make_prompts, perturb

SAMPLING = Sampling(num_generations=2, max_completion_length=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtp")
    section = SFTModel(config={"model_type": "deepseek_v3"}, tokenizer="none", mtp={"coefficient": 0.3})
    model = new_model(section, tiny_v3_config())
    sharpen(model, seed=0)
    save_model(model, path, is_writer=True)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[Engine]:
    if request.param == "hf":
        yield HFEngine(str(folder), dtype="float32", device="cpu", max_num_seqs=12, max_model_len=64)
        return
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from rollout.engines.vllm import VLLMEngine

    settings = {"kv_cache_gib": 0.05, "gpu_memory_utilization": 0.1}
    with closing(VLLMEngine(str(folder), dtype="float32", max_model_len=64, max_num_seqs=8, **settings)) as engine:
        yield engine


def test_an_engine_opens_the_folder_and_follows_the_trunk(engine: Engine, folder: Path) -> None:
    assert_agrees(load(folder), list(engine.generate(make_prompts(3), SAMPLING)))
    model = load_model(ModelConfig(model_name_or_path=str(folder)), mtp="stored")
    perturb(model, "")
    engine.publish(checkpoint_weights(model), policy_version=1)
    assert_agrees(model, list(engine.generate(make_prompts(3), SAMPLING)))
