"""The recipe's objective as a function of a micro-batch, and the tokens that it holds back in a whole mini-batch."""

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from accelerate.utils import gather_object
from torch import Tensor

from grpo.algorithm.covariance import selection_keys, smallest
from grpo.algorithm.distillation import teacher_advantages
from grpo.algorithm.entropy import EntropyBonus
from grpo.algorithm.loss import LossOutput
from grpo.algorithm.plan import objective
from grpo.algorithm.tokens import Tokens
from grpo.learner.batch import MicroBatch, Sample, attach
from grpo.learner.mismatch import mismatch
from grpo.learner.policy import LossFunction
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import Mean, Metric


def loss_function(algorithm: AlgorithmConfig, entropy_bonus: EntropyBonus | None = None) -> LossFunction:
    """What `Policy.update` calls on each micro-batch. entropy_bonus: its current coefficient; None: the recipe's."""
    chosen, bonus = objective(algorithm), entropy_bonus or EntropyBonus(algorithm)

    def loss(logprobs: Tensor, entropy: Tensor, batch: MicroBatch) -> LossOutput:
        old = batch.old_logprobs
        tokens = Tokens(
            logprobs=logprobs,
            old_logprobs=logprobs.detach() if old is None else old,
            behaviour_logprobs=batch.sampling_logprobs,
            advantages=batch.advantages,
            token_weights=batch.token_weights,
            sequences=batch.sequences,
            ref_logprobs=batch.ref_logprobs,
            entropy=entropy,
            selected=batch.selected,
        )
        output = chosen.loss(tokens, algorithm.model_copy(update={"entropy_coef": bonus.coef}))
        return LossOutput(output.loss, {**output.metrics, **_mismatch(logprobs, batch)})

    return loss


def distillation_function(algorithm: AlgorithmConfig) -> LossFunction:
    """The same for distillation: the divergence from a teacher, or the surrogate with the teacher's advantages.

    The teacher's log-probs of the sampled tokens are `ref_logprobs` where only those tokens are compared.
    """
    surrogate = loss_function(algorithm)

    def loss(
        logprobs: Tensor,
        entropy: Tensor,
        batch: MicroBatch,
        divergence: Tensor | None = None,
        teacher_logprobs: Tensor | None = None,
    ) -> LossOutput:
        if divergence is None or teacher_logprobs is None:
            assert batch.ref_logprobs is not None
            old = logprobs if batch.old_logprobs is None else batch.old_logprobs
            output = surrogate(
                logprobs, entropy, replace(batch, advantages=teacher_advantages(old, batch.ref_logprobs))
            )
            teacher_logprobs = batch.ref_logprobs
        else:
            measured = {"divergence": Mean(divergence.sum().item(), len(divergence)), **_mismatch(logprobs, batch)}
            output = LossOutput((divergence * batch.token_weights).sum(), measured)
        kl = Mean((logprobs.detach() - teacher_logprobs).sum().item(), len(logprobs))
        return LossOutput(output.loss, {**output.metrics, "teacher_kl": kl})

    return loss


def _mismatch(logprobs: Tensor, batch: MicroBatch) -> dict[str, Metric]:
    """Trainer against engine, unless it was measured when the old log-probs were computed.

    On the tokens that the weights sampled which are trained now: others differ because the policy has moved.
    """
    if batch.old_logprobs is not None:
        return {}
    fresh = batch.staleness == 0
    return mismatch([logprobs.detach()[fresh].float().cpu().numpy()], [batch.sampling_logprobs[fresh].cpu().numpy()])


def select_tokens(
    samples: Sequence[Sample], algorithm: AlgorithmConfig, *, seed: int, keep_zero_advantage: bool = False
) -> list[Sample]:
    """The samples with a gradient, with the tokens that Clip-Cov and KL-Cov hold back. All processes call it.

    Statistics are those of each mini-batch over all processes, from the engine's log-probs: the policy's before the
    rollout's first update but for the engine's rounding (with max_staleness, those of the policies that sampled), and
    known before any forward. So the loss depends neither on micro-batches nor on the number of processes, and nothing
    is computed twice. The paper takes each update's own log-probs: in a rollout's later mini-batches, these do not see
    the updates in between.

    samples: all with a token weight, those without advantage included; keep_zero_advantage: these are kept too.
    Processes exchange three numbers a mini-batch, and the keys of the tokens that may be selected.
    """
    own = [np.stack([s.per_token("sampling_logprobs"), s.per_token("advantages")]) for s in samples]
    totals = np.zeros((algorithm.steps_per_generation, 3))  # tokens, sum of log-probs, sum of advantages
    for sample, values in zip(samples, own, strict=True):
        totals[sample.mini_batch] += [values.shape[1], *values.sum(axis=1)]
    totals = np.sum(gather_object([totals]), axis=0)
    band = (algorithm.clip_cov_min, algorithm.clip_cov_max) if algorithm.loss_type == "clip_cov" else None
    keys = []
    for sample, (logprobs, advantages) in zip(samples, own, strict=True):
        count, of_logprobs, of_advantages = totals[sample.mini_batch]
        covariance = (logprobs - of_logprobs / count) * (advantages - of_advantages / count)
        keys.append(np.full(len(sample.completion_ids), np.inf))
        keys[-1][sample.sampled] = selection_keys(covariance, _priority(sample, seed), band)
    last = _last_selected(samples, keys, totals[:, 0], algorithm)
    chosen = [k <= last[sample.mini_batch] for k, sample in zip(keys, samples, strict=True)]
    return [
        sample
        for sample in attach(samples, selected=chosen)
        if keep_zero_advantage
        or algorithm.trains_without_advantage
        or np.any(sample.advantages)
        or (algorithm.loss_type == "kl_cov" and np.any(sample.selected))
    ]


def _last_selected(
    samples: Sequence[Sample], keys: Sequence[np.ndarray], counts: np.ndarray, algorithm: AlgorithmConfig
) -> list[float]:
    """The largest key that is selected in each mini-batch, over all processes; -inf: none is."""
    local = []
    for step, count in enumerate(counts):
        own = [k for k, sample in zip(keys, samples, strict=True) if sample.mini_batch == step]
        local.append(smallest(np.concatenate([np.empty(0), *own]), algorithm.cov_ratio, int(count)))
    parts = zip(*gather_object([local]), strict=True)
    found = [smallest(np.concatenate(p), algorithm.cov_ratio, int(n)) for p, n in zip(parts, counts, strict=True)]
    return [float(f.max(initial=-np.inf)) for f in found]


def _priority(sample: Sample, seed: int) -> np.ndarray:
    """Random numbers of a sample's sampled tokens that do not depend on the process it is in."""
    identity = zlib.crc32(np.array(sample.completion_ids).tobytes(), zlib.crc32(sample.problem_id.encode()))
    return np.random.default_rng([seed, identity]).random(int(sample.sampled.sum()))
