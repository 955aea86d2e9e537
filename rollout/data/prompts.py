"""From a problem to the engine's input: apply the template, then tokenize.

A template is "r1_zero" (the paper's, for base models), "chat" (the tokenizer's own chat template), or any string with
`{prompt}` in it. Prompts are never truncated: those over the length limit are dropped, and the stream counts them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollout.types import Message, Problem, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Nature 645:633 (2025), section "DeepSeek-R1-Zero", word for word; "prompt" there stands for the question.
R1_ZERO = (
    "A conversation between User and Assistant. The User asks a question and the Assistant solves it. The Assistant "
    "first thinks about the reasoning process in the mind and then provides the User with the answer. The reasoning "
    "process and answer are enclosed within <think>...</think> and <answer>...</answer> tags, respectively, that is, "
    "<think> reasoning process here </think><answer> answer here </answer>. User: {prompt}. Assistant:"
)


class Prompter:
    """Applies one template with one tokenizer.

    Args:
        template: "r1_zero", "chat" or a string with `{prompt}`.
        system_prompt: for "chat" only; a problem with its own system message keeps it.
        max_prompt_length: in tokens, BOS included.

    Plain templates use the tokenizer's default special tokens, so the prompt starts with a BOS exactly if the model was
    trained with one; a BOS in the template is not doubled. Chat templates write their own special tokens.

    Raises:
        ValueError: the tokenizer and the template are incompatible.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: str,
        system_prompt: str | None = None,
        max_prompt_length: int,
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the tokenizer has no EOS token, so completions could not end. "
                "Set `eos_token` in its tokenizer_config.json to the token that ends a text."
            )
        self.is_chat = template == "chat"
        if self.is_chat and tokenizer.chat_template is None:
            raise ValueError(
                "template 'chat': the tokenizer has no chat template. Put a chat_template.jinja beside it, "
                "or use template 'r1_zero' or a string with {prompt}."
            )
        if not self.is_chat and system_prompt is not None:
            raise ValueError(
                f"system_prompt only works with template 'chat'. Write it into the template instead, here {template!r}."
            )
        self.template = R1_ZERO if template == "r1_zero" else template
        if not self.is_chat and "{prompt}" not in self.template:
            raise ValueError(
                f"template {template!r} is neither 'r1_zero' nor 'chat', and has no {{prompt}} where the question goes."
            )
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.max_prompt_length = max_prompt_length

    def encode(self, problem: Problem) -> Prompt | None:
        """The problem's prompt, or None if it exceeds max_prompt_length."""
        return self.encode_batch([problem])[0]

    def encode_batch(self, problems: Sequence[Problem]) -> list[Prompt | None]:
        """Like `encode`, for many problems at once: fast tokenizers process them in parallel."""
        texts = [self.render(problem) for problem in problems]
        batch = self.tokenizer(texts, add_special_tokens=not self.is_chat, return_attention_mask=False, verbose=False)
        prompts: list[Prompt | None] = []
        for problem, text, ids in zip(problems, texts, batch["input_ids"], strict=True):
            ids = self._checked(problem, text, ids)
            prompts.append(Prompt(problem=problem, token_ids=ids) if len(ids) <= self.max_prompt_length else None)
        return prompts

    def render(self, problem: Problem) -> str:
        """The text to tokenize."""
        if not self.is_chat:
            if not isinstance(problem.prompt, str):
                raise ValueError(
                    f"{problem.id}: the prompt is a list of messages, which only template 'chat' can render."
                )
            # Not str.format: questions and templates hold LaTeX braces.
            return self.template.replace("{prompt}", problem.prompt)
        messages = self._messages(problem)
        # A trailing assistant message is the start of the answer, as in TRL.
        prefilled = messages[-1]["role"] == "assistant"
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not prefilled, continue_final_message=prefilled
        )
        assert isinstance(text, str)
        return text

    def _messages(self, problem: Problem) -> list[Message]:
        messages = [{"role": "user", "content": problem.prompt}] if isinstance(problem.prompt, str) else problem.prompt
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _checked(self, problem: Problem, text: str, ids: list[int]) -> list[int]:
        tokenizer = self.tokenizer
        if not ids:
            raise ValueError(f"{problem.id}: the prompt is empty. Drop this row, or add text to the template.")
        bos = tokenizer.bos_token_id
        if not self.is_chat and bos is not None and ids[:2] == [bos, bos]:
            return ids[1:]
        if not self.is_chat and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
            raise ValueError(
                "the tokenizer ends every text with EOS, so the model would have to continue a finished text. "
                "Set `add_eos_token` to false in its tokenizer_config.json."
            )
        return ids
