"""From an evaluation's recipe to its engine; the model may be a checkpoint or a LoRA adapter."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from grpo.evaluation.config import EvalModelConfig, EvalRecipe
from rollout.engines import base as engines
from rollout.engines.base import Engine
from rollout.engines.build import build_engine
from rollout.types import Completion, Group, Prompt, Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ADAPTER_FILE = "adapter_config.json"


class ReferenceEngine:
    """Returns each problem's reference completion: whatever is graded wrong is a fault of the data or the grader."""

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

    def close(self) -> None:
        pass


def base_of(model: EvalModelConfig) -> tuple[str, str | None]:
    """Where the configuration is, and its revision: the model, or the base that an adapter names."""
    adapter = Path(model.model_name_or_path) / ADAPTER_FILE
    if not adapter.is_file():
        return model.model_name_or_path, model.revision
    values = json.loads(adapter.read_text(encoding="utf-8"))
    return values["base_model_name_or_path"], values.get("revision")


def tokenizer_of(model: EvalModelConfig) -> tuple[str, str | None]:
    """Where the tokenizer is, and its revision: an adapter's folder may have one of its own."""
    if (Path(model.model_name_or_path) / "tokenizer_config.json").is_file():
        return model.model_name_or_path, model.revision
    return base_of(model)


def load_tokenizer(model: EvalModelConfig) -> "PreTrainedTokenizerBase":
    """The model's tokenizer; loaded first, so a wrong model path raises its ValueError here."""
    if newest := engines.newest_inside(model.model_name_or_path):
        raise ValueError(
            f"model={model.model_name_or_path!r}: is the folder of a run. Name a checkpoint in it, such as {newest}."
        )
    name, revision = tokenizer_of(model)
    try:
        return engines.load_tokenizer(name, revision, model.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model={model.model_name_or_path!r}: no tokenizer in {name!r} ({error}). Give a Hugging Face "
            "folder or Hub name, a training checkpoint, or a LoRA adapter's folder."
        ) from error


def fingerprint(model: EvalModelConfig) -> str | None:
    """A hash that detects changed weights under the same path; None if the model is not a local folder.

    Covers the name, size and last megabyte of each weight file: reading a large model whole takes minutes.
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
def whole_model(model: EvalModelConfig) -> Iterator[tuple[str, str | None]]:
    """The model's folder or Hub name, and its revision; an adapter is merged into its base, in a temporary folder."""
    adapter = Path(model.model_name_or_path)
    if not (adapter / ADAPTER_FILE).is_file():
        yield model.model_name_or_path, model.revision
        return
    from grpo.model.merge import merge_adapter

    with TemporaryDirectory(prefix="merged-") as folder:
        merge_adapter(adapter, Path(folder), trust_remote_code=model.trust_remote_code)
        load_tokenizer(model).save_pretrained(folder)
        yield folder, None


def merge(adapter: Path, out: Path) -> None:
    """`grpo merge`: write an adapter's folder as a whole model with its tokenizer.

    Raises:
        ValueError: it is not an adapter, or `out` is in use.
    """
    if not (adapter / ADAPTER_FILE).is_file():
        raise ValueError(f"{adapter} contains no {ADAPTER_FILE}. Name an adapter's folder.")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Name another folder.")
    from grpo.model.merge import merge_adapter

    tokenizer = load_tokenizer(EvalModelConfig(model_name_or_path=str(adapter)))
    merge_adapter(adapter, out)
    tokenizer.save_pretrained(out)


def context_length(recipe: EvalRecipe, longest_prompt: int) -> int:
    """The engine's max_model_len in tokens: as configured, else prompt plus completion, capped by the model's context.

    Raises:
        ValueError: the longest prompt leaves no room for a completion.
    """
    needed = longest_prompt + (recipe.sampling.max_completion_length or 0)
    config = _load_config(recipe.model)
    length = recipe.engine.max_model_len or min(needed, getattr(config, "max_position_embeddings", needed))
    if longest_prompt >= length:
        raise ValueError(
            f"the longest prompt has {longest_prompt} tokens and the context {length}: no room for a completion. "
            "Raise engine.max_model_len if the model allows it, drop the task, or avoid protocol few-shot."
        )
    return length


def load_engine(recipe: EvalRecipe, *, max_model_len: int, device: "torch.device") -> Engine:
    """The engine named by `engine.name`, with the model loaded."""
    settings, model = recipe.engine, recipe.model
    # A server has loaded the model itself; only the tokenizer is read here.
    place = nullcontext(tokenizer_of(model)) if settings.name == "server" else whole_model(model)
    with place as (path, revision):
        return build_engine(
            settings.name,
            path,
            dtype=_dtype(model, device.type == "cpu"),
            device=device,
            max_model_len=max_model_len,
            max_num_seqs=settings.max_num_seqs,
            kv_cache_gib=settings.kv_cache_gib,
            gpu_memory_utilization=settings.gpu_memory_utilization,
            vllm_options=settings.vllm_options,
            base_url=settings.base_url,
            revision=revision,
            trust_remote_code=model.trust_remote_code,
        )


def _dtype(model: EvalModelConfig, is_cpu: bool) -> str:
    """As configured; "auto" is float32 on CPU, for exact results, and the checkpoint's dtype on a GPU.

    There a checkpoint in float32 runs in bfloat16, as with vLLM's own "auto": trained weights are float32 whatever
    precision the run sampled in, and would take twice the memory, without flash attention.
    """
    if model.dtype != "auto":
        return model.dtype
    if is_cpu:
        return "float32"
    stored = str(_load_config(model).dtype or "bfloat16").removeprefix("torch.")
    return "bfloat16" if stored == "float32" else stored


def _load_config(model: EvalModelConfig) -> "PretrainedConfig":
    from transformers import AutoConfig

    name, revision = base_of(model)
    return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=model.trust_remote_code)
