"""An adapter and its base as one plain model."""

import json
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig

from grpo.model.adapters import ADAPTER_FILE
from grpo.model.quantized import load_as_recorded
from grpo.model.weights import keep_published_keys, save_model


def merge_adapter(adapter: Path, out: Path, *, trust_remote_code: bool = False) -> None:
    """Write the base with the adapter merged as a plain Hugging Face folder, without a tokenizer, in the base's dtype.

    A base that was quantized in training is merged as it was then: quantized, and dequantized again.
    The sum is computed in float32 and rounded once, as when a trainer sends its weights to an engine.
    """
    adapter_config = json.loads((adapter / ADAPTER_FILE).read_text(encoding="utf-8"))
    name = adapter_config["base_model_name_or_path"]
    source = {"revision": adapter_config.get("revision"), "trust_remote_code": trust_remote_code}
    dtype = AutoConfig.from_pretrained(name, **source).dtype or torch.float32
    base = load_as_recorded(name, adapter, **source)
    merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    for name, tensor in chain(merged.named_parameters(), merged.named_buffers()):
        # As when it is loaded: a balance bias rounded to bfloat16 would choose other experts.
        if tensor.is_floating_point() and not any(kept in name for kept in merged._keep_in_fp32_modules_strict):
            tensor.data = tensor.data.to(dtype)
    keep_published_keys(merged)
    save_model(merged, out, is_writer=True)
