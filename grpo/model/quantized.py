"""A base in 4 bits under adapters (QLoRA, 2305.14314). bitsandbytes quantizes and computes, transformers loads.

Linear layers are quantized; embeddings, head, router and routed experts, which are 3-D parameters, stay in float32.
Everything sampled, saved or merged uses the weights that the trainer computes with: the dequantized ones.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.utils.import_utils import is_bitsandbytes_available

from rollout.support.weights import REPORTING, whole

QUANTIZATION_FILE = "quantization_config.json"  # beside an adapter: how its base was quantized
# A number of NF4, its share of a block's scale in 8 bits, and of the scale of 256 scales (section 3 of the paper).
BYTES_PER_WEIGHT = 4 / 8 + 1 / 64 + 4 / (64 * 256)


def load_quantized(name: str, compute_dtype: torch.dtype, **keywords: Any) -> PreTrainedModel:
    """A model in NF4 with double quantization; all else in float32. keywords: of from_pretrained.

    compute_dtype: of the quantized layers.

    Raises:
        ValueError: bitsandbytes is missing.
    """
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )
    return _load(name, config, **keywords)


def load_as_recorded(name: str, adapter: Path, **keywords: Any) -> PreTrainedModel:
    """The base an adapter was trained on, in float32: if it was quantized, what its quantized weights stand for."""
    read: Any = AutoModelForCausalLM.from_pretrained
    path = adapter / QUANTIZATION_FILE
    if not path.is_file():
        return whole(read(name, dtype=torch.float32, **keywords, **REPORTING), name)
    config = BitsAndBytesConfig.from_dict(json.loads(path.read_text(encoding="utf-8")))
    model: Any = _load(name, config, dtype=torch.float32, **keywords)
    return model.dequantize(torch.float32)


def _load(name: str, config: Any, **keywords: Any) -> PreTrainedModel:
    if not is_bitsandbytes_available():
        raise ValueError(f"{name} in 4 bits (model.quantization) requires bitsandbytes. Run: pip install bitsandbytes")
    read: Any = AutoModelForCausalLM.from_pretrained
    model = whole(read(name, quantization_config=config, **keywords, **REPORTING), name)
    for layer in _layers(model):
        # On CPUs with AVX512-BF16, bitsandbytes packs the weights of a layer in evaluation mode for inference, for
        # good: in bfloat16, only where sizes allow it, and without a gradient for what was before the layer.
        layer.support_avx512bf16_for_cpu = False
    return model


def is_quantized(model: PreTrainedModel) -> bool:
    return getattr(model, "is_loaded_in_4bit", False)


def record_quantization(model: PreTrainedModel, folder: Path) -> None:
    """Write beside the adapters how their base is quantized."""
    model.config.quantization_config.to_json_file(folder / QUANTIZATION_FILE)


def in_4_bits(layer: nn.Module) -> bool:
    """Of the layer itself: peft's layers only pass on their base's weight."""
    return type(layer._parameters.get("weight")).__name__ == "Params4bit"


def quantized_numbers(model: nn.Module) -> int:
    """How many of the model's parameters are held in 4 bits."""
    return sum(layer.weight.quant_state.shape.numel() for layer in _layers(model))


def quantizable_numbers(model: PreTrainedModel) -> int:
    """How many parameters of a model without adapters would be."""
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    return sum(layer.weight.numel() for layer in layers if layer is not model.get_output_embeddings())


def count_parameters(model: nn.Module) -> int:
    """How many parameters the model has, whatever number of bytes holds them."""
    packed = sum(layer.weight.numel() for layer in _layers(model))
    return sum(p.numel() for p in model.parameters()) - packed + quantized_numbers(model)


@contextmanager
def dequantized(module: nn.Module) -> Iterator[None]:
    """Inside the block the layers in a module hold the weights they compute with, and after it their own again."""
    layers = _layers(module)
    own = [layer.weight for layer in layers]
    for layer in layers:
        layer.weight = nn.Parameter(_dequantized(layer.weight), requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.weight = weight


def _layers(module: nn.Module) -> list[Any]:
    return [part for part in module.modules() if in_4_bits(part)]


def _dequantized(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]  # an extra

    return dequantize_4bit(weight.data, weight.quant_state)
