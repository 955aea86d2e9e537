"""A run's state beside the weights, in a checkpoint: AdamW's moments, and what accelerate keeps.

Moments are stored by torch.distributed.checkpoint under their parameters' names, each process its part. They can be
loaded in any number of processes, sharded or not. The optimizer's settings are not stored: they are the recipe's.
"""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch.distributed import is_initialized
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from grpo.learner.optim import moments
from grpo.learner.policy import Policy
from grpo.recipe.load import RecipeError

MOMENTS = "optimizer"  # a folder


def store(policy: Policy, folder: Path) -> None:
    """Write the moments into `folder`, a collective."""
    save(moments(policy.model, policy.optimizer), checkpoint_id=folder / MOMENTS, no_dist=not is_initialized())


def restore(accelerator: Accelerator, policy: Policy, folder: Path) -> None:
    """Load what `store` and `save_state` wrote; the schedule and learning rate stay the recipe's.

    The scheduler's state has them too, and would undo a changed recipe.

    Raises:
        RecipeError: an earlier version wrote the checkpoint.
    """
    if not (folder / MOMENTS).is_dir():
        raise RecipeError(
            f"{folder} has no folder {MOMENTS!r}: an earlier version wrote this checkpoint, and it cannot be resumed. "
            f"Start from its weights with model.model_name_or_path={folder.parent}."
        )
    optimizer, scheduler = policy.optimizer, policy.scheduler
    load(moments(policy.model, optimizer), checkpoint_id=folder / MOMENTS, no_dist=not is_initialized())  # in place
    base_lrs = list(scheduler.base_lrs)
    accelerator.load_state(str(folder))
    schedule: Any = scheduler  # all of transformers' schedules are LambdaLR
    schedule.base_lrs = base_lrs
    rates = [base * factor(schedule.last_epoch) for base, factor in zip(base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
