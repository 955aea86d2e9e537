"""A chat model behind an OpenAI-compatible endpoint, such as vLLM's server.

Left out: streaming, tools, several choices.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import httpx

from rollout.support.http import RequestFailedError, request_json

_OPENAI = "https://api.openai.com/v1"
_CONNECT = 10.0  # seconds
FIRST_WAIT = 1.0  # seconds before the first retry


@dataclass(frozen=True, slots=True)
class ChatReply:
    """ChatReply("<think>\\nWe add …", finish_reason="stop")"""

    text: str  # "" of a model that only thought
    finish_reason: str


class ChatModel:
    """One model of an endpoint. Threads may share it.

    Args:
        base_url: of the endpoint, including /v1; None: OpenAI's.
        api_key_env: the environment variable with the API key; your own server often needs none.
        timeout: seconds to wait for data.
        max_retries: of a request, with growing pauses, after a network error, rate limit or server error.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None,
        *,
        api_key_env: str,
        timeout: float,
        max_retries: int,
        max_connections: int | None = None,
    ) -> None:
        self.model, self.url = model, (base_url or _OPENAI).rstrip("/") + "/chat/completions"
        key = os.environ.get(api_key_env, "").strip()
        self.has_key = bool(key)
        self._timeout = httpx.Timeout(timeout, connect=_CONNECT)
        self._attempts = max_retries + 1
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=max_connections),
        )

    def complete(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        retry_transport_errors: bool = True,
    ) -> ChatReply:
        """The model's answer. Half a surrogate pair, which JSON can hold and a file cannot, becomes a question mark.

        Raises:
            RequestFailedError: no answer, or one that is no chat completion.
        """
        reply = request_json(
            self._client,
            "POST",
            self.url,
            body={
                "model": self.model,
                "messages": messages,
                "max_tokens": max_tokens,
                "temperature": temperature,
            },
            timeout=self._timeout,
            attempts=self._attempts,
            first_wait=FIRST_WAIT,
            retry_transport_errors=retry_transport_errors,
        )
        match reply:
            case {"choices": [{"message": {**message}, **choice}, *_]}:
                text = content if isinstance(content := message.get("content"), str) else ""
                return ChatReply(text.encode(errors="replace").decode(), str(choice.get("finish_reason")))
        raise RequestFailedError(f"{self.url} did not return a chat completion", status=200)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
