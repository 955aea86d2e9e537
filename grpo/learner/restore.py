"""A run's state beside the weights, in a checkpoint: AdamW's moments, and what accelerate keeps.

Moments are stored by torch.distributed.checkpoint under their parameters' names, each process its part. They can be
loaded in any number of processes, sharded or not. The optimizer's settings are not stored: they are the recipe's.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.distributed import is_initialized
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from grpo.learner.policy import Policy
from grpo.recipe.load import RecipeError

MOMENTS = "optimizer"  # a folder


def store(policy: Policy, folder: Path) -> None:
    """Write the moments into `folder`, a collective."""
    save(_moments(policy), checkpoint_id=folder / MOMENTS, no_dist=not is_initialized())


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
    load(_moments(policy), checkpoint_id=folder / MOMENTS, no_dist=not is_initialized())  # in place
    optimizer, scheduler = policy.optimizer, policy.scheduler
    base_lrs = list(scheduler.base_lrs)
    accelerator.load_state(str(folder))
    schedule: Any = scheduler  # all of transformers' schedules are LambdaLR
    schedule.base_lrs = base_lrs
    rates = [base * factor(schedule.last_epoch) for base, factor in zip(base_lrs, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _moments(policy: Policy) -> dict[str, dict[str, Tensor]]:
    """AdamW's state by the names of the parameters; where it took no step yet, it is made here, as it would be."""
    state = policy.optimizer.state
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if not state[parameter]:
            state[parameter] |= {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return {name: state[parameter] for name, parameter in trained.items()}
