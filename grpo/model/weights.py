"""A model's weights under the names they have on disk."""

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from grpo.model.adapters import has_adapters, merged_weights, save_adapters
from grpo.model.forward.mtp import mtp_layer, mtp_prefix
from grpo.model.sharding import in_parts, whole

MAX_FILE_BYTES = 4 * 2**30  # of weights in one file

# model_type -> names that reverting transformers' conversion leaves as they are not published, and the published ones.
PUBLISHED_NAMES = {
    "deepseek_v4": {
        r"^model\.embed_tokens\.": "embed.",
        r"^model\.hc_head\.hc_": "hc_head_",
        r"^model\.": "",
        r"\.attn\.norm\.": ".attn.kv_norm.",
    }
}


def checkpoint_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) as in the model's checkpoint folder, in the layout that rollout engines load.

    transformers fuses the experts of a layer into `experts.gate_up_proj [E, 2I, H]` and `experts.down_proj [E, H, I]`;
    checkpoints, and with them vLLM, have `experts.{e}.gate_proj.weight [I, H]` and so on. Buffers that a checkpoint
    holds are included (DeepSeek-V3's `e_score_correction_bias`), tied weights come once. A multi-token prediction
    is left out: engines do not run it.

    The tensors are detached and mostly views of the parameters: use them before the next optimizer step.
    Adapters are merged, a layer at a time, into copies. A sharded model's weights are gathered layer by layer, so at
    most one layer is whole at a time; all processes must take all of them. Not for wrapped models (unwrap first).
    """
    for name, tensor in _reverted(model):
        for pattern, published in PUBLISHED_NAMES.get(model.config.model_type, {}).items():
            name = re.sub(pattern, published, name)
        yield name, tensor


def _reverted(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    if has_adapters(model):
        yield from merged_weights(model)
        return
    tied, draft = model.all_tied_weights_keys, mtp_prefix(model)
    named = model.state_dict().items()
    weights = [(n, tensor) for n, tensor in named if n not in tied and not (draft and n.startswith(draft))]
    for _, layer in groupby(weights, key=lambda pair: _layer_of(pair[0])):
        yield from revert_weight_conversion(model, {name: whole(tensor) for name, tensor in layer}).items()


def _layer_of(name: str) -> str:
    """`model.layers.3` for `model.layers.3.mlp.gate.weight`; the whole name for what belongs to no layer."""
    parts = name.split(".")
    return next((".".join(parts[: i + 1]) for i, part in enumerate(parts) if part.isdecimal()), name)


def keep_published_keys(model: PreTrainedModel) -> None:
    """Have the config say, where it is saved, what vLLM reads and transformers leaves out or states otherwise."""
    text: Any = model.config.get_text_config()
    if getattr(text, "num_nextn_predict_layers", None) and mtp_layer(model) is None:
        text.num_nextn_predict_layers = 0  # none is loaded, so none is saved
    if text.model_type == "deepseek_v4":  # transformers reads these published keys, and does not keep them
        text.compress_ratios = [text.compress_rates.get(kind, 0) for kind in text.layer_types]
        text.num_hash_layers = text.mlp_layer_types.count("hash_moe")


def save_model(model: PreTrainedModel, folder: Path, *, is_writer: bool, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write a Hugging Face folder; of a model with adapters, only them. All processes call it, and one of them writes.

    The weights of a sharded model go by layer by layer, and the writer never holds more than a file of them. What goes
    wrong in writing is raised after the last layer: until then, the other processes count on this one.
    """
    if has_adapters(model):
        save_adapters(model, folder, is_writer=is_writer)
        return
    if not in_parts(model) and model.config.model_type not in PUBLISHED_NAMES:
        if is_writer:
            model.save_pretrained(folder)
        return
    error: Exception | None = None
    files = WeightFiles(folder, max_file_bytes)
    for name, tensor in checkpoint_weights(model):
        if not is_writer or error is not None:
            continue
        try:
            files.add(name, tensor)
        except Exception as raised:  # a full disk is an OSError or a SafetensorError
            error = raised
    if error is not None:
        raise error
    if is_writer:
        model.save_pretrained(folder, state_dict={})  # all but the weights
        files.finish()


class WeightFiles:
    """Weights on their way into `model-00001-of-00007.safetensors` and so on, with the index that names them."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self.pending: dict[str, Tensor] = {}
        self.pending_bytes = self.total_bytes = 0
        self.written: list[list[str]] = []  # names in each file

    def add(self, name: str, tensor: Tensor) -> None:
        if self.pending and self.pending_bytes + tensor.nbytes > self.max_bytes:
            self._write()
        # A copy: the view would keep its whole layer alive.
        self.pending[name] = tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        self.pending_bytes += tensor.nbytes

    def finish(self) -> None:
        """Write what is left, give the files their final names, and write the index."""
        self._write()
        count = len(self.written)
        if count == 1:
            self._draft(0).rename(self.folder / "model.safetensors")
            return
        names = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        for i, name in enumerate(names):
            self._draft(i).rename(self.folder / name)
        places = {weight: name for name, weights in zip(names, self.written, strict=True) for weight in weights}
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(places.items()))}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(self.pending, self._draft(len(self.written)), metadata={"format": "pt"})
        self.written.append(list(self.pending))
        self.total_bytes += self.pending_bytes
        self.pending, self.pending_bytes = {}, 0

    def _draft(self, index: int) -> Path:
        return self.folder / f"model-{index + 1:05}.draft"
