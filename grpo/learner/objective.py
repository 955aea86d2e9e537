"""The recipe's objective as a function of a micro-batch."""

from torch import Tensor

from grpo.algorithm.loss import LossOutput
from grpo.algorithm.plan import objective
from grpo.learner.batch import MicroBatch
from grpo.learner.mismatch import mismatch
from grpo.learner.policy import LossFunction
from grpo.recipe.config import AlgorithmConfig


def loss_function(algorithm: AlgorithmConfig) -> LossFunction:
    """What `Policy.update` calls on each micro-batch."""
    surrogate = objective(algorithm).surrogate

    def loss(logprobs: Tensor, batch: MicroBatch) -> LossOutput:
        old = batch.old_logprobs
        output = surrogate(
            logprobs,
            logprobs.detach() if old is None else old,
            batch.advantages,
            batch.token_weights,
            epsilon=algorithm.epsilon,
            epsilon_high=algorithm.epsilon_high or algorithm.epsilon,
            beta=algorithm.beta,
            ref_logprobs=batch.ref_logprobs,
        )
        if old is not None:  # measured when the old log-probs were computed
            return output
        measured = mismatch([logprobs.detach().float().cpu().numpy()], [batch.sampling_logprobs.cpu().numpy()])
        return LossOutput(output.loss, {**output.metrics, **measured})

    return loss
