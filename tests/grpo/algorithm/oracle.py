"""Independent NumPy versions of what grpo computes, written from the papers' formulas one token at a time."""

import itertools
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


def estimator(rewards: Sequence[Sequence[float]], name: str) -> list[list[float]]:
    """Advantages of estimators that are not group-normalised; no NaN."""
    if name == "rloo":
        return [[r - (sum(row) - r) / (len(row) - 1) for r in row] for row in rewards]
    means = [sum(row) / len(row) for row in rewards]
    if name == "maxrl":
        return [[(r - m) / m if m else 0.0 for r in row] for row, m in zip(rewards, means, strict=True)]
    values = [[r - m if name.endswith("baseline") else r for r in row] for row, m in zip(rewards, means, strict=True)]
    every = [v for row in values for v in row]
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in every) / (len(every) - 1)) + 1e-4
    return [[(v - mean) / deviation for v in row] for row in values]


def pass_at_k(rewards: Sequence[float], k: int) -> list[float]:
    """2508.10751 by its definition: every set of k completions is worth its largest reward; a completion, its sets."""
    sets = list(itertools.combinations(range(len(rewards)), k))
    worth = [max(rewards[i] for i in one) for one in sets]
    mean = sum(worth) / len(worth)
    deviation = math.sqrt(sum((w - mean) ** 2 for w in worth) / len(worth)) + 1e-4
    result = []
    for i in range(len(rewards)):
        own = [(w - mean) / deviation for one, w in zip(sets, worth, strict=True) if i in one]
        result.append(sum(own) / len(own))
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
    max_completion_length: int,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
    beta: float = 0.0,
    use_bias_correction_kl: bool = False,
    importance_sampling_level: str | None = None,
    off_policy_mask_threshold: float | None = None,
    importance_sampling_correction: str | None = None,
    importance_sampling_clip_min: float | None = None,
    importance_sampling_clip_max: float | None = None,
    sapo_temperature_pos: float = 1.0,
    sapo_temperature_neg: float = 1.05,
    dppo_delta: float = 0.2,
    dppo_log_ratio_coef: float = 1e-3,
    kl_cov_coef: float = 1.0,
    vespo_k_pos: float = 2.0,
    vespo_lambda_pos: float = 3.0,
    vespo_k_neg: float = 3.0,
    vespo_lambda_neg: float = 2.0,
    frozen: Sequence[dict] | None = None,
    steps_per_generation: int = 1,
    rollout_tokens: int | None = None,
) -> float:
    """The objective of one mini-batch (to be minimised), one token at a time, as the papers write it.

    Each sequence: {"logprobs", "old", "behaviour", "ref", "selected": lists, "advantage": float, "masked": bool}.
    frozen: the sequences before a finite difference: what the papers put under a stop-gradient comes from there.
    """
    high = epsilon if epsilon_high is None else epsilon_high

    def mean_log_ratio(s: dict, base: str) -> float:
        return sum(a - b for a, b in zip(s["logprobs"], s[base], strict=True)) / len(s["logprobs"])

    def ratio(s: dict, still: dict, t: int) -> float:
        level = importance_sampling_level or {
            "gspo": "sequence",
            "luspo": "sequence",
            "gspo_token": "sequence_token",
        }.get(loss_type, "token")
        if level == "token":
            return math.exp(s["logprobs"][t] - s["old"][t])
        if level == "sequence":
            return math.exp(mean_log_ratio(s, "old"))
        return math.exp(mean_log_ratio(still, "old")) * math.exp(s["logprobs"][t] - still["logprobs"][t])

    def surrogate(s: dict, still: dict, t: int) -> float:
        advantage = s["advantage"]
        if loss_type == "dppo":
            r = math.exp(s["logprobs"][t] - s["behaviour"][t])
            moved = math.exp(still["logprobs"][t]) - math.exp(s["behaviour"][t])
            dropped = (advantage > 0 and moved > dppo_delta) or (advantage < 0 and moved < -dppo_delta)
            return -(0.0 if dropped else advantage * r) + dppo_log_ratio_coef * math.log(r) ** 2
        if loss_type == "vespo":
            w = math.prod(math.exp(a - b) for a, b in zip(still["logprobs"], s["behaviour"], strict=True))
            k, decay = (vespo_k_pos, vespo_lambda_pos) if advantage >= 0 else (vespo_k_neg, vespo_lambda_neg)
            return -(w**k) * math.exp(decay * (1 - w)) * advantage * s["logprobs"][t]
        r = ratio(s, still, t)
        if loss_type == "cispo":
            return -min(ratio(still, still, t), high) * advantage * s["logprobs"][t]
        if loss_type == "sapo":
            tau = sapo_temperature_pos if advantage > 0 else sapo_temperature_neg
            return -4 / tau / (1 + math.exp(-tau * (r - 1))) * advantage
        if loss_type == "kl_cov":
            return -r * advantage + (kl_cov_coef * abs(math.log(r)) if s["selected"][t] else 0.0)
        if loss_type == "clip_cov" and s["selected"][t]:
            return 0.0
        gain = min(r * advantage, min(max(r, 1 - epsilon), 1 + high) * advantage)
        if delta is not None and advantage < 0:  # dual clip
            gain = max(gain, delta * advantage)
        return -gain

    def correction(s: dict, t: int) -> float:
        logs = [a - b for a, b in zip(s["old"], s["behaviour"], strict=True)]
        level, rule, low, top = {
            "tis": ("token", "clip", 0.0, 2.0),
            "sequence_tis": ("sequence", "clip", 0.0, 4.0),
            "token_mis": ("token", "mask", 0.0, 2.0),
            "mis": ("sequence", "mask", 0.0, 3.0),
            "icepop": ("token", "mask", 0.5, 5.0),
            "geometric": ("mean", "keep", 0.99, 1.01),
        }[importance_sampling_correction]  # type: ignore[index]
        low = low if importance_sampling_clip_min is None else importance_sampling_clip_min
        top = top if importance_sampling_clip_max is None else importance_sampling_clip_max
        weight = math.exp({"token": logs[t], "sequence": sum(logs), "mean": sum(logs) / len(logs)}[level])
        if rule == "clip":
            return min(max(weight, low), top)
        return 0.0 if weight < low or weight > top else (1.0 if rule == "keep" else weight)

    def token(s: dict, still: dict, t: int) -> float:
        value = surrogate(s, still, t)
        if off_policy_mask_threshold is not None and s["advantage"] < 0:
            value *= -mean_log_ratio(still, "behaviour") <= off_policy_mask_threshold
        if importance_sampling_correction:
            value *= correction(s, t)
        difference = s["ref"][t] - s["logprobs"][t]
        kl = math.exp(difference) - difference - 1
        return value + beta * kl * (ratio(s, still, t) if use_bias_correction_kl else 1.0)

    still = sequences if frozen is None else frozen
    sums = [
        0.0 if s["masked"] else sum(token(s, f, t) for t in range(len(s["logprobs"])))
        for s, f in zip(sequences, still, strict=True)
    ]
    lengths = [len(s["logprobs"]) for s in sequences]
    active = sum(n for n, s in zip(lengths, sequences, strict=True) if not s["masked"])
    if loss_type in ("grpo", "gspo", "gspo_token", "sapo"):
        return sum(total / n for total, n in zip(sums, lengths, strict=True) if n) / len(sequences)
    if loss_type == "luspo":
        return sum(sums) / len(sequences)
    if loss_type == "dr_grpo":
        return sum(sums) / (len(sequences) * max_completion_length)
    if loss_type == "bnpo":
        return sum(sums) / active
    return sum(sums) / ((rollout_tokens or active) / steps_per_generation)


def held_back(
    sequences: Sequence[dict], *, share: float, band: tuple[float, float] | None
) -> tuple[list[tuple[int, int]], int]:
    """The tokens (sequence, position) that Clip-Cov draws from or KL-Cov takes, and how many it takes (2505.22617)."""
    tokens = [(s, t) for s, one in enumerate(sequences) for t in range(len(one["logprobs"]))]
    mean_logprob = sum(sequences[s]["logprobs"][t] for s, t in tokens) / len(tokens)
    mean_advantage = sum(sequences[s]["advantage"] for s, _ in tokens) / len(tokens)
    covariance = {
        (s, t): (sequences[s]["logprobs"][t] - mean_logprob) * (sequences[s]["advantage"] - mean_advantage)
        for s, t in tokens
    }
    count = max(1, int(share * len(tokens)))
    if band is not None:
        return [token for token in tokens if band[0] < covariance[token] < band[1]], count
    return sorted(tokens, key=lambda token: -covariance[token])[:count], count


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
