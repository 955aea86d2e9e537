"""Do an engine's log-probs match the trainer's, and if not, does a near-tie between experts explain it?"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rollout.types import Group, Problem, Prompt

NEAR_TIE = 1e-5  # router scores this close may be ordered either way by float32 rounding


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def make_prompts(num_prompts: int, shortest: int = 3, prefix: Sequence[int] = ()) -> list[Prompt]:
    """Prompts of different lengths, BOS first, with ids "0", "1", …"""
    return [
        Prompt(
            problem=Problem(id=str(i), prompt=""),
            token_ids=[256, *prefix, *((7 * i + j) % 256 for j in range(shortest + 2 * i))],
        )
        for i in range(num_prompts)
    ]


def _padded(groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """All prompts with their completions, right-padded (invisible to a causal model), and the positions sampled.

    Returns ids [B, L] and a mask [B, L - 1] of the positions whose next token was sampled.
    """
    rows = [([*g.prompt_ids, *c.token_ids], len(g.prompt_ids)) for g in groups for c in g.completions]
    length = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
    position = torch.arange(length - 1)
    return ids, torch.stack([(position >= start - 1) & (position < len(row) - 1) for row, start in rows])


@torch.no_grad()
def trainer_logprobs(model: PreTrainedModel, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    """Log-probs of all sampled tokens from a plain forward pass without cache: [T]."""
    ids, sampled = _padded(groups)
    logits = model(ids, use_cache=False).logits[:, :-1] / temperature
    return logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0][sampled]


def engine_logprobs(groups: Sequence[Group]) -> Tensor:
    """The engine's log-probs, in the same order: [T]."""
    return torch.tensor([p for group in groups for completion in group.completions for p in completion.logprobs])


@torch.no_grad()
def smallest_margins(model: PreTrainedModel, groups: Sequence[Group]) -> Tensor:
    """How close each sampled token's prediction came to using other experts: [T], infinite for a dense model.

    The margin at a position in a layer is the score gap between the last expert chosen and the first one left out, or
    between groups of experts. A flip changes what later positions attend to, hence the cumulative minimum.
    """
    margins: list[Tensor] = []

    def record(gate: torch.nn.Module, inputs: tuple[Tensor], _: object) -> None:
        hidden = inputs[0].reshape(-1, gate.hidden_dim)
        scores = torch.nn.functional.linear(hidden, gate.weight).sigmoid() + gate.e_score_correction_bias
        grouped = scores.view(len(hidden), gate.num_group, -1)
        group_scores = grouped.topk(2, dim=-1).values.sum(-1)
        chosen = group_scores.topk(gate.topk_group, dim=-1).indices
        candidates = grouped.gather(1, chosen[..., None].expand(-1, -1, grouped.shape[-1])).flatten(1)
        margins.append(torch.minimum(_gap(group_scores, gate.topk_group), _gap(candidates, gate.top_k)))

    ids, sampled = _padded(groups)
    gates = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    handles = [gate.register_forward_hook(record) for gate in gates]
    model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    smallest = torch.stack(margins).amin(0).view(ids.shape) if margins else torch.full(ids.shape, torch.inf)
    return smallest.cummin(1).values[:, :-1][sampled]


def _gap(scores: Tensor, k: int) -> Tensor:
    ordered = scores.sort(dim=-1, descending=True).values
    return ordered[:, k - 1] - ordered[:, k] if k < scores.shape[-1] else torch.full(scores.shape[:1], torch.inf)


def unexplained(model: PreTrainedModel, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    """|log p_trainer - log p_engine| of tokens above 1e-4 that no near-tie explains: [U], empty on agreement."""
    difference = (trainer_logprobs(model, groups, temperature) - engine_logprobs(groups)).abs()
    if difference.max() <= 1e-4:
        return difference[:0]
    return difference[(difference > 1e-4) & (smallest_margins(model, groups) > NEAR_TIE)]


def assert_agrees(model: PreTrainedModel, groups: Sequence[Group], temperature: float = 1.0) -> None:
    difference = (trainer_logprobs(model, groups, temperature) - engine_logprobs(groups)).abs()
    assert len(difference) > 0
    assert difference.mean() <= 1e-5
    assert difference.quantile(0.999) <= 1e-4
    assert unexplained(model, groups, temperature).tolist() == []


@torch.no_grad()
def perturb(model: PreTrainedModel, pattern: str, seed: int = 0) -> list[str]:
    """Add noise of 0.3 standard deviations (at least 0.1) to the weights whose name matches; return their names."""
    generator = torch.Generator().manual_seed(seed)
    changed = [(name, tensor) for name, tensor in model.state_dict().items() if re.search(pattern, name)]
    for _, tensor in changed:
        tensor.add_(torch.randn(tensor.shape, generator=generator) * max(0.3 * float(tensor.std()), 0.1))
    return [name for name, _ in changed]
