"""Multi-token prediction while the policy learns: the policy's update is what it would be without, and drafts learn."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from grpo.algorithm.plan import Plan, Shapes
from grpo.learner.batch import Sample, assemble
from grpo.learner.objective import loss_function
from grpo.learner.policy import Policy
from grpo.learner.scoring import Batching
from grpo.model.forward.mtp import draft_states
from grpo.model.load import load_model, new_model
from grpo.model.weights import save_model
from grpo.recipe.stages.sft import SFTModel
from grpo.report.metrics import Metric, values
from tests.conftest import sharpen, tiny_v3_config
from tests.grpo.learner.policy_gradients import MAX_COMPLETION_LENGTH, make_groups, recipe_for

OWN = "model.layers.3."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtp")
    section = SFTModel(config={"model_type": "deepseek_v3"}, tokenizer="none", mtp={"coefficient": 0.3})
    model = new_model(section, tiny_v3_config())
    sharpen(model, seed=0)
    save_model(model, path, is_writer=True)
    return path


def updated(
    folder: Path, mtp: str | None, max_tokens: int = 10_000
) -> tuple[PreTrainedModel, dict[str, Metric], list[Sample]]:
    """The model after one update that is clipped, its gradients still there."""
    recipe = recipe_for(str(folder))
    optimizer = recipe.trainer.model_copy(update={"max_grad_norm": 0.01, "learning_rate": 1e-3})
    model = load_model(recipe.model, mtp="stored" if mtp else None)
    batching = Batching(max_tokens, pad_token_id=0)
    policy = Policy(
        model,
        optimizer,
        Accelerator(cpu=True),
        max_steps=2,
        temperature=0.7,
        batching=batching,
        train_mtp=mtp == "detached",
    )
    policy.batching = replace(policy.batching, shared=False)  # as drafts need it: one layout for all
    groups = make_groups(3)
    plan = Plan.of(Shapes.of(groups), recipe.algorithm, max_completion_length=MAX_COMPLETION_LENGTH, seed=0)
    samples = assemble(groups, plan, keep_zero_advantage=False)
    return model, policy.update(samples, loss_function(recipe.algorithm)), samples


def trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(OWN)}


@pytest.mark.parametrize("mtp", ["detached", "frozen"])
def test_the_policys_gradients_and_weights_are_bitwise_those_without(folder: Path, mtp: str) -> None:
    """Clipping included: the module's gradient has a norm of its own."""
    without, expected, _ = updated(folder, None)
    model, metrics, _ = updated(folder, mtp)
    for name, parameter in without.named_parameters():
        ours = model.get_parameter(name).grad
        assert ours is not None and parameter.grad is not None and torch.equal(ours, parameter.grad), name
    theirs = without.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in trunk(model.state_dict()).items())
    numbers = values(metrics)
    assert {name: numbers[name] for name in ("loss", "grad_norm", "weight_change")} == {
        name: values(expected)[name] for name in ("loss", "grad_norm", "weight_change")
    }
    before = load_model(recipe_for(str(folder)).model, mtp="stored").state_dict()
    moved = {n for n, t in model.state_dict().items() if n.startswith(OWN) and not torch.equal(t, before[n])}
    assert bool(moved) == (mtp == "detached") == ("mtp/loss" in numbers)


@pytest.mark.parametrize("max_tokens", [10_000, 20])
def test_drafts_learn_the_sampled_tokens_however_they_are_batched(folder: Path, max_tokens: int) -> None:
    """-log q of each completion's tokens from the second on, one sample at a time, divided by their number."""
    model, metrics, samples = updated(folder, "detached", max_tokens)
    plain = load_model(recipe_for(str(folder)).model, mtp="stored")
    total, count, kept = torch.zeros(()), 0, 0.0
    for sample in samples:
        ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]])
        hidden = plain.base_model(input_ids=ids).last_hidden_state.detach()
        head = plain.get_output_embeddings().weight.detach()
        q = (draft_states(plain, ids, hidden)[0] @ head.T / 0.7).log_softmax(-1)
        p = (hidden[0] @ head.T / 0.7).softmax(-1)
        for j in range(len(sample.prompt_ids) + 1, ids.shape[1]):
            total = total - q[j - 2, ids[0, j]]
            kept += torch.minimum(q[j - 2].exp(), p[j - 1]).sum().item()
            count += 1
    assert values(metrics)["mtp/loss"] == pytest.approx(total.item() / count, rel=1e-4)
    assert values(metrics)["mtp/acceptance"] == pytest.approx(kept / count, rel=1e-4)
    (total / count).backward()
    own = {n: p.grad for n, p in plain.named_parameters() if n.startswith(OWN) and p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in own.values()]).norm()
    for name, gradient in own.items():
        clipped = model.get_parameter(name).grad * norm / 0.01
        torch.testing.assert_close(clipped, gradient, rtol=1e-3, atol=1e-4 * norm.item())
