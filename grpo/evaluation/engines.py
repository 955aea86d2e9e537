"""From an evaluation's recipe to its engine; the model may be a checkpoint or a LoRA adapter on a base."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from grpo.evaluation.config import EvalModelConfig, EvalRecipe
from rollout.engines.base import Engine
from rollout.types import Completion, Group, Prompt, Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ADAPTER_FILE = "adapter_config.json"


class ReferenceEngine:
    """Gives each problem's reference answer: what is left wrong then is the fault of the data or the checker."""

    def __init__(self, references: Mapping[str, str]) -> None:
        self._references = references

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        for prompt in prompts:
            answer = Completion(
                token_ids=[],
                logprobs=[],
                text=self._references[prompt.problem.id.rpartition("#")[0]],
                finish_reason="stop",
                policy_version=0,
            )
            yield Group(problem=prompt.problem, prompt_ids=[], completions=[answer] * sampling.num_generations)

    def load_weights(self, weights: Iterable[Any], policy_version: int) -> None:  # noqa: ARG002
        raise ValueError("the reference answers have no weights.")

    def close(self) -> None:
        pass


def base_of(model: EvalModelConfig) -> str:
    """Where tokenizer and configuration are: the model, or the base of an adapter that brings no tokenizer."""
    path = Path(model.model_name_or_path)
    if not (path / ADAPTER_FILE).is_file() or (path / "tokenizer_config.json").is_file():
        return model.model_name_or_path
    return json.loads((path / ADAPTER_FILE).read_text())["base_model_name_or_path"]


def load_tokenizer(model: EvalModelConfig) -> "PreTrainedTokenizerBase":
    """The model's tokenizer; ValueError where there is none, as for a wrong path: nothing is loaded before it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            base_of(model), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={model.model_name_or_path!r}: no tokenizer in {base_of(model)!r} ({error}). Name a Hugging Face "
            "folder or Hub name, a checkpoint of a run, or the folder of a LoRA adapter."
        ) from error


def fingerprint(model: EvalModelConfig) -> str | None:
    """What tells one training's weights from another's under the same path; None where there is no local folder.

    A hash of names, sizes and last megabytes of the weight files: all of a large model would take minutes to read.
    """
    folder = Path(model.model_name_or_path)
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin", ".pt"))
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            file.seek(max(0, size - 2**20))
            digest.update(file.read())
    return digest.hexdigest()[:16] if files else None


@contextmanager
def whole_model(model: EvalModelConfig) -> Iterator[str]:
    """A model's folder or Hub name; an adapter is merged into its base first, in a folder that lasts as long."""
    adapter = Path(model.model_name_or_path)
    if not (adapter / ADAPTER_FILE).is_file():
        yield model.model_name_or_path
        return
    try:
        from peft import AutoPeftModelForCausalLM
    except ImportError as error:
        raise ValueError(f"{adapter} is a LoRA adapter, which needs the package peft: pip install peft") from error
    from transformers import AutoTokenizer

    with TemporaryDirectory(prefix="merged-") as folder:
        merged: Any = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype="auto")
        merged.merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(base_of(model)).save_pretrained(folder)
        yield folder


def context_length(recipe: EvalRecipe, longest_prompt: int) -> int:
    """The engine's max_model_len: what was asked for, or prompt and completion as far as the model's context goes.

    Raises:
        ValueError: the longest prompt leaves no room for an answer.
    """
    from transformers import AutoConfig

    needed = longest_prompt + (recipe.sampling.max_completion_length or 0)
    name, source = recipe.model.model_name_or_path, {"trust_remote_code": recipe.model.trust_remote_code}
    if (Path(name) / ADAPTER_FILE).is_file():
        name = json.loads((Path(name) / ADAPTER_FILE).read_text())["base_model_name_or_path"]
    config = AutoConfig.from_pretrained(name, revision=recipe.model.revision, **source)
    length = recipe.engine.max_model_len or min(needed, getattr(config, "max_position_embeddings", needed))
    if longest_prompt >= length:
        raise ValueError(
            f"the longest prompt has {longest_prompt} tokens, the context {length}: there is no room for an answer. "
            "Raise engine.max_model_len as far as the model allows, or leave out the task or protocol few-shot."
        )
    return length


def build_engine(recipe: EvalRecipe, *, max_model_len: int, device: "torch.device") -> Engine:
    """The engine that `engine.name` says, with the model loaded."""
    settings, model = recipe.engine, recipe.model
    if settings.name == "server":
        from rollout.engines.server import ServerEngine

        return ServerEngine(
            base_of(model),
            base_url=settings.base_url,
            max_num_seqs=settings.max_num_seqs,
            max_model_len=max_model_len,
            trust_remote_code=model.trust_remote_code,
        )
    dtype = _dtype(model, device.type == "cpu")
    source: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    with whole_model(model) as path:
        if path != model.model_name_or_path:
            source["revision"] = None  # that of the adapter says nothing about the merged folder
        if settings.name == "hf":
            from rollout.engines.hf import HFEngine

            return HFEngine(
                path,
                dtype=dtype,
                device=device,
                max_num_seqs=settings.max_num_seqs,
                max_model_len=max_model_len,
                **source,
            )
        from rollout.engines.vllm import VLLMEngine

        return VLLMEngine(
            path,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            vllm_options=source | settings.vllm_options,
        )


def _dtype(model: EvalModelConfig, is_cpu: bool) -> str:
    """float32 on CPU, where only it is exact; on a GPU what the checkpoint is stored in."""
    if model.dtype != "auto":
        return model.dtype
    if is_cpu:
        return "float32"
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        base_of(model), revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    return str(config.dtype or "bfloat16").removeprefix("torch.")
