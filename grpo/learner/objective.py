"""The recipe's objective as a function of a micro-batch."""

from dataclasses import replace

from torch import Tensor

from grpo.algorithm.distillation import teacher_advantages
from grpo.algorithm.loss import LossOutput
from grpo.algorithm.plan import objective
from grpo.algorithm.tokens import Tokens
from grpo.learner.batch import MicroBatch
from grpo.learner.mismatch import mismatch
from grpo.learner.policy import LossFunction
from grpo.recipe.algorithm import AlgorithmConfig
from grpo.report.metrics import Mean, Metric


def loss_function(algorithm: AlgorithmConfig) -> LossFunction:
    """What `Policy.update` calls on each micro-batch."""
    chosen = objective(algorithm)

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
        )
        output = chosen.loss(tokens, algorithm)
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
