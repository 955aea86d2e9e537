"""Continuing from a checkpoint's optimizer state under the recipe's settings."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from grpo.learner.policy import Policy


def restore(accelerator: Accelerator, policy: Policy, folder: Path) -> None:
    """Load what `save_state` wrote; learning rate, schedule, betas and weight decay stay the recipe's.

    The checkpoint has them too, as part of the optimizer's and the scheduler's state, and would undo a changed recipe.
    """
    optimizer, scheduler = policy.optimizer, policy.scheduler
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    base_lrs = list(scheduler.base_lrs)
    accelerator.load_state(str(folder))
    schedule: Any = scheduler  # all of transformers' schedules are LambdaLR
    schedule.base_lrs = base_lrs
    rates = [base * factor(schedule.last_epoch) for base, factor in zip(base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, own, rate in zip(optimizer.param_groups, settings, rates, strict=True):
        group.update({**own, "lr": rate})
