"""An engine that computes with other weights than the trainer's is refused before the first step."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from grpo.recipe.config import GRPORecipe
from grpo.recipe.data import DataConfig
from grpo.stages.checks.engine import verify_engine
from grpo.stages.problems import stream_of
from rollout.engines.base import Publisher
from rollout.engines.hf import HFEngine
from rollout.types import Sampling
from tests.conftest import byte_tokenizer, save_tiny
from tests.grpo.learner.policy_gradients import policy_for, recipe_for

EXCHANGED = {"gate_proj": "up_proj", "up_proj": "gate_proj"}


class WithExpertsExchanged:
    """Sends each expert's gate as its up projection, and the other way round, as a wrong loader would read them."""

    def __init__(self, engine: HFEngine) -> None:
        self.engine = engine

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        self.engine.publish(((self._name(name), tensor) for name, tensor in weights), policy_version)

    def _name(self, name: str) -> str:
        *path, projection, kind = name.split(".")
        return ".".join([*path, EXCHANGED.get(projection, projection), kind]) if "experts" in path else name


@pytest.fixture(scope="module")
def tiny_qwen3_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = Qwen3MoeConfig(
        **{"vocab_size": 263, "hidden_size": 64, "intermediate_size": 128, "moe_intermediate_size": 32},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
        **{"num_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 512},
        **{"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258},
    )
    return save_tiny(Qwen3MoeForCausalLM(config), tmp_path_factory.mktemp("models") / "qwen3_moe")


@pytest.mark.parametrize("family", ["tiny_v3", "tiny_qwen3_moe"])
def test_experts_that_arrive_wrong_are_refused(family: str, request: pytest.FixtureRequest) -> None:
    model = str(request.getfixturevalue(family))
    policy = policy_for(recipe_for(model), Accelerator(cpu=True))
    engine = HFEngine(model, dtype="float32", device="cpu", max_num_seqs=8, max_model_len=256)
    data = DataConfig(task="countdown", template="{prompt}", max_prompt_length=200)
    problems = stream_of(data, byte_tokenizer(), seed=0)

    sampling = Sampling(num_generations=2, max_completion_length=16)

    def verify(publisher: Publisher, has_weights: bool = True) -> None:
        verify_engine(
            policy, engine, publisher, problems, step=0, sampling=sampling, bound=1e-3, has_weights=has_weights
        )

    verify(engine)
    with pytest.raises(ValueError, match=r"and agreed before: they arrive wrong\. Set rollout\.engine=hf\.$"):
        verify(WithExpertsExchanged(engine))
    with pytest.raises(ValueError, match=r"above 0.001, after it received the trainer's weights\. Set"):
        verify(WithExpertsExchanged(engine), has_weights=False)


def test_a_wide_bound_does_not_hide_experts_that_arrive_wrong(tiny_v3: Path) -> None:
    """With the same weights the difference must not grow, whatever a correction would weigh later."""
    policy = policy_for(recipe_for(str(tiny_v3)), Accelerator(cpu=True))
    engine = HFEngine(str(tiny_v3), dtype="float32", device="cpu", max_num_seqs=8, max_model_len=256)
    problems = stream_of(
        DataConfig(task="countdown", template="{prompt}", max_prompt_length=200), byte_tokenizer(), seed=0
    )
    sampling = Sampling(num_generations=2, max_completion_length=16)
    options: Any = {"step": 0, "sampling": sampling, "bound": 10.0, "has_weights": True}
    agreed = r"above 0\.001, after it received the trainer's weights, and agreed before: they arrive wrong\. Set "
    with pytest.raises(ValueError, match=rf"{agreed}rollout\.engine=hf\.$"):  # no wider bound would help
        verify_engine(policy, engine, WithExpertsExchanged(engine), problems, **options)
    own = options | {"bound": 1e-4, "has_weights": False}
    with pytest.raises(ValueError, match=r"above 0\.0001, .* raise algorithm\.max_logp_difference\.$"):
        verify_engine(policy, engine, WithExpertsExchanged(engine), problems, **own)
    verify_engine(policy, engine, engine, problems, **options | {"has_weights": False})
    with pytest.raises(ValueError, match="the engine returned no experts with its completions"):
        verify_engine(policy, engine, engine, problems, **options, records_routes=True)


def test_a_correction_does_not_widen_the_bound_at_start() -> None:
    values = {"model": {"model_name_or_path": "m", "dtype": "bfloat16"}, "data": {"task": "countdown"}}
    values |= {"rewards": [{"function": "countdown"}], "algorithm": {"importance_sampling_correction": "tis"}}
    recipe = GRPORecipe.model_validate(values)
    assert (recipe.max_logp_difference, recipe.max_logp_difference_at_start) == (0.5, 0.05)
