"""Where the answer stands in a completion. Total functions, linear in the text: any string in, text or None out."""

from rollout.types import Message

Text = str | list[Message]


def completion_text(completion: Text) -> str:
    """The text of a completion in either of TRL's forms: a string, or [{"role": "assistant", "content": "…"}]."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def after_thinking(completion: str) -> str | None:
    """What follows the last `</think>`; None while thinking is still open, because a cut-off thought is no answer."""
    rest = completion[completion.rfind("</think>") + len("</think>") :] if "</think>" in completion else completion
    return None if "<think>" in rest else rest


def answer_text(completion: str) -> str | None:
    """The stripped text of the last `<answer>…</answer>` outside of thinking.

    None when there is none, also when the last `<answer>` is never closed: an earlier one does not stand in for it.
    """
    rest = after_thinking(completion)
    if rest is None or "<answer>" not in rest:
        return None
    answer, closed, _ = rest[rest.rfind("<answer>") + len("<answer>") :].partition("</answer>")
    return answer.strip() if closed else None
