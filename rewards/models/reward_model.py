"""A trained reward model: a sequence classifier with one output.

Every scoring process loads its own copy; for a recipe these are the reward workers of each training process, on that
process's GPU. Plan for its memory beside the policy and the engine, or set `device: cpu`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rewards.models.reward_input import KEY, RewardInput
from rewards.runner.load import checked_by
from rewards.text import Text, completion_text
from rollout.support.weights import REPORTING, whole


def _check(columns: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    name, revision = options["model_name_or_path"], options.get("revision")
    _input(name, revision, options.get("summary_only"), options.get("max_length"))
    return None


@checked_by(_check)
def reward_model(
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    model_name_or_path: str,
    revision: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    batch_size: int = 16,
    max_length: int | None = None,
    summary_only: bool | None = None,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """The first logit of a transformers sequence classifier: any real number.

    A model of stage `reward_model` reads what it was trained on. For others the input is built as in TRL's GRPOTrainer:
    prompt and completion go through the model's chat template if prompts are messages, and are concatenated otherwise.

    device: "cuda:1", "cpu"; "auto": the GPU of this training process (LOCAL_RANK), or the CPU without GPUs.
    max_length: tokens, after which the input is truncated; None: as trained, else the tokenizer's limit.
    summary_only: show the model only the text after the last `</think>`, or nothing if thinking is never closed (R1's
        helpfulness reward, 2501.12948 section 2.3.4); None: as trained, else false.
    """
    scorer = _load(model_name_or_path, revision, dtype, device)
    shown = _input(model_name_or_path, revision, summary_only, max_length)
    texts = [completion_text(completion, completion_prefix) for completion in completions]
    rows = shown.token_ids(scorer.tokenizer, prompts, texts)
    return [value for start in range(0, len(rows), batch_size) for value in scorer(rows[start:][:batch_size])]


class _Scorer:
    """A model and its tokenizer: maps rows of tokens to the first logit of each."""

    def __init__(self, name: str, revision: str | None, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = torch.device(_device(torch.cuda.device_count()) if device == "auto" else device)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        read: Any = AutoModelForSequenceClassification.from_pretrained
        loaded = read(name, revision=revision, dtype=dtype, **REPORTING)
        model = loaded[0]
        if model.config.num_labels != 1:
            raise ValueError(
                f"model_name_or_path={name!r} has {model.config.num_labels} labels, but a reward model has one output. "
                "Choose a model trained as a reward model."
            )
        whole(loaded, name)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id  # the model uses it to find the last token
        self.model = model.to(self.device).eval()

    def __call__(self, rows: Sequence[list[int]]) -> list[float]:
        import torch

        inputs = self.tokenizer.pad(
            {"input_ids": list(rows)}, return_tensors="pt", padding=True, padding_side="right"
        ).to(self.device)
        with torch.inference_mode():
            return self.model(**inputs).logits[:, 0].float().tolist()


@lru_cache(maxsize=16)
def _input(name: str, revision: str | None, summary_only: bool | None, max_length: int | None) -> RewardInput:
    """What the model reads; an option may only set what its training has left open."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(" :.") if Path(name).is_dir() else "no such folder or Hub model"
        raise ValueError(
            f"reward 'reward_model': model_name_or_path={name!r}: {reason}. Name a Hugging Face folder, or a Hub model "
            "that this machine has or can reach."
        ) from error
    trained = RewardInput.of(config)
    given = {"summary_only": summary_only, "max_length": max_length}
    for option, value in given.items():
        if hasattr(config, KEY) and value not in (None, getattr(trained, option)):
            raise ValueError(
                f"reward 'reward_model' has {option}={value}, but {name!r} was trained with "
                f"{option}={getattr(trained, option)}. Remove the option."
            )
    return replace(trained, **{option: value for option, value in given.items() if value is not None})


def _device(num_gpus: int) -> str:
    """This process's device. A process that sees one GPU uses it, whatever its rank."""
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % num_gpus}" if num_gpus else "cpu"


@lru_cache(maxsize=2)
def _load(name: str, revision: str | None, dtype: str, device: str) -> _Scorer:
    return _Scorer(name, revision, dtype, device)
