"""A model sharded over processes with FSDP2 (torch's `fully_shard`, 2304.11277).

Each process holds its part of every parameter, gradient and optimizer state. A decoder layer's parameters are gathered
while it computes, forward and backward, and freed afterwards; what belongs to no layer (final norm, head, a tied
embedding) is gathered by the root for the whole pass. Buffers are whole in every process.

Whatever gathers is a collective: all processes must do it, in the same order.
"""

import math
from collections.abc import Iterator
from typing import TypeVar

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

Root = TypeVar("Root", bound=nn.Module)


def shard(root: Root, model: PreTrainedModel, mesh: DeviceMesh) -> Root:
    """Shard `model` in place, inside the module whose forward is the whole computation; returns that module.

    The root must contain all that reads parameters: FSDP gathers them in its forward hooks. `fully_shard(model)` would
    miss a head that is read outside the model's own forward, and a head that is a unit of its own would be a part of
    the weight only, whose gradient is not summed over processes. Gradients are summed over processes, not averaged.

    mesh: [shards], or [replicas, shards] to keep several whole copies.

    Raises:
        ValueError: transformers does not say which modules are the model's layers.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError(
            f"trainer.sharding=fsdp2: {model.config.name_or_path} ({type(model).__name__}) does not name its layers "
            "(_no_split_modules), so there is nothing to gather one at a time. Set trainer.sharding=none."
        )
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    if not model.all_tied_weights_keys:
        fully_shard(model.get_input_embeddings(), mesh=mesh)
    # By default the root would keep what it gathered, and a forward after an update would use the old weights.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # else a factor means an operation that only NCCL has
    return root


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process. A collective for a sharded one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_entry(tensor: Tensor) -> int:
    """Where this process's part begins in the flattened tensor; 0 of a whole one."""
    if not isinstance(tensor, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] * math.prod(tensor.shape[1:])
