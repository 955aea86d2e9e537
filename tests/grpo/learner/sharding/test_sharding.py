"""A policy sharded over processes does what a whole one does: log-probs, gradients, metrics, weights for engines."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from grpo.model.adapters import is_adapter
from grpo.recipe.config import TrainerConfig
from grpo.recipe.load import RecipeError
from grpo.stages.mesh import launched_with_fsdp2, process_mesh
from tests.grpo.learner.sharding import sharded_policy

pytestmark = pytest.mark.slow
SCRIPT = Path(sharded_policy.__file__)


@pytest.fixture(scope="module")
def alone(tiny_v3: Path) -> dict[str, Any]:
    """Every case in one process, where nothing is sharded."""
    return {case: sharded_policy.run(str(tiny_v3), case) for case in sharded_policy.CASES}


def launched(model: Path, out: Path, *options: str, processes: int) -> Any:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    subprocess.run([*launcher, str(SCRIPT), str(model), str(out), *options], check=True)
    return torch.load(out, weights_only=False)


def assert_same_metrics(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, value in expected.items():  # 1e-9: a loss whose terms cancel is rounding error itself
        if name == "weight_change":  # a difference of nearly equal numbers: of steps of 1e-6
            assert got[name] == pytest.approx(value, rel=1e-2)
            continue
        np.testing.assert_allclose(got[name], value, rtol=tolerance, atol=1e-3 * tolerance, err_msg=name)


def assert_same(got: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """All tensors within `tolerance` of the largest gradient, all metrics and log-probs within it relatively."""
    for (gradients, metrics), (expected_gradients, expected_metrics) in zip(
        got["steps"], expected["steps"], strict=True
    ):
        assert gradients.keys() == expected_gradients.keys()
        largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=tolerance * largest, msg=name)
        assert_same_metrics(metrics, expected_metrics, tolerance)
    assert len(got["log-probs"]) == len(expected["log-probs"])
    for row, expected_row in zip(got["log-probs"], expected["log-probs"], strict=True):
        assert row[:2] == expected_row[:2]
        for logprobs, expected_logprobs in zip(row[2:], expected_row[2:], strict=True):
            assert (logprobs is None) == (expected_logprobs is None)
            if logprobs is not None:
                assert logprobs == pytest.approx(expected_logprobs, abs=10 * tolerance)
    for kind in ("weights", "reference"):
        assert got[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            torch.testing.assert_close(got[kind][name], tensor, rtol=0, atol=4e-6, msg=name)  # twice the learning rates


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes write, and two and three read."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def two(tiny_v3: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> dict[str, Any]:
    """Everything that is asked of two processes: starting them takes longer than most of it."""
    options = (f"tied={tiny_llama}", f"save={checkpoints}", f"resume={checkpoints}")
    return launched(tiny_v3, tmp_path_factory.mktemp("two") / "out.pt", *options, processes=2)


@pytest.fixture(scope="module")
def three(tiny_v3: Path, tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, two: Any) -> dict[str, Any]:
    return launched(tiny_v3, tmp_path_factory.mktemp("three") / "out.pt", f"resume={checkpoints}", processes=3)


@pytest.mark.parametrize("processes", ["two", "three"])
def test_sharded_over_processes_does_what_one_process_does(
    alone: dict[str, Any], processes: str, request: pytest.FixtureRequest
) -> None:
    """Losses with a KL term and two mini-batches, clipping, offload, balance, replay, bfloat16, LoRA.

    Fails if the head is read outside the root's forward, or as a part of its weight.
    """
    found = request.getfixturevalue(processes)
    for case, expected in alone.items():
        assert_same(found[case], expected, 1e-6)
        matrices = "torch.bfloat16" if "bfloat16" in case else "torch.float32"  # vectors never are
        for name, (dimensions, dtype) in found[case]["computing"].items():
            assert dtype == (matrices if dimensions > 1 else "torch.float32"), (case, name)
        assert found[case]["offloaded"] == (case == "offload")


def test_hybrid_sharding_sums_over_the_copies_too(tiny_v3: Path, tmp_path: Path, alone: dict[str, Any]) -> None:
    cases = ("dapo", "one update, clipped")
    found = launched(tiny_v3, tmp_path / "out.pt", "replicas=2", *cases, processes=4)
    for case in cases:
        assert_same(found[case], alone[case], 1e-6)
        assert found[case]["limits"] == [30, 30]


def test_tied_embeddings(tiny_llama: Path, two: dict[str, Any]) -> None:
    assert_same(two["tied"], sharded_policy.run(str(tiny_llama), "dapo"), 1e-6)


# -- checkpoints


def test_a_checkpoint_of_two_processes_continues_in_one_two_and_three(
    tiny_v3: Path, checkpoints: Path, two: dict[str, Any], three: dict[str, Any]
) -> None:
    """Of a model, and of adapters on it."""
    full, adapters = (checkpoints / case for case in sharded_policy.CONTINUED)
    assert len(list(full.glob("model-0000?-of-0000?.safetensors"))) > 1  # a Hugging Face folder in several files
    _, loading = AutoModelForCausalLM.from_pretrained(full, output_loading_info=True)
    assert not any(loading.values())
    assert is_adapter(adapters) and not list(adapters.glob("model*"))
    for case, whole in two["save"].items():
        again = two["resume"][case]
        assert again["metrics"] == whole["metrics"]
        first, second = whole["faults"]  # an infinite advantage in one process stops both, with the same words
        assert first == second and "the loss is" in first and "advantages are not finite" in first
        assert all(torch.equal(again["weights"][name], tensor) for name, tensor in whole["weights"].items())
        for other in (
            sharded_policy.continued(str(tiny_v3), case, resume=checkpoints / case),
            three["resume"][case],
        ):
            assert_same_metrics(other["metrics"], whole["metrics"], 1e-6)
            for name, tensor in whole["weights"].items():
                torch.testing.assert_close(other["weights"][name], tensor, rtol=0, atol=1e-6, msg=name)


# -- asked for by the launcher, or refused


def test_accelerates_fsdp2_means_the_same() -> None:
    assert not launched_with_fsdp2({})
    assert launched_with_fsdp2({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"})


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1"),  # accelerate's default
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    ],
)
def test_other_ways_to_shard_are_refused_and_fsdp2_is_named(environ: dict[str, str], name: str) -> None:
    with pytest.raises(RecipeError, match=f"configured for {name}: .*trainer.sharding=fsdp2"):
        launched_with_fsdp2(environ)


def test_offload_is_the_recipe_s_word(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=r"set trainer\.offload_params=true"):
        process_mesh(TrainerConfig(), Accelerator(cpu=True))


def test_one_process_is_not_sharded_and_replicas_need_processes() -> None:
    accelerator = Accelerator(cpu=True)
    assert process_mesh(TrainerConfig(sharding="fsdp2"), accelerator) is None
    with pytest.raises(RecipeError, match="sharding_replicas=2 with 1 processes"):
        process_mesh(TrainerConfig(sharding="fsdp2", sharding_replicas=2), accelerator)
    with pytest.raises(RecipeError, match=r"sharding_replicas=2 with trainer\.sharding=none"):
        process_mesh(TrainerConfig(sharding_replicas=2), accelerator)
    with pytest.raises(RecipeError, match=r"offload_params=true: .*sharding=fsdp2, 1 processes.*Shard over more"):
        process_mesh(TrainerConfig(sharding="fsdp2", offload_params=True), accelerator)
