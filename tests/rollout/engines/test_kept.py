"""Engines return what top-p, top-k and min-p left to draw each token from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grpo.model.weights import checkpoint_weights
from rollout.engines.hf import HFEngine
from rollout.types import Sampling
from tests.rollout.engines.agreement import load, make_prompts, perturb


def kept_by_hand(logits: np.ndarray, sampling: Sampling) -> set[int]:
    """Token ids that min_p, top_k and top_p leave, in this order, from float64 logits [V] at temperature 1."""
    order = [int(i) for i in np.argsort(-logits)]
    p = np.exp(logits - logits.max())
    order = [i for i in order if p[i] >= sampling.min_p * p.max()]
    order = order[: sampling.top_k or None]
    before = np.cumsum([0.0, *(p[order] / p[order].sum())])[:-1]  # probability of the likelier ones
    return {i for i, mass in zip(order, before, strict=True) if mass < sampling.top_p}


@pytest.fixture(params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def engine(request: pytest.FixtureRequest, tiny_v3: Path) -> Any:
    if request.param == "vllm":
        return request.getfixturevalue("vllm_v3")
    return HFEngine(
        str(tiny_v3), dtype="float32", device="cpu", max_num_seqs=5, max_model_len=64, return_kept=True
    )  # fewer at once than there are completions


def test_kept_tokens_are_those_of_a_plain_forward_pass(engine: Any, tiny_v3: Path) -> None:
    """In batches of different lengths, with each limit alone and with all; again after new weights."""
    model = load(tiny_v3)
    engine.publish(checkpoint_weights(model), 0)
    limits: list[dict[str, Any]] = [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}]
    limits.append({"top_p": 0.8, "top_k": 40, "min_p": 0.02})
    wrong = total = 0
    for index, limit in enumerate(limits):
        if index == 3:
            perturb(model, "")
            engine.publish(checkpoint_weights(model), 1)
        sampling = Sampling(num_generations=3, max_completion_length=8, seed=index, **limit)
        for group in engine.generate(make_prompts(4, prefix=range(9)), sampling):
            for completion in group.completions:
                with torch.no_grad():
                    every = model(torch.tensor([[*group.prompt_ids, *completion.token_ids]])).logits[0].double().numpy()
                n = len(completion.token_ids)
                assert completion.kept is not None and len(completion.kept.offsets) == n + 1
                sets = np.split(completion.kept.ids, completion.kept.offsets[1:-1])
                for ids, logits, token, logprob in zip(
                    sets, every[-n - 1 : -1], completion.token_ids, completion.logprobs, strict=True
                ):
                    assert token in ids
                    normaliser = np.logaddexp.reduce(logits[ids])
                    assert logprob == pytest.approx(logits[token] - normaliser, abs=1e-4)
                    wrong += set(ids.tolist()) != kept_by_hand(logits, sampling)
                    total += 1
    assert total > 200 and wrong / total < 0.02  # near-ties at the limit fall by rounding, differently in each
    whole = Sampling(num_generations=2, max_completion_length=4)
    assert all(c.kept is None for g in engine.generate(make_prompts(2), whole) for c in g.completions)


@pytest.mark.vllm
def test_what_vllm_returns_on_gpu_is_read_and_its_conditions_are_stated(vllm_v3: Any) -> None:
    """Its own types; vllm_v3: vLLM reads its environment while it is imported."""
    from vllm.outputs import CompletionOutput, RequestOutput, SamplingMask

    from rollout.engines.vllm_kept import _ReturnedKept

    mask = SamplingMask([[5, 9], [2], [7, 1, 3]])
    sample = CompletionOutput(0, "", [9, 2, 7], None, None, sampling_mask=mask)
    kept = _ReturnedKept().take(RequestOutput("1", None, [4], None, [sample], finished=True), sample)
    assert (kept.ids.tolist(), kept.offsets.tolist()) == ([5, 9, 2, 7, 1, 3], [0, 2, 3, 6])
    _ReturnedKept().begin(Sampling(num_generations=1, max_completion_length=1, top_k=50))
    with pytest.raises(ValueError, match="temperature=1 and top_k=0, and vLLM returns the kept tokens only if both"):
        _ReturnedKept().begin(Sampling(num_generations=1, max_completion_length=1, top_p=0.9))
