"""Distillation through the whole policy: each teacher on its own rows, and the sampled form's gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from grpo.learner.batch import Sample, attach
from grpo.learner.objective import distillation_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.learner.teacher import Teacher
from grpo.model.load import load_model
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.recipe.config import ModelConfig
from grpo.recipe.optimizer import OptimizerConfig
from tests.conftest import save_tiny, tiny_llama_config
from tests.grpo.algorithm import oracle

BATCHING = Batching(max_tokens=40, pad_token_id=0)
LOSS = distillation_function(AlgorithmConfig(loss_type="dapo"))


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with half the student's hidden size."""
    config = tiny_llama_config()
    config.hidden_size = 32
    return save_tiny(LlamaForCausalLM(config), tmp_path_factory.mktemp("models") / "narrow")


def samples(count: int = 6) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [
        Sample(
            problem_id=str(i),
            prompt_ids=rng.integers(0, 250, 3).tolist(),
            completion_ids=rng.integers(0, 250, 4 + i % 5).tolist(),
            mini_batch=0,
            mask=[True, False, True, True, *[True] * (i % 5)],
            sampling_logprobs=-5.0,
            advantages=0.0,
            token_weights=0.01,
        )
        for i in range(count)
    ]


def teacher(path: Path, accelerator: Accelerator, *, stays: bool = True) -> Teacher:
    model = load_model(ModelConfig(model_name_or_path=str(path)))
    return Teacher(model, accelerator, temperature=1.0, batching=BATCHING, stays=stays)


def gradient(student: Path, accelerator: Accelerator, rows: list[Sample]) -> tuple[dict[str, torch.Tensor], float]:
    policy = Policy(
        load_model(ModelConfig(model_name_or_path=str(student))),
        OptimizerConfig(max_grad_norm=1e9),
        accelerator,
        max_steps=1,
        temperature=1.0,
        batching=BATCHING,
    )
    metrics = policy.update(rows, LOSS)
    gradients = {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}
    return gradients, metrics["teacher_kl"].value  # type: ignore[return-value]


@pytest.mark.parametrize("beta", [None, 0.0, 0.4, 1.0])
def test_two_teachers_are_each_teacher_alone_on_its_rows(
    tiny_v3: Path, tiny_llama: Path, narrow: Path, beta: float | None
) -> None:
    accelerator = Accelerator(cpu=True)
    teachers = [teacher(path, accelerator, stays=False) for path in (tiny_llama, narrow)]

    def judged(asked: Teacher, rows: list[Sample]) -> list[Sample]:
        if beta is None:
            return attach(rows, ref_logprobs=asked.logprobs(rows))
        return attach(rows, target=asked.targets(rows, beta))

    first, second = judged(teachers[0], samples()[::2]), judged(teachers[1], samples()[1::2])
    mixed = [row for pair in zip(first, second, strict=True) for row in pair]
    together, _ = gradient(tiny_v3, accelerator, mixed)
    alone = [gradient(tiny_v3, accelerator, rows)[0] for rows in (first, second)]
    for name, whole in together.items():
        summed = sum(part.get(name, torch.zeros_like(whole)) for part in alone)
        torch.testing.assert_close(whole, summed, rtol=1e-3, atol=1e-6)
    if beta is not None:
        widths = [teachers[i].head.weight.shape[1] for i in range(2)]
        assert widths == [64, 32]


@pytest.mark.parametrize("beta", [None, 1.0])
def test_gradient_is_that_of_the_formulas_on_full_logits(tiny_llama: Path, narrow: Path, beta: float | None) -> None:
    """The head's gradient from logits of the models' own forwards; tied embeddings get the backbone's share as well."""
    accelerator = Accelerator(cpu=True)
    rows, asked = samples(), teacher(narrow, accelerator)
    rows = attach(rows, ref_logprobs=asked.logprobs(rows))
    if beta is not None:
        rows = attach(rows, target=asked.targets(rows, beta))
    got, kl = gradient(tiny_llama, accelerator, rows)

    model, other = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (tiny_llama, narrow))
    surrogate, kls = torch.zeros(()), []
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
        z, y = (m(ids).logits[0, len(row.prompt_ids) - 1 : -1] for m in (model, other))
        for t in np.nonzero(row.sampled)[0]:
            p, q = oracle.softmax(z[t].tolist()), oracle.softmax(y[t].tolist())
            token = row.completion_ids[t]
            kls.append(np.log(p[token]) - np.log(q[token]))
            if beta is None:  # -A (onehot - p)
                dz = kls[-1] * (np.eye(len(p))[token] - p)
            else:
                dz = np.array(oracle.divergence_gradient_formula(p, q, beta))
            surrogate = surrogate + 0.01 * (z[t] * torch.from_numpy(dz).float()).sum()
    surrogate.backward()
    assert kl == pytest.approx(np.mean(kls), rel=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-3, atol=1e-5)
