"""LoRA adapters inside a model: attaching, switching off, saving, merging. peft does the mathematics.

The model stays a `PreTrainedModel` whose targeted modules are peft's layers, so everything that reads its modules goes
on working, and its `save_pretrained` writes adapters only. In a sharded model adapters are sharded like its other
parameters; a quantized base is merged as what it computes with. Left out: several adapters at once.

peft is imported where adapters are: with bitsandbytes, which it imports, that takes seconds.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.model.quantized import (
    count_parameters,
    dequantized,
    in_4_bits,
    is_quantized,
    quantized_numbers,
    record_quantization,
)
from grpo.model.sharding import divided_like, gathered, in_parts, local, shapes_only, whole
from grpo.recipe.loop.lora import LoRAConfig

ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of names in peft's files


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter in peft's format."""
    return (Path(folder) / ADAPTER_FILE).is_file()


def has_adapters(model: nn.Module) -> bool:
    return hasattr(model, "peft_config")


def attach_adapters(model: PreTrainedModel, config: LoRAConfig, *, revision: str | None = None) -> None:
    """Put new adapters into the model and freeze everything else.

    Raises:
        ValueError: a target matches nothing or cannot be adapted.
    """
    from peft import LoraConfig

    check_targets(model, config)
    whole_modules = {n: module for n, module in model.named_modules() if _matches(n, config.modules_to_save)}
    # By their whole names: of an end, peft also takes the middle of a word, so `norm` would be every layernorm.
    arguments: dict[str, Any] = config.peft_arguments() | {"modules_to_save": list(whole_modules)}
    adapter = LoraConfig(**arguments, task_type="CAUSAL_LM", revision=revision)
    copied = list(whole_modules.values())
    try:
        with ExitStack() as stack, warnings.catch_warnings():
            # Of patterns it made itself for fused experts, and does apply.
            warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
            for module in copied:  # with what is in them
                stack.enter_context(gathered(module))
            stack.enter_context(shapes_only(model, on_meta=False))  # peft would take the shapes of parts
            model.add_adapter(adapter)
    except ValueError as error:
        raise ValueError(f"model.lora: peft cannot adapt {model.config.name_or_path}: {error}") from error
    _check_excluded(model, config.exclude_modules)
    for module in copied:
        module.requires_grad_(False)  # what stays of them


def check_targets(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Every target must match, and none may be one that training or sampling would pass over."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    parameters = [name for name, p in model.named_parameters() if p.ndim == 3]
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    outside = {name for name, module in model.named_modules() if module in ends}
    adaptable = [name for name in linear if name not in outside]
    modules = [name for name, _ in model.named_modules()]
    _check_names("target_parameters", config.target_parameters, parameters, parameters)
    _check_names("modules_to_save", config.modules_to_save, modules, modules)
    copied = [(name, module) for name, module in model.named_modules() if _matches(name, config.modules_to_save)]
    if quantized := [name for name, module in copied if any(in_4_bits(part) for part in module.modules())]:
        raise ValueError(
            f"model.lora.modules_to_save matches {quantized[0]}, which model.quantization holds in 4 bits: such "
            "weights cannot be trained. Leave it out, or remove quantization."
        )
    if isinstance(config.target_modules, list):
        _check_names("target_modules", config.target_modules, [*linear, *outside], adaptable)
        targeted = {name for name in outside if _matches(name, config.target_modules)}
    elif config.target_modules == "all-linear":
        targeted = set()  # peft leaves the head out
    else:
        pattern = config.target_modules
        if not any(re.fullmatch(pattern, name) for name in linear):
            raise ValueError(_no_match("target_modules", pattern, adaptable))
        targeted = {name for name in outside if re.fullmatch(pattern, name)}
    if targeted:
        raise ValueError(
            f"model.lora.target_modules matches {', '.join(sorted(targeted))}: embeddings and head take no adapters "
            "here. Put them in modules_to_save, or leave them out."
        )
    if model.all_tied_weights_keys and any(_matches(name, config.modules_to_save) for name in outside):
        raise ValueError(
            f"model.lora.modules_to_save={config.modules_to_save}: the head of {model.config.name_or_path} is its "
            "embedding, and training a copy of one would separate them. Leave them out."
        )


def _check_excluded(model: PreTrainedModel, excluded: str | list[str]) -> None:
    """peft leaves out modules only: what it adapts as parameters, experts and routers, it adapts all the same."""
    from peft.tuners.lora.layer import ParamWrapper

    for name, layer in model.named_modules():
        if not isinstance(layer, ParamWrapper):
            continue
        module = name.replace(".base_layer", "")
        names = [module, f"{module}.{layer.parameter_name}"]
        if layer.parameter_name == "gate_up_proj":
            names += [f"{module}.gate_proj", f"{module}.up_proj"]
        if any(re.fullmatch(excluded, n) if isinstance(excluded, str) else _matches(n, excluded) for n in names):
            raise ValueError(
                f"model.lora.exclude_modules={excluded}: peft leaves out no parameters, and would adapt "
                f"{_end(names[1])}. List what is adapted in target_modules, without it."
            )


def _matches(name: str, ends: list[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _check_names(field: str, wanted: list[str], names: list[str], offered: list[str]) -> None:
    """offered: of the names, those that the error suggests."""
    for end in wanted:
        if not any(_matches(name, [end]) for name in names):
            raise ValueError(_no_match(field, end, offered))


def _no_match(field: str, wanted: str, offered: list[str]) -> str:
    exist = sorted({_end(name) for name in offered})
    return (
        f"model.lora.{field}: {wanted!r} matches nothing in this model. There are {', '.join(exist[:40]) or 'none'}. "
        "Name one of them, by its end."
    )


def check_sendable(model: PreTrainedModel) -> None:
    """Raise ValueError for adapters that vLLM would not apply, or not as peft does."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    for name, layer in model.named_modules():
        reason = ""
        if isinstance(layer, ParamWrapper):
            name, reason = f"{name}.{layer.parameter_name}", "vLLM takes adapters of modules only, not of parameters"
        elif isinstance(layer, LoraLayer) and name.endswith(".kv_b_proj"):
            reason = "vLLM multiplies this weight into its latent attention once, without adapters"
        if reason:
            raise ValueError(
                f"rollout.adapters=send: model.lora adapts {_end(name)}, and {reason}. List other modules in "
                "model.lora.target_modules, or set rollout.adapters=merge."
            )


def describe_adapters(model: PreTrainedModel, *, are_sent: bool = False) -> str:
    """What trains and what does not, in one line for the log; are_sent: to the engine as they are."""
    from peft.tuners.lora import LoraLayer

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = count_parameters(model)
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    adapted = sorted({_end(f"{name}.{getattr(module, 'parameter_name', '')}") for name, module in layers})
    packed = f" {quantized_numbers(model):,} of the base's are in 4 bits." if is_quantized(model) else ""
    return (
        f"model.lora: {trained:,} of {total:,} parameters train, in {', '.join(adapted)}.{packed} The engine is sent "
        f"{'the adapters' if are_sent else 'merged weights'}."
    )


def _end(name: str) -> str:
    """The name without its layer: model.layers.1.mlp.experts.base_layer.down_proj -> mlp.experts.down_proj."""
    return re.sub(r".*\.\d+\.", "", name.replace(".base_layer", "")).rstrip(".")


# -- weights of the adapters


def load_adapters(model: PreTrainedModel, folder: Path) -> None:
    """Give the attached adapters the weights of a folder in peft's format.

    Raises:
        ValueError: they are not of this shape.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    expected = get_peft_model_state_dict(model)
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if shapes != {name: tensor.shape for name, tensor in expected.items()}:
        raise ValueError(
            f"{folder}: its adapters are not those of model.lora. Use the values in its {ADAPTER_FILE}, or start anew."
        )
    set_peft_model_state_dict(model, {name: divided_like(weights[name], part) for name, part in expected.items()})


def save_adapters(model: PreTrainedModel, folder: Path, *, is_writer: bool) -> None:
    """Write the adapters in peft's format. All processes call it, and one of them writes."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad} if in_parts(model) else set()
    weights = {name: whole(tensor) for name, tensor in model.state_dict().items() if name not in frozen}
    if is_writer:
        model.save_pretrained(folder, state_dict=weights)
        if is_quantized(model):
            record_quantization(model, folder)


def adapter_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the adapters under the names of peft's file. If they are sharded, all processes must take all."""
    from peft import get_peft_model_state_dict

    for name, tensor in get_peft_model_state_dict(model).items():
        yield PREFIX + name, whole(tensor.detach())


@contextmanager
def perturbed(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the adapters of modules do something, which new ones do not: their B is 0.

    What they add to a weight has entries of about N(0, 0.3^2 / in_features), the same in all processes.
    """
    from peft.tuners.lora import Linear

    generator, noise = torch.Generator().manual_seed(0), {}
    layers: dict[str, Any] = {name: module for name, module in model.named_modules() if isinstance(module, Linear)}
    for name, layer in layers.items():
        a, b = whole(layer.lora_A["default"].weight), layer.lora_B["default"].weight
        size = 0.3 / (layer.scaling["default"] * a.square().sum(0).mean().sqrt() * math.sqrt(a.shape[1]))
        drawn = torch.randn(b.shape, generator=generator).to(b.device) * size
        noise[f"{name}.lora_B.default.weight"] = divided_like(drawn, b)
    with holding(model, noise):
        yield


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything that trains."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside the block the model has these weights; after it, its own again, bit for bit. Not for training."""
    own = trained_weights(model)
    _copy(weights, model)
    try:
        yield
    finally:
        _copy(own, model)


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Into the model's memory: FSDP would not see other tensors in its place."""
    for name, tensor in weights.items():
        local(model.get_parameter(name)).copy_(local(tensor))


@contextmanager
def base_only(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the adapters are off, and the model is its base."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    parts = [module for module in model.modules() if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper)]
    for part in parts:  # transformers' enable_adapters forgets modules_to_save
        part.enable_adapters(False)
    try:
        yield
    finally:
        for part in parts:
            part.enable_adapters(True)


# -- merging


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the model with its adapters merged, under the names of its checkpoint on disk.

    One layer is merged at a time, into copies: the base is never written to. A sharded one is gathered before; all
    processes must take all weights.
    """
    from peft.tuners.lora import LoraLayer

    layers: dict[str, None] = {}
    for name, _ in model.named_modules():
        if found := re.match(r".*?\.\d+(?=\.|$)", name):
            layers.setdefault(found.group())
    for layer in layers:
        module = model.get_submodule(layer)
        with gathered(module), dequantized(module), _merged(module):
            weights = _plain_names(module.state_dict(prefix=f"{layer}."))
        yield from revert_weight_conversion(model, weights).items()
    rest = {n: t for n, t in model.state_dict().items() if not n.startswith(tuple(f"{layer}." for layer in layers))}
    outside = [module for name, module in model.named_modules() if not name.startswith(tuple(layers))]
    assert not any(isinstance(module, LoraLayer) or in_4_bits(module) for module in outside)
    tied = model.all_tied_weights_keys
    weights = {name: whole(tensor) for name, tensor in _plain_names(rest).items() if name not in tied}
    yield from revert_weight_conversion(model, weights).items()


@contextmanager
@torch.no_grad()
def _merged(module: nn.Module) -> Iterator[None]:
    """Inside the block, base layers hold merged copies; tensors read there stay valid after it."""
    from peft.tuners.lora import LoraLayer

    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, LoraLayer):
                stack.enter_context(_merged_layer(part))
        yield


@contextmanager
def _merged_layer(layer: Any) -> Iterator[None]:
    from peft.tuners.lora import Linear

    own = [(p, p.data) for p in layer.get_base_layer().parameters(recurse=False)]
    plain = type(layer).__name__ == "Linear4bit"  # of a base that is dequantized now; its own merge quantizes again
    (Linear if plain else type(layer)).merge(layer, safe_merge=True)  # into a copy
    try:
        yield
    finally:
        for parameter, data in own:  # subtracting the update again would leave rounding errors
            parameter.data = data
        layer.merged_adapters.clear()
        layer._caches.clear()


def _plain_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as without adapters; the adapters themselves left out, modules trained whole in place of the original."""
    plain = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if "original_module" in parts or any(part.startswith("lora_") for part in parts):
            continue
        plain[name.replace(".base_layer", "").replace(".modules_to_save.default", "")] = tensor
    return plain
