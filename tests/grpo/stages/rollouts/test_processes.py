"""Two processes over gloo train on what one trains on: dynamic sampling, token selection, both updates' gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.grpo.stages.rollouts.selected_rollouts import LOSSES, train


def test_two_processes_select_the_groups_and_tokens_of_one_and_have_its_gradients(
    tiny_llama: Path, tmp_path: Path
) -> None:
    out, script = tmp_path / "two.pt", Path(__file__).with_name("selected_rollouts.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(script), str(tiny_llama), str(out)], check=True)
    both = torch.load(out, weights_only=False)
    for loss in LOSSES:
        one, two = train(str(tiny_llama), loss), both[loss]
        assert one["position"] > len(one["groups"]) == 6  # some groups had no signal
        assert two["position"] == one["position"] and two["groups"] == one["groups"]
        assert two["selected"] == one["selected"]
        assert sum(map(sum, (tokens for *_, tokens in one["selected"]))) > 2  # of two mini-batches
        for (metrics, gradients), (measured, others) in zip(one["updates"], two["updates"], strict=True):
            for name in ("loss", "grad_norm", "covariance/selected_share"):
                assert measured[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-7)
            assert others.keys() == gradients.keys()
            for name, gradient in gradients.items():
                torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
