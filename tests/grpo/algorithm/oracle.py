"""Independent NumPy versions of what grpo computes, written from the papers' formulas one token at a time."""

import math
from collections.abc import Sequence


def advantages(rewards: Sequence[Sequence[float]], scale: str) -> list[list[float]]:
    """2402.03300 section 4.1.2; deviations with n - 1, plus 1e-4."""

    def deviation(values: Sequence[float]) -> float:
        if len(values) < 2:
            return 0.0
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    present = [[r for r in row if not math.isnan(r)] for row in rewards]
    batch = deviation([r for row in present for r in row])
    result = []
    for row, kept in zip(rewards, present, strict=True):
        mean = sum(kept) / len(kept) if kept else 0.0
        scale_by = {"group": deviation(kept) + 1e-4, "batch": batch + 1e-4, "none": 1.0}[scale]
        result.append([0.0 if math.isnan(r) else (r - mean) / scale_by for r in row])
    return result


def decoupled(values: Sequence[Sequence[Sequence[float]]], weights: Sequence[float]) -> list[list[float]]:
    """GDPO, 2601.05242: [groups][G][rewards] -> [groups][G]; NaN does not apply."""

    def normal(value: float, others: Sequence[float]) -> float:
        kept = [v for v in others if not math.isnan(v)]
        if math.isnan(value) or len(kept) < 2:
            return 0.0
        mean = sum(kept) / len(kept)
        return (value - mean) / (math.sqrt(sum((v - mean) ** 2 for v in kept) / (len(kept) - 1)) + 1e-4)

    sums = [
        [
            math.nan
            if all(math.isnan(v) for v in sample)
            else sum(
                w * normal(v, [other[k] for other in group])
                for k, (v, w) in enumerate(zip(sample, weights, strict=True))
            )
            for sample in group
        ]
        for group in values
    ]
    every = [s for row in sums for s in row]
    return [[normal(s, every) for s in row] for row in sums]


def loss(
    sequences: Sequence[dict],
    *,
    loss_type: str,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    max_completion_length: int,
    steps_per_generation: int = 1,
    rollout_tokens: int | None = None,
) -> float:
    """The objective of one mini-batch (to be minimised).

    Each sequence: {"logprobs", "old", "ref": lists, "advantage": float, "masked": bool}.
    """

    def token(s: dict, t: int) -> float:
        ratio = math.exp(s["logprobs"][t] - s["old"][t])
        clipped = min(max(ratio, 1 - epsilon), 1 + epsilon_high)
        gain = min(ratio * s["advantage"], clipped * s["advantage"])
        difference = s["ref"][t] - s["logprobs"][t]
        return -(gain - beta * (math.exp(difference) - difference - 1))

    sums = [0.0 if s["masked"] else sum(token(s, t) for t in range(len(s["logprobs"]))) for s in sequences]
    lengths = [len(s["logprobs"]) for s in sequences]
    active = sum(n for n, s in zip(lengths, sequences, strict=True) if not s["masked"])
    if loss_type == "grpo":
        return sum(total / n for total, n in zip(sums, lengths, strict=True) if n) / len(sequences)
    if loss_type == "dr_grpo":
        return sum(sums) / (len(sequences) * max_completion_length)
    if loss_type == "bnpo":
        return sum(sums) / active
    return sum(sums) / ((rollout_tokens or active) / steps_per_generation)


def divergence(p: Sequence[float], q: Sequence[float], beta: float) -> float:
    """Generalized JSD of 2306.13649 section 2.1 with its two limits: beta 0 is KL(q || p), beta 1 is KL(p || q)."""

    def kl(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True))

    if beta in (0.0, 1.0):
        return kl(p, q) if beta else kl(q, p)
    m = [(1 - beta) * x + beta * y for x, y in zip(p, q, strict=True)]
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in logits]
    return [power / sum(powers) for power in powers]


def divergence_gradient(logits: Sequence[float], q: Sequence[float], beta: float) -> list[float]:
    """dL/dz by central differences of the definition, in double precision: good to about 1e-9."""
    step, gradient = 1e-5, []
    for v in range(len(logits)):
        up, down = list(logits), list(logits)
        up[v], down[v] = up[v] + step, down[v] - step
        gradient.append((divergence(softmax(up), q, beta) - divergence(softmax(down), q, beta)) / (2 * step))
    return gradient


def divergence_gradient_formula(p: Sequence[float], q: Sequence[float], beta: float) -> list[float]:
    """The same as it is written: p - q, p (log p - log q - L), (1 - beta) p (log p - log m - KL(p || m))."""
    if beta == 0.0:
        return [x - y for x, y in zip(p, q, strict=True)]
    m = [(1 - beta) * x + beta * y for x, y in zip(p, q, strict=True)]
    ratios = [math.log(x) - math.log(y) for x, y in zip(p, m, strict=True)]
    mean = sum(x * r for x, r in zip(p, ratios, strict=True))
    return [(1.0 if beta == 1.0 else 1 - beta) * x * (r - mean) for x, r in zip(p, ratios, strict=True)]
