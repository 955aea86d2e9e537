"""A trained reward model: a sequence classifier with one output.

Every scoring process loads its own copy; for a recipe these are the reward workers of each training process, on that
process's GPU. Plan for its memory beside the policy and the engine, or set `device: cpu`.
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from rewards.text import Text, after_thinking, completion_text


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
    summary_only: bool = False,
    completion_prefix: str = "",
    **kwargs: Any,
) -> list[float | None]:
    """The first logit of a transformers sequence classifier: any real number.

    The input is built as in TRL's trainer: prompt and completion go through the model's chat template if prompts are
    messages, and are concatenated otherwise.

    device: "cuda:1", "cpu"; "auto": the GPU of this training process (LOCAL_RANK), or the CPU without GPUs.
    max_length: tokens, after which the input is truncated; None: the tokenizer's limit.
    summary_only: show the model only the text after the last `</think>`, or nothing if thinking is never closed (R1's
        helpfulness reward, 2501.12948 section 2.3.4).
    """
    scorer = _load(model_name_or_path, revision, dtype, device)
    texts = [
        scorer.text(prompt, (after_thinking(text) or "").strip() if summary_only else text)
        for prompt, text in zip(prompts, (completion_text(c, completion_prefix) for c in completions), strict=True)
    ]
    return [
        value for start in range(0, len(texts), batch_size) for value in scorer(texts[start:][:batch_size], max_length)
    ]


class _Scorer:
    """A model and its tokenizer: maps texts to the first logit of each."""

    def __init__(self, name: str, revision: str | None, dtype: str, device: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.device = torch.device(_device(torch.cuda.device_count()) if device == "auto" else device)
        self.tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision, dtype=dtype)
        if model.config.num_labels != 1:
            raise ValueError(
                f"model_name_or_path={name!r} has {model.config.num_labels} labels, but a reward model has one output. "
                "Choose a model trained as a reward model."
            )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model.config.pad_token_id = self.tokenizer.pad_token_id  # the model uses it to find the last token
        self.model = model.to(self.device).eval()

    def text(self, prompt: Text, completion: str) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        answer = {"role": "assistant", "content": completion}
        return self.tokenizer.apply_chat_template([*prompt, answer], tokenize=False)

    def __call__(self, texts: Sequence[str], max_length: int | None) -> list[float]:
        import torch

        inputs = self.tokenizer(
            list(texts),
            return_tensors="pt",
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=max_length,
            add_special_tokens=False,
        ).to(self.device)
        with torch.inference_mode():
            return self.model(**inputs).logits[:, 0].float().tolist()


def _device(num_gpus: int) -> str:
    """This process's device. A process that sees one GPU uses it, whatever its rank."""
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % num_gpus}" if num_gpus else "cpu"


@lru_cache(maxsize=2)
def _load(name: str, revision: str | None, dtype: str, device: str) -> _Scorer:
    return _Scorer(name, revision, dtype, device)
