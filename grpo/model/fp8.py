"""Checkpoints with FP8 weights scaled in blocks, as DeepSeek-V3 is published (2412.19437, section 3.3).

    model.layers.0.self_attn.o_proj.weight            [R, C] float8_e4m3fn
    model.layers.0.self_attn.o_proj.weight_scale_inv  [ceil(R / 128), ceil(C / 128)] float32, one for a block

A weight is its FP8 value times the scale of its block of 128 x 128; the last blocks of a row or column may be smaller.
transformers' own loader takes blocks of equal size only, which V3's kv_a_proj_with_mqa (576 rows) does not have.

Left out: training in FP8, and other quantizations, which are refused.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from grpo.model.adapters import is_adapter
from grpo.model.weights import MAX_FILE_BYTES, WeightFiles
from rollout.support.weights import REPORTING, whole

SCALE = "_scale_inv"
INDEX = "model.safetensors.index.json"

Block = tuple[int, int]


def dequantize(weight: Tensor, scale_inv: Tensor, block: Block = (128, 128)) -> Tensor:
    """weight [R, C] times the scale of each block, in float32."""
    rows, columns = block
    if scale_inv.shape != (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns)):
        raise ValueError(
            f"an FP8 weight of shape {list(weight.shape)} in blocks of {rows} x {columns} has scales of shape "
            f"{list(scale_inv.shape)}. The file is damaged, or its quantization_config is another file's."
        )
    scales = scale_inv.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return weight.float() * scales[: weight.shape[0], : weight.shape[1]]


def fp8_block(quantization: dict[str, Any] | None, name: str) -> Block | None:
    """The size of a block of FP8 weights that share a scale; None if the weights are not quantized.

    quantization: the `quantization_config` of the model's config.json, if it has one.

    Raises:
        ValueError: they are quantized otherwise.
    """
    if quantization is None:
        return None
    if quantization.get("quant_method") == "fp8" and (block := quantization.get("weight_block_size")):
        return block[0], block[1]
    raise ValueError(
        f"{name} is quantized ({quantization.get('quant_method')}), and such weights cannot be trained. Use the model "
        "in bfloat16 or float32; only DeepSeek's FP8 in blocks is dequantized."
    )


def refuse_fp8(name: str, revision: str | None, trust_remote_code: bool) -> None:
    """Raise ValueError for a model that an engine would compute in FP8."""
    if is_adapter(name):  # refused when it is loaded
        return
    config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if fp8_block(getattr(config, "quantization_config", None), name) is not None:
        raise ValueError(
            f"{name} has FP8 weights: an engine would load them itself and compute in FP8, with other weights than the "
            f"trainer's. Write it out once with `grpo dequantize {name} OUT`, and set model.model_name_or_path=OUT."
        )


def load_dequantized(config: Any, block: Block, revision: str | None, **keywords: Any) -> PreTrainedModel:
    """What AutoModelForCausalLM.from_pretrained would give if the file were not quantized, each weight as it is needed.

    config: the model's, with its name; the loaded model has it without quantization. keywords: of from_pretrained.
    """
    name = config.name_or_path
    del config.quantization_config
    with torch.device("meta"):
        model_class = type(AutoModelForCausalLM.from_config(config, trust_remote_code=keywords["trust_remote_code"]))
    with _opened(name, block, revision) as weights:
        read: Any = model_class.from_pretrained
        model = whole(read(None, config=config, state_dict=weights, **keywords, **REPORTING), name)
    model.config.name_or_path = model.name_or_path = name
    if _file(name, "generation_config.json", revision) is not None:
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision or "main")
    return model


def write_dequantized(source: Path, folder: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
    """Write a folder's FP8 model in bfloat16, file by file; all else in the folder is copied.

    Raises:
        ValueError: there is no model in FP8 blocks, or the folder to write exists.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists. Choose a folder that does not.")
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json. Give a model's folder.")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    block = fp8_block(config.get("quantization_config"), str(source))
    if block is None:
        raise ValueError(
            f"{source} has no quantization_config in its config.json: nothing to dequantize. Use it as it is."
        )
    files = WeightFiles(folder, max_file_bytes)
    with _opened(str(source), block, None) as weights:
        for name, stored in weights.items():
            tensor = stored[...]
            files.add(name, tensor.bfloat16() if isinstance(stored, _Scaled) else tensor)
    files.finish()
    del config["quantization_config"]
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != INDEX:
            shutil.copy2(path, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A weight and its scales in their files, multiplied when read: loaders read a stored tensor as `stored[...]`."""

    name: str
    weight: Any
    scale: Any
    block: Block

    def __getitem__(self, index: Any) -> Tensor:
        try:
            return dequantize(self.weight[...], self.scale[...], self.block)[index]
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


@contextmanager
def _opened(name: str, block: Block, revision: str | None) -> Iterator[dict[str, Any]]:
    """Weight's name -> what reads it when indexed, in the order of the files. Scales are in the weights."""
    with ExitStack() as stack:
        stored: dict[str, Any] = {}
        for path in _weight_files(name, revision):
            file: Any = stack.enter_context(safe_open(path, framework="pt"))
            stored |= {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118, not a mapping
        for key, value in stored.items():
            if value.get_dtype().startswith("F8_E4M3") and key + SCALE not in stored:
                raise ValueError(
                    f"{name}: {key} is FP8 without {key + SCALE}, so its scales are stored in another layout than "
                    "DeepSeek-V3's (as DeepSeek-V4's are), and it cannot be dequantized. Use the model in bfloat16."
                )
        yield {
            key: _Scaled(key, value, stored[key + SCALE], block) if key + SCALE in stored else value
            for key, value in stored.items()
            if not key.endswith(SCALE)
        }


def _weight_files(name: str, revision: str | None) -> list[str]:
    if (index := _file(name, INDEX, revision)) is None:
        return [str(cached_file(name, "model.safetensors", revision=revision))]
    files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return [str(cached_file(name, file, revision=revision)) for file in dict.fromkeys(files)]


def _file(name: str, file: str, revision: str | None) -> str | None:
    """Path of a model's file; None if it has none."""
    return cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
