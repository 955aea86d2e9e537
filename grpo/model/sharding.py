"""A model sharded over processes with FSDP2 (torch's `fully_shard`, 2304.11277).

Each process holds its part of every parameter, gradient and optimizer state. A decoder layer's parameters are gathered
while it computes, forward and backward, and freed afterwards; what belongs to no layer (final norm, head, a tied
embedding) is gathered by the root for the whole pass. Buffers are whole in every process.

Whatever gathers is a collective: all processes must do it, in the same order.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel

Root = TypeVar("Root", bound=nn.Module)


# -- reading


@contextmanager
def reading_parts(mesh: DeviceMesh | None) -> Iterator[dict[str, Any]]:
    """Inside the block, `from_pretrained` called with what this yields reads this process's part of every parameter.

    transformers reads a parameter that is a DTensor in parts; here all become such before anything is read. The model
    cannot compute before it has gone through `shard`, or its parameters are `gathered`. Without a mesh nothing changes,
    and a quantized checkpoint is read whole.
    """
    if mesh is None:
        yield {}
        return

    def split(model: PreTrainedModel, *_others: Any) -> PreTrainedModel:
        delattr(model.config, "distributed_config")  # it would be saved with the model
        if getattr(model.config, "quantization_config", None) is None:  # its scales belong to blocks, not to parts
            _split(model, mesh)
        return model

    # transformers' own place to shard a model: after it is made on the meta device, before its weights are read.
    own: Any = PreTrainedModel
    own.maybe_distribute_model = staticmethod(split)
    try:
        yield {"distributed_config": {}}
    finally:
        del own.maybe_distribute_model  # what PreTrainedModel inherits is back


def _split(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Turn parameters without data into parts without data, divided as FSDP does."""
    placements = [*[Replicate()] * (mesh.ndim - 1), Shard(0)]
    parts: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if parameter not in parts:
                part = _part(parameter.detach(), mesh, placements)
                parts[parameter] = nn.Parameter(part, requires_grad=parameter.requires_grad)
            setattr(module, name, parts[parameter])


def buffers_to(model: nn.Module, device: str) -> None:
    """Move the buffers, which are read into host memory, to where the parts of parameters have been put."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def _part(tensor: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    """This process's part of a whole tensor, a view of it."""
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    here = tensor.narrow(0, offset[0], shape[0])
    return DTensor.from_local(here, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


@contextmanager
def gathered(module: nn.Module, *, recurse: bool = True) -> Iterator[None]:
    """Inside the block the module's parameters are whole, in copies without gradient. A collective."""
    places = _parts(module.modules() if recurse else [module])
    copies: dict[Any, nn.Parameter] = {}
    for part, name, parameter in places:
        if parameter not in copies:
            copies[parameter] = nn.Parameter(whole(parameter.detach()), requires_grad=False)
        setattr(part, name, copies[parameter])
    del copies
    try:
        yield
    finally:
        for part, name, parameter in places:
            setattr(part, name, parameter)


@contextmanager
def computing(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block a model that has been read in parts can compute, without gradient: all processes together.

    Each layer's parameters are gathered when its turn comes, what belongs to no layer at once.
    """
    layers = list(_layers(model))
    inside = {module for layer in layers for module in layer.modules()}
    with ExitStack() as stack:
        for module in [module for module in model.modules() if module not in inside]:  # in one order everywhere
            stack.enter_context(gathered(module, recurse=False))
        for layer in layers:
            turn = ExitStack()
            hooks = [
                layer.register_forward_pre_hook(lambda layer, *_, turn=turn: turn.enter_context(gathered(layer))),
                layer.register_forward_hook(lambda *_, turn=turn: turn.close(), always_call=True),
            ]
            for hook in hooks:
                stack.callback(hook.remove)
        yield


# -- sharding


def shard(
    root: Root,
    model: PreTrainedModel,
    mesh: DeviceMesh,
    dtype: torch.dtype = torch.float32,
    *,
    offload: bool = False,
) -> Root:
    """Shard `model` in place, inside the module whose forward is the whole computation; returns that module.

    The root must contain all that reads parameters: FSDP gathers them in its forward hooks. `fully_shard(model)` would
    miss a head that is read outside the model's own forward, and a head that is a unit of its own would be a part of
    the weight only, whose gradient is not summed over processes. Gradients are summed over processes, not averaged.

    mesh: [shards], or [replicas, shards] to keep several whole copies.
    dtype: what autocast computes in. Layers' matrices are gathered in it, with the numbers that autocast gives when it
        casts them afterwards. The root gathers the layers' vectors, which norms multiply with, and what the model keeps
        in float32, in float32, as it does the head; so is the embedding.
    offload: parts, gradients and what the optimizer adds are in host memory; parts are copied to be gathered.

    Raises:
        ValueError: transformers does not say which modules are the model's layers.
    """
    layers = list(_layers(model))
    if not layers:
        raise ValueError(
            f"trainer.sharding=fsdp2: {model.config.name_or_path} ({type(model).__name__}) does not name its layers "
            "(_no_split_modules), so there is nothing to gather one at a time. Set trainer.sharding=none."
        )
    apart = [] if model.all_tied_weights_keys else [model.get_input_embeddings()]
    cast = dtype != torch.float32 and not adds_to_weights(model)
    in_dtype = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    home = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if offload else OffloadPolicy()
    how = {"mesh": mesh, "reshard_after_forward": True, "offload_policy": home}

    kept = {p for name, p in model.named_parameters() if _stays_in_float32(model, name)}

    def left_to_root(layer: nn.Module) -> set[nn.Parameter]:
        return {p for p in layer.parameters() if cast and (p.ndim < 2 or p in kept)}

    with shapes_only(root, on_meta=True):
        units = {parameter for module in (*layers, *apart) for parameter in module.parameters()}
        for layer in layers:
            units -= left_to_root(layer)
        # By default the root would keep what it gathered, and a forward after an update would use the old weights.
        fully_shard(root, **how, ignored_params=units)
        for layer in layers:
            precision = in_dtype if cast else MixedPrecisionPolicy()
            fully_shard(layer, **how, mp_policy=precision, ignored_params=left_to_root(layer))
        for module in apart:
            fully_shard(module, **how)
    if offload:
        parts = _parts(root.modules())
        moved = {p: nn.Parameter(p.detach().cpu(), requires_grad=p.requires_grad) for _, _, p in parts}
        for module, name, parameter in parts:
            setattr(module, name, moved[parameter])
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # else a factor means an operation that only NCCL has
    return root


def _stays_in_float32(model: PreTrainedModel, name: str) -> bool:
    """Whether the model computes with this parameter in float32 under autocast too, such as a balance bias."""
    return name.endswith("A_log") or any(kept in name for kept in model._keep_in_fp32_modules_strict or ())


@contextmanager
def shapes_only(root: nn.Module, *, on_meta: bool) -> Iterator[None]:
    """Inside the block, parameters read in parts are whole ones without data, which may be frozen or not.

    After it they are those that were read. FSDP takes what it finds in its place when it first computes.

    on_meta: on the meta device, as `fully_shard` needs; else on the device of the parts, without memory of their own.
    """

    def hollow(parameter: Tensor) -> Tensor:
        if on_meta:
            return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(parameter.shape)

    places = _parts(root.modules())
    hollows = {p: nn.Parameter(hollow(p), requires_grad=p.requires_grad) for _, _, p in places}
    for module, name, parameter in places:
        setattr(module, name, hollows[parameter])
    yield
    for module, name, parameter in places:
        setattr(module, name, parameter.requires_grad_(hollows[parameter].requires_grad))


def _parts(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Where these modules hold parts of parameters, and which; a tied one is there more than once."""
    return [
        (module, name, parameter)
        for module in modules
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if isinstance(parameter, DTensor)
    ]


def _layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    names = set(model._no_split_modules or ())
    return (module for module in model.modules() if type(module).__name__ in names)


def adds_to_weights(model: nn.Module) -> bool:
    """Whether there are adapters, as on fused experts, whose update is added to a weight: in float32, as when merged.

    The layers of such a model are gathered in float32.
    """
    if not hasattr(model, "peft_config"):  # peft takes seconds to import
        return False
    from peft.tuners.lora.layer import ParamWrapper

    return any(isinstance(module, ParamWrapper) for module in model.modules())


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def in_parts(model: nn.Module) -> bool:
    """Whether this process holds a part of the model's parameters only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process, on the device that gathers. A collective for a sharded one."""
    if not isinstance(tensor, DTensor):
        return tensor
    part: Any = tensor.to(tensor.device_mesh.device_type)
    return part.full_tensor()


def divided_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor divided over processes as `other` is; itself, if that is whole."""
    return _part(tensor, other.device_mesh, other.placements) if isinstance(other, DTensor) else tensor


def first_entry(tensor: Tensor) -> int:
    """Where this process's part begins in the flattened tensor; 0 of a whole one."""
    if not isinstance(tensor, DTensor):
        return 0
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] * math.prod(tensor.shape[1:])
