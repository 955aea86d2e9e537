"""From a problem to the engine's input: apply the template, then tokenize.

A template is "r1_zero" (the paper's, for base models), "chat" (the tokenizer's own chat template), or any string with
`{prompt}` in it. Prompts are never truncated: those over the length limit are dropped, and the stream counts them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rollout.data.columns import UnusableRowError
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

_OPEN_THINK = re.compile(r"<think>\s*\Z")
# Arguments of apply_chat_template that are set here.
_RESERVED = ("add_generation_prompt", "continue_final_message", "conversation", "tokenize", "tools")


class Prompter:
    """Applies one template with one tokenizer.

    Args:
        template: "r1_zero", "chat" or a string with `{prompt}`.
        max_prompt_length: in tokens, BOS included.
        system_prompt: for "chat" only; a problem with its own system message keeps it.
        chat_template_kwargs: variables of the chat template, such as {"enable_thinking": False}. "chat" also shows the
            model a problem's column `tools`.

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
        chat_template_kwargs: Mapping[str, Any] | None = None,
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
        self._kwargs = dict(chat_template_kwargs or {})
        self._check_kwargs()
        if system_prompt is not None:
            self._check_system_role(system_prompt)

    def encode(self, problem: Problem) -> Prompt | UnusableRowError:
        """The problem's prompt, or why it has none: it cannot be rendered or is longer than max_prompt_length."""
        return self.encode_batch([problem])[0]

    def encode_batch(self, problems: Sequence[Problem]) -> list[Prompt | UnusableRowError]:
        """As `encode`, for many at once: fast tokenizers work on them in parallel."""
        rendered = [self._rendered(problem) for problem in problems]
        texts = [text for text in rendered if isinstance(text, str)]
        encoded = iter(self._tokenize(texts) if texts else [])
        return [
            text if isinstance(text, UnusableRowError) else self._prompt(problem, text, next(encoded))
            for problem, text in zip(problems, rendered, strict=True)
        ]

    def render(self, problem: Problem) -> str:
        """The text that is tokenized.

        Raises:
            UnusableRowError: the template cannot render this problem.
        """
        if not self.is_chat:
            if not isinstance(problem.prompt, str):
                raise UnusableRowError(
                    "malformed",
                    f"{problem.id}: the prompt is a list of messages, which only template 'chat' can render.",
                )
            if problem.columns.get("tools"):
                raise UnusableRowError(
                    "malformed",
                    f"{problem.id}: only template 'chat' shows the column `tools` to the model. Use that template, or "
                    "rename the column if it means something else: columns: {my_tools: tools}.",
                )
            # Not str.format: questions and templates hold LaTeX braces.
            return self.template.replace("{prompt}", problem.prompt)
        messages = self._messages(problem)
        # A trailing assistant message is the start of the answer, as in TRL.
        prefilled = messages[-1]["role"] == "assistant"
        return self._apply(problem.id, messages, self._tools(problem), prefilled)

    def _apply(self, problem_id: str, messages: list[Message], tools: list[Any] | None, prefilled: bool) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                tokenize=False,
                add_generation_prompt=not prefilled,
                continue_final_message=prefilled,
                **self._kwargs,
            )
        except (TemplateError, TypeError, ValueError) as error:  # a template fails in its own ways on rows it rejects
            raise UnusableRowError(
                "malformed", f"{problem_id}: the chat template cannot render it: {error}. Fix or remove this row."
            ) from error
        assert isinstance(text, str)
        return text

    def _rendered(self, problem: Problem) -> str | UnusableRowError:
        try:
            return self.render(problem)
        except UnusableRowError as error:
            return error

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        special = not self.is_chat
        batch = self.tokenizer(texts, add_special_tokens=special, return_attention_mask=False, verbose=False)
        return batch["input_ids"]  # type: ignore[return-value]

    def _prompt(self, problem: Problem, text: str, ids: list[int]) -> Prompt | UnusableRowError:
        if not ids:
            return UnusableRowError("empty", f"{problem.id}: the prompt is empty. Remove this row.")
        ids = self._checked(text, ids)
        if len(ids) > self.max_prompt_length:
            return UnusableRowError(
                "too long",
                f"{problem.id}: the prompt has {len(ids)} tokens, over max_prompt_length={self.max_prompt_length}.",
            )
        return Prompt(problem=problem, token_ids=ids, prefix=self._prefix(problem, text))

    def _prefix(self, problem: Problem, text: str) -> str:
        """The end of the prompt that belongs to the completion: the answer a problem begins, or an open <think>."""
        if isinstance(problem.prompt, list) and problem.prompt[-1]["role"] == "assistant":
            return problem.prompt[-1]["content"]
        found = _OPEN_THINK.search(text, max(0, len(text) - 100))
        return found.group() if found else ""

    def _tools(self, problem: Problem) -> list[Any] | None:
        tools = problem.columns.get("tools")
        if isinstance(tools, str) and tools:
            try:
                tools = json.loads(tools)
            except json.JSONDecodeError as error:
                raise UnusableRowError(
                    "malformed",
                    f"{problem.id}: column `tools` is {tools[:80]!r}, not the JSON of a list of tools ({error}). "
                    "Correct it, or rename the column if it means something else: columns: {my_tools: tools}.",
                ) from error
        if not tools:
            return None
        if "tools" not in self.tokenizer.get_chat_template(tools=tools):
            raise UnusableRowError(
                "malformed",
                f"{problem.id}: column `tools` is set, but the tokenizer's chat template ignores tools. Use another "
                "chat template, or rename the column if it means something else: columns: {my_tools: tools}.",
            )
        return _without_nulls(tools)

    def _check_kwargs(self) -> None:
        if self._kwargs and not self.is_chat:
            raise ValueError(f"chat_template_kwargs={self._kwargs}: only template 'chat' uses them. Remove them.")
        for name in self._kwargs:
            if name in _RESERVED or not re.search(rf"\b{re.escape(name)}\b", self.tokenizer.get_chat_template()):
                why = (
                    "is set by the prompter" if name in _RESERVED else "does not occur in the tokenizer's chat template"
                )
                raise ValueError(f"chat_template_kwargs={self._kwargs}: {name!r} {why}. Remove or correct it.")

    def _check_system_role(self, system_prompt: str) -> None:
        messages = [{"role": "system", "content": system_prompt}, {"role": "user", "content": "question"}]
        try:
            reason = "" if system_prompt.strip() in self._apply("", messages, None, False) else "it drops the message"
        except UnusableRowError as error:
            reason = str(error.__cause__)
        if reason:
            raise ValueError(
                f"system_prompt={system_prompt[:80]!r}: the tokenizer's chat template has no system role ({reason}). "
                "Remove system_prompt and put the instruction into the questions, or use another chat template."
            )

    def _messages(self, problem: Problem) -> list[Message]:
        messages = [{"role": "user", "content": problem.prompt}] if isinstance(problem.prompt, str) else problem.prompt
        if self.system_prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": self.system_prompt}, *messages]

    def _checked(self, text: str, ids: list[int]) -> list[int]:
        tokenizer = self.tokenizer
        bos = tokenizer.bos_token_id
        if not self.is_chat and bos is not None and ids[:2] == [bos, bos]:
            return ids[1:]
        if not self.is_chat and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
            raise ValueError(
                "the tokenizer ends every text with EOS, so the model would have to continue a finished text. "
                "Set `add_eos_token` to false in its tokenizer_config.json."
            )
        return ids


def _without_nulls(value: Any) -> Any:
    """Without the None that Arrow puts into every key that only some of the tools have."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
