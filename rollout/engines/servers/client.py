"""One vLLM server that trains, over HTTP. docs/engines.md says how to start one."""

import asyncio
import contextlib
import time
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from rollout.engines.servers.settings import ServerSettings
from rollout.support.http import RETRIED_STATUSES, RequestFailedError, ask_json


class ServerLostError(Exception):
    """A server does not answer, or samples with the wrong weights: its work goes to the others."""


class Server:
    """A server and the work it has.

    Args:
        takes_adapters: it is sent adapters, each under the label as its name, instead of weights.

    Attributes:
        lost: why it is left out; empty if it is not.
        sequences: completions that this process waits for.
        tokens: upper bound of the tokens in them.
        tasks: the requests, cancelled when the server is left out.
        pace: seconds per token of a completion, lately; 0: nothing has been measured.
    """

    def __init__(
        self, url: str, client: httpx.AsyncClient, settings: ServerSettings, *, takes_adapters: bool = False
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.lost = ""
        self.sequences = self.tokens = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.pace = 0.0
        self._client, self._settings, self._takes_adapters = client, settings, takes_adapters

    async def generate(self, body: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The choices of one request to the token-in, token-out API."""
        started = time.monotonic()
        # A server that does not know the adapter has been started again since it was sent.
        lost = RETRIED_STATUSES | {404} if self._takes_adapters else RETRIED_STATUSES
        reply = await self._ask("POST", "/inference/v1/generate", body, self._settings.request_timeout, lost=lost)
        longest = max((len(choice["token_ids"]) for choice in reply["choices"]), default=0)
        self.measured((time.monotonic() - started) / max(longest, 1))
        return reply["choices"]

    def measured(self, pace: float) -> None:
        """Take the pace of one request into account."""
        self.pace = (self.pace + pace) / 2 if self.pace else pace

    async def check_health(self, timeout: float | None = None) -> None:
        """Raise ServerLostError unless the server lives."""
        await self._ask("GET", "/health", None, timeout or self._settings.health_timeout)

    async def weight_version(self) -> str:
        """The label of the weights it samples with."""
        return (await self._ask("GET", "/weight_info", None, self._settings.health_timeout))["weight_version"]

    async def samples_with(self, label: str) -> bool:
        """Whether it has these weights ("": any) and samples; an update that broke off may have left it frozen."""
        if self._takes_adapters:
            return not label or label in await self._names()
        if label and await self.weight_version() != label:
            return False
        if (await self._ask("GET", "/is_paused", None, self._settings.health_timeout))["is_paused"]:
            await self.resume(label)
        return True

    async def max_model_len(self) -> int:
        """The context length that it was started with, in tokens."""
        return (await self._models())[0]["max_model_len"]  # of all names it serves the one model under

    async def _models(self) -> list[dict[str, Any]]:
        """The model and the adapters that it serves."""
        return (await self._ask("GET", "/v1/models", None, self._settings.health_timeout))["data"]

    async def _names(self) -> set[str]:
        return {model["id"] for model in await self._models()}

    async def world_size(self) -> int:
        """Processes that hold the model."""
        return (await self._ask("GET", "/get_world_size", None, self._settings.health_timeout))["world_size"]

    async def update(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        """One request of the weight-transfer API, or one that brings an adapter."""
        await self._ask("POST", path, body, self._settings.update_timeout, replies=False)

    async def load(self, files: Sequence[tuple[Path, int]], label: str) -> None:
        """Take weights from files, given with their checksums, and say that they are there."""
        await self.pause()
        await self.update("/init_weight_transfer_engine", {"init_info": {}})
        await self._start_update()
        for path, crc32 in files:
            await self.update("/update_weights", {"update_info": {"path": str(path), "crc32": crc32}})
        await self.update("/finish_weight_update", {"weight_version": label})
        await self.resume(label)

    async def load_adapter(self, folder: Path, label: str, outdated: Sequence[str]) -> None:
        """Take an adapter from a folder, under its label, and forget the outdated ones."""
        served = await self._names()
        if label not in served:  # it has it already if this is a second attempt
            await self.update("/v1/load_lora_adapter", {"lora_name": label, "lora_path": str(folder)})
        for name in served.intersection(outdated):
            await self.update("/v1/unload_lora_adapter", {"lora_name": name})
        if label not in await self._names():
            raise ServerLostError(f"{self.url} does not serve the adapter {label!r} that it was sent")

    async def _start_update(self) -> None:
        try:
            await self.update("/start_weight_update")
        except ServerLostError:
            # An earlier update, maybe of another trainer, broke off and is still open. One that fails ends it.
            with contextlib.suppress(ServerLostError, ValueError):
                await self.update("/update_weights", {"update_info": {"path": "", "crc32": 0}})
            await self.update("/start_weight_update")

    async def pause(self) -> None:
        """Freeze the requests it has; they continue on `resume`."""
        await self.update("/pause?mode=keep")

    async def resume(self, label: str) -> None:
        """Sample with the new weights. Cached keys and values of the old ones are forgotten, running requests' too.

        Raises:
            ServerLostError: the server has other weights than `label`.
        """
        await self.update("/reset_prefix_cache?reset_running_requests=true")
        await self.update("/resume")
        if label and (found := await self.weight_version()) != label:
            raise ServerLostError(f"{self.url} has weights {found!r} after the update to {label!r}")

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout: float,
        *,
        lost: Container[int] = RETRIED_STATUSES,
        replies: bool = True,
    ) -> Any:
        """lost: statuses with which the server gives no answer now, but may later."""
        try:
            return await ask_json(self._client, method, self.url + path, body=body, timeout=timeout, replies=replies)
        except RequestFailedError as error:
            if error.status is None or error.status in lost:
                raise ServerLostError(str(error)) from error
            raise ValueError(f"{error}. {_remedy(path, error.status)}") from error


def _remedy(path: str, status: int) -> str:
    if status == 401:
        return "Name the environment variable with the servers' key in rollout.servers.api_key_env."
    if path == "/v1/load_lora_adapter":
        return (
            "For rollout.adapters=send, start the server with room for adapters: grpo serve MODEL --for-training "
            "--enable-lora --max-lora-rank 16."
        )
    if status in (403, 404, 405):
        return "Start the server for training: grpo serve MODEL --for-training."
    return "The server does not understand this trainer: use the vLLM version that docs/engines.md names."
