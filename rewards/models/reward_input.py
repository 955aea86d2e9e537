"""What a reward model reads: trained and scored on the same tokens.

A reward model's folder says in its config.json, under `reward_input`, how its input was built; models from elsewhere do
not, and get what TRL's GRPOTrainer builds for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewards.text import Text, after_thinking, asked

KEY = "reward_input"  # in config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInput:
    """RewardInput(template="{prompt} :", summary_only=True, max_length=1024, special_tokens=True)"""

    template: str = "{prompt}"  # of prompts that are text; "chat": as a user's message. Messages need none.
    summary_only: bool = False  # only the text after the last </think>; nothing if thinking is never closed
    max_length: int | None = None  # tokens; None: the tokenizer's limit
    special_tokens: bool = (
        False  # text gets the tokenizer's own, such as a BOS, and an EOS; chat templates write theirs
    )

    @classmethod
    def of(cls, config: Any) -> "RewardInput":
        """That of a model, by its configuration."""
        return cls(**getattr(config, KEY, {}))

    def as_config(self) -> Mapping[str, Any]:
        return {KEY: asdict(self)}

    def token_ids(self, tokenizer: Any, prompts: Sequence[Text], completions: Sequence[str]) -> list[list[int]]:
        """One row of tokens per prompt and completion, cut at max_length."""
        plain = [isinstance(prompt, str) and self.template != "chat" for prompt in prompts]
        rows: list[list[int]] = [[] for _ in plain]
        for is_plain in (True, False):
            own = [i for i, kind in enumerate(plain) if kind is is_plain]
            texts = [self.text(tokenizer, prompts[i], completions[i]) for i in own]
            special = is_plain and self.special_tokens
            options = {"add_special_tokens": special, "truncation": True, "max_length": self.max_length}
            for i, ids in zip(own, tokenizer(texts, **options)["input_ids"] if texts else [], strict=True):
                rows[i] = self._ended(ids, tokenizer) if special else ids
        return rows

    def text(self, tokenizer: Any, prompt: Text, completion: str) -> str:
        """Prompt and completion as one text, without the tokenizer's special tokens.

        completion: whole, with what a last message of the assistant in the prompt has begun of it.
        """
        if self.summary_only:
            completion = (after_thinking(completion) or "").strip()
        if isinstance(prompt, str) and self.template != "chat":
            return self.template.replace("{prompt}", prompt) + completion
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else asked(prompt)
        return tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": completion}], tokenize=False)

    def _ended(self, ids: list[int], tokenizer: Any) -> list[int]:
        limit = self.max_length or tokenizer.model_max_length
        return ids if ids[-1:] == [tokenizer.eos_token_id] or len(ids) >= limit else [*ids, tokenizer.eos_token_id]
