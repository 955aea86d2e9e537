"""A server with OpenAI's completions API, such as `vllm serve`: for evaluating a model that runs elsewhere.

Prompts are rendered here and sent as token ids, so that every engine sees the same input. If a server does not return
token ids (vLLM does), they are obtained by retokenizing the text.

Left out: weight updates, log-probs (they are empty), chat endpoints without the model's tokenizer.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import httpx

from rollout.engines.base import (
    completion_budgets,
    completion_texts,
    cut_at_stop,
    end_token_ids,
    load_tokenizer,
    request_seed,
)
from rollout.support.http import RequestFailedError, request_json
from rollout.types import Completion, Group, Prompt, Sampling

ATTEMPTS = 6  # with FIRST_WAIT, a minute of waiting in all: time for a busy server to recover or to restart
FIRST_WAIT = 2.0  # seconds, doubled before each further attempt
TIMEOUT = httpx.Timeout(None, connect=10)  # seconds; a long completion takes as long as it takes


class ServerEngine:
    """`rollout.engines.base.Engine` on a server.

    Args:
        model_path: Hugging Face folder or Hub name of the tokenizer. Also the served model's name, unless the server
            has only one model.
        base_url: URL including /v1.
        max_num_seqs: concurrent requests.
        max_model_len: context length in tokens, prompt and completion together.

    Raises:
        ValueError: the server does not answer, or it serves several models and none has this name.
    """

    def __init__(
        self,
        model_path: str,
        *,
        base_url: str,
        max_num_seqs: int,
        max_model_len: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._url = base_url.rstrip("/")
        self._tokenizer = load_tokenizer(model_path, revision, trust_remote_code)
        self._end_ids = end_token_ids(model_path, self._tokenizer, revision)
        limits = httpx.Limits(max_connections=max_num_seqs, max_keepalive_connections=max_num_seqs)
        self._client = httpx.Client(limits=limits)
        self._threads = ThreadPoolExecutor(max_num_seqs, thread_name_prefix="server")
        self._max_model_len = max_model_len
        self._model = self._served_model(model_path)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield each prompt's Group as soon as its last completion has arrived. See `Engine.generate`."""
        budgets = completion_budgets(prompts, sampling, self._max_model_len)
        return self._stream(prompts, budgets, sampling)

    def _stream(self, prompts: Sequence[Prompt], budgets: Sequence[int], sampling: Sampling) -> Iterator[Group]:
        futures = [
            self._threads.submit(self._complete, prompt, budget, sampling)
            for prompt, budget in zip(prompts, budgets, strict=True)
        ]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _complete(self, prompt: Prompt, budget: int, sampling: Sampling) -> Group:
        completions: list[Completion] = []
        # Greedy completions are identical: request one and repeat it.
        count = sampling.num_generations if sampling.temperature > 0 else 1
        body: dict[str, Any] = {
            "model": self._model,
            "prompt": list(prompt.token_ids),
            "n": count,
            "max_tokens": budget,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": request_seed(sampling, prompt),
            "stop": list(sampling.stop) or None,
            **self._extensions(sampling),
        }
        for choice in self._request("POST", "/completions", body)["choices"]:
            text, ids = choice["text"], choice.get("token_ids")
            if ids is None:
                ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            else:
                text = completion_texts(self._tokenizer, self._end_ids, [ids])[0]
                if choice["finish_reason"] == "length" and len(ids) < budget:
                    raise ValueError(
                        f"{self._url} ended a completion after {len(ids)} tokens, and {budget} were asked for: the "
                        "max_new_tokens of the model's generation_config.json. Start vllm serve with "
                        "--generation-config vllm."
                    )
            completions.append(
                Completion(
                    token_ids=ids,
                    logprobs=[],
                    text=cut_at_stop(text, sampling.stop),
                    finish_reason="length" if choice["finish_reason"] == "length" else "stop",
                    policy_version=0,
                )
            )
        completions *= sampling.num_generations // count
        return prompt.group(completions)

    def _extensions(self, sampling: Sampling) -> dict[str, Any]:
        """Extensions of the API. Servers other than vLLM get only what is needed: some reject unknown fields."""
        if not self._is_vllm:
            return {name: value for name in ("top_k", "min_p") if (value := getattr(sampling, name))}
        # What is not said, vllm serve takes from the model's generation_config.json.
        limits = {"top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": 1.0}
        return {**limits, "return_token_ids": True, "skip_special_tokens": False}

    def close(self) -> None:
        """Close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _served_model(self, name: str) -> str:
        models = self._request("GET", "/models")["data"]
        self._is_vllm = any(model.get("owned_by") == "vllm" for model in models)
        served = [model["id"] for model in models]
        if name not in served and len(served) != 1:
            raise ValueError(f"{self._url} serves {', '.join(served)}, not {name!r}. Name one of them as the model.")
        model = models[served.index(name)] if name in served else models[0]
        context = model.get("max_model_len") or self._max_model_len  # an adapter has none of its own
        if context < self._max_model_len:
            raise ValueError(
                f"{self._url} was started with a context of {context} tokens, and prompt and completion may have "
                f"{self._max_model_len} here. Start it with --max-model-len {self._max_model_len}, or allow shorter "
                "completions."
            )
        return model["id"]

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            return request_json(
                self._client,
                method,
                self._url + path,
                body=body,
                timeout=TIMEOUT,
                attempts=ATTEMPTS,
                first_wait=FIRST_WAIT,
                # If the first request (GET) finds no server, the address is more likely wrong than the server busy.
                retry_transport_errors=body is not None,
            )
        except RequestFailedError as error:
            raise ValueError(f"{error}. Check that the server is up and engine.base_url is right.") from error
