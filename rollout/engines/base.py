"""The interfaces of rollout engines, and what all engines share: seeds, end tokens, texts and token budgets."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from rollout.types import Group, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Engine(Protocol):
    """Generates groups of completions."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield one Group per prompt as soon as it is complete, in no particular order.

        A completion ends at an end token, at a stop text, or after min(max_completion_length, max_model_len - prompt
        tokens) tokens, which gives finish_reason "length". The iterator holds the engine until it is exhausted or
        closed. At temperature 0 decoding is greedy and log-probs are those at temperature 1.

        Raises:
            ValueError: a prompt leaves no room for a single token. Raised by the call itself, before generation starts.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory and processes."""
        ...


class Publisher(Protocol):
    """Makes an engine sample from new weights. An engine in the trainer's process is its own publisher."""

    def publish(self, weights: Iterable[tuple[str, "Tensor"]], policy_version: int) -> None:
        """Make the engine sample with these weights from now on.

        Args:
            weights: every weight of the model, under its name in the checkpoint on disk (Hugging Face layout).
            policy_version: recorded in each completion sampled with these weights.
        """
        ...


def request_seed(sampling: Sampling, prompt: Prompt) -> int:
    """A 63-bit seed for one prompt's group, independent of machine, number of processes and prompt order."""
    key = f"{sampling.seed}/{prompt.problem.id}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def end_token_ids(model_path: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids that end a completion: the tokenizer's EOS plus those in the model's generation_config."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(model_path).eos_token_id
    except OSError:  # a model without generation_config.json
        configured = None
    configured = configured if isinstance(configured, list) else [configured]
    ids = sorted({i for i in [tokenizer.eos_token_id, *configured] if i is not None})
    if not ids:
        raise ValueError(
            f"{model_path} has no EOS token, so completions could not end. "
            "Set eos_token in its tokenizer_config.json or eos_token_id in its generation_config.json."
        )
    return ids


def completion_texts(
    tokenizer: "PreTrainedTokenizerBase", end_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[str]:
    """Text of each completion without end tokens, BOS and PAD. Other special tokens stay: <think> may be one."""
    hidden = [tokenizer.bos_token_id, tokenizer.pad_token_id, *end_ids]
    return tokenizer.batch_decode([[i for i in ids if i not in hidden] for ids in completions])


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop text."""
    return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def completion_budgets(prompts: Sequence[Prompt], sampling: Sampling, max_model_len: int) -> list[int]:
    """Token budget of each completion: min(max_completion_length, max_model_len - len(prompt)), at least 1."""
    for prompt in prompts:
        if len(prompt.token_ids) >= max_model_len:
            raise ValueError(
                f"prompt {prompt.problem.id!r} has {len(prompt.token_ids)} tokens, max_model_len is {max_model_len}: "
                "a prompt must leave room for at least one token. "
                "Raise rollout.max_model_len or lower data.max_prompt_length."
            )
    return [min(sampling.max_completion_length, max_model_len - len(prompt.token_ids)) for prompt in prompts]
