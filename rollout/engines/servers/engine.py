"""vLLM servers as an Engine that trains.

A group is one request, so its prompt is computed once, and its seeds are those of the in-process engine: what is
sampled does not depend on the server. A request that fails is sent again whole, so a group is complete or not there,
and none comes twice. The servers say which weights sampled each token; any older than those published when a group was
asked for are refused. An adapter is asked for by its version's name, and a request keeps it to its end.
"""

import asyncio
import queue
import secrets
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import httpx
import torch.distributed

from rollout.engines.adapter import AdapterFormat, with_room_for
from rollout.engines.base import (
    EngineLostError,
    completion_budgets,
    completion_texts,
    cut_at_stop,
    end_token_ids,
    load_tokenizer,
    request_seed,
)
from rollout.engines.servers.client import Server, ServerLostError
from rollout.engines.servers.pool import Pool
from rollout.engines.servers.settings import ServerSettings
from rollout.engines.servers.start import StartedServers
from rollout.engines.servers.transfer import (
    AdapterTransfer,
    FileTransfer,
    NCCLTransfer,
    NoTransfer,
    Transfer,
    make_folder,
    take_all,
)
from rollout.types import Completion, Group, Prompt, Sampling


class ServersEngine:
    """`rollout.engines.base.Engine`, `Streaming` and `Publisher` on vLLM servers.

    Each trainer process samples its own groups on all servers; the main process starts the servers and updates them.

    Args:
        model_path: Hugging Face folder or Hub name; with external servers, only its tokenizer is read.
        max_num_seqs: sequences that one process has on one server at most.
        dtype: precision that weights are sent in, and of servers started here.
        max_model_len, kv_cache_gib, gpu_memory_utilization, vllm_options: of servers started here.
        adapter: `publish` gets the weights of such an adapter, under peft's names, and servers keep their base.

    Raises:
        ValueError: a server cannot be started, does not answer or was not started for training.
    """

    def __init__(
        self,
        model_path: str,
        *,
        servers: ServerSettings,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        kv_cache_gib: float,
        gpu_memory_utilization: float,
        vllm_options: dict[str, Any],
        adapter: AdapterFormat | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(model_path, revision, trust_remote_code)
        self._end_ids = end_token_ids(model_path, self._tokenizer, revision)
        self._max_model_len = max_model_len
        self._adapter, self._published = adapter, 0
        self._newest = (0, "")  # policy version and label of the weights; no label: nothing was published
        together = torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if together else 0
        self._processes = torch.distributed.get_world_size() if together else 1
        self._started: StartedServers | None = None

        def urls() -> Sequence[str]:
            if servers.start:
                on_gpu = {"gpu_memory_utilization": gpu_memory_utilization}
                on_cpu = {"kv_cache_memory_bytes": int(kv_cache_gib * 2**30)}
                options = {
                    "dtype": dtype,
                    "max_model_len": max_model_len,
                    "max_num_seqs": max_num_seqs,
                    **(on_gpu if torch.cuda.is_available() else on_cpu),
                    **with_room_for(adapter, vllm_options),
                }
                self._started = StartedServers(
                    servers.start,
                    model_path,
                    options,
                    timeout=servers.start_timeout,
                    api_key_env=servers.api_key_env,
                    revision=revision,
                    trust_remote_code=trust_remote_code,
                )
            return self._started.urls if self._started else servers.urls

        headers = servers.authorization()
        found, self._run_id = self._on_main(lambda: (urls(), secrets.token_hex(4)))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="servers", daemon=True).start()
        # vLLM closes a connection that is idle for 5 s, or after an error, and a request on its way then is lost.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(headers=headers, limits=limits)
        self._pool = Pool(
            [Server(url, self._client, servers, takes_adapters=adapter is not None) for url in found],
            servers,
            max_num_seqs,
            revive=self._started.revive if self._started else None,
            rank=self._rank,
            processes=self._processes,
        )
        self._run(self._check_servers())
        if servers.weights == "nccl":
            self._transfer: Transfer | NCCLTransfer = NCCLTransfer(self._run, getattr(torch, dtype))
        else:
            folder = self._on_main(lambda: make_folder(servers.weights_dir))
            self._transfer = FileTransfer(folder, getattr(torch, dtype))
            if self._rank:
                self._transfer = NoTransfer()
            elif adapter:
                self._transfer = AdapterTransfer(folder, adapter)
        self._watch: asyncio.Task[None] | None = None  # over the servers, from the first `submit` on

    async def _check_servers(self) -> None:
        """All servers must be there at the start, have been started for training, and have room for a whole sample."""
        for server in self._pool.servers:
            try:
                await server.check_health()
                await server.weight_version()
                context = await server.max_model_len()
            except ServerLostError as error:
                raise ValueError(f"{error}. Check rollout.servers and that the server is up.") from error
            if context < self._max_model_len:  # it would cut completions, and call that their length limit
                raise ValueError(
                    f"{server.url} was started with --max-model-len {context}, and prompt and completion may have "
                    f"{self._max_model_len} tokens together. Start it with at least that, or lower "
                    "rollout.max_completion_length."
                )

    # -- generation

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield each prompt's Group as soon as its last completion ends. See `Engine.generate`.

        Raises:
            EngineLostError: no server is left. Raised by the iterator.
        """
        budgets = completion_budgets(prompts, sampling, self._max_model_len)
        return self._stream(prompts, budgets, sampling)

    def _stream(self, prompts: Sequence[Prompt], budgets: Sequence[int], sampling: Sampling) -> Iterator[Group]:
        finished: queue.SimpleQueue[Group | Future[None]] = queue.SimpleQueue()
        work = asyncio.run_coroutine_threadsafe(self._generate(prompts, budgets, sampling, finished), self._loop)
        work.add_done_callback(finished.put)  # the last item
        try:
            while isinstance(item := finished.get(), Group):
                yield item
            item.result()
        finally:
            work.cancel()  # closes the connections, which ends the requests on the servers

    async def _generate(
        self,
        prompts: Sequence[Prompt],
        budgets: Sequence[int],
        sampling: Sampling,
        finished: "queue.SimpleQueue[Group | Future[None]]",
    ) -> None:
        async def one(prompt: Prompt, budget: int) -> None:
            finished.put(await self._group(prompt, budget, sampling))

        # Longest first, as in the in-process engine.
        pairs = sorted(zip(prompts, budgets, strict=True), key=lambda pair: -len(pair[0].token_ids))
        self._pool.remeasure()
        watch = asyncio.create_task(self._pool.watch())
        groups = [asyncio.create_task(one(prompt, budget)) for prompt, budget in pairs]
        try:
            await asyncio.gather(*groups)
        finally:
            for task in (watch, *groups):
                task.cancel()
            await asyncio.gather(watch, *groups, return_exceptions=True)

    def submit(self, prompt: Prompt, sampling: Sampling) -> Future[Group]:
        """Start generating one prompt's Group; see `Streaming.submit`."""
        (budget,) = completion_budgets([prompt], sampling, self._max_model_len)

        async def watched() -> Group:
            if self._watch is None:
                self._watch = asyncio.create_task(self._pool.watch())
            return await self._group(prompt, budget, sampling)

        return asyncio.run_coroutine_threadsafe(watched(), self._loop)

    async def _group(self, prompt: Prompt, budget: int, sampling: Sampling) -> Group:
        # Greedy completions are identical, and vLLM refuses several: sample once and repeat the result.
        count = sampling.num_generations if sampling.temperature > 0 else 1
        body = {
            "token_ids": list(prompt.token_ids),
            "sampling_params": {
                "n": count,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
                "min_p": sampling.min_p,
                "max_tokens": budget,
                "seed": request_seed(sampling, prompt),
                "stop_token_ids": self._end_ids,
                "stop": list(sampling.stop),
                "logprobs": 0,
                "detokenize": bool(sampling.stop),
                "skip_special_tokens": False,  # a stop text may be one
            },
        }

        async def ask(server: Server) -> list[Completion]:
            oldest, label = self._newest
            choices = await server.generate(body | ({"model": label} if self._adapter and label else {}))
            return self._completions(server, choices, count, sampling, oldest)

        completions = await self._pool.run(count, count * (len(prompt.token_ids) + budget), ask)
        return prompt.group(completions * (sampling.num_generations // count))

    def _completions(
        self, server: Server, choices: Sequence[Mapping[str, Any]], count: int, sampling: Sampling, oldest: int
    ) -> list[Completion]:
        """ServerLostError if the choices are not `count` complete ones, sampled with weights from `oldest` on."""
        reasons = sorted({choice["finish_reason"] for choice in choices} - {"stop", "length"})
        if reasons or len(choices) != count:
            raise ServerLostError(f"{server.url} gave {len(choices)} of {count} completions, {reasons or 'all'} ended")
        choices = sorted(choices, key=lambda choice: choice["index"])
        ids = [choice["token_ids"] for choice in choices]
        return [
            Completion(
                token_ids=choice["token_ids"],
                logprobs=[token["logprob"] for token in choice["logprobs"]["content"]],
                text=cut_at_stop(text, sampling.stop),
                finish_reason=choice["finish_reason"],
                policy_version=self._versions(server, choice, oldest),
            )
            for choice, text in zip(choices, completion_texts(self._tokenizer, self._end_ids, ids), strict=True)
        ]

    def _versions(self, server: Server, choice: Mapping[str, Any], oldest: int) -> int | list[int]:
        """Policy version of the choice's tokens: one, or one each. ServerLostError for weights not from `oldest` on."""
        if self._adapter or not self._newest[1] or not choice["weight_versions"]:
            return oldest  # asked for by name, nothing was published, or there is no token
        found: list[int] = []
        for span in choice["weight_versions"]:
            run, _, version = span["version"].partition("/")
            if run != self._run_id or int(version) < oldest:
                raise ServerLostError(f"{server.url} samples with weights {span['version']!r}, not {self._newest[1]!r}")
            found += [int(version)] * (span["end"] - span["start"])
        return found if len(set(found)) > 1 else (found or [oldest])[0]

    # -- weights

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Send the weights to every server and check that it has them. All trainer processes call it together.

        Raises:
            EngineLostError: no server has taken them, or they could not be written.
        """
        self._published += 1
        # An adapter's name is taken once it was used, and a version may be published again.
        label = f"{self._run_id}/{policy_version}" + (f"/{self._published}" if self._adapter else "")
        # From now on nobody takes back a server with earlier weights: it may be in the middle of taking these.
        self._pool.label = label
        if isinstance(self._transfer, NCCLTransfer):
            self._publish_nccl(self._transfer, weights, label)
        else:
            self._publish_files(self._transfer, weights, label)
        self._newest = policy_version, label
        self._pool.remeasure()

    def _publish_files(self, transfer: Transfer, weights: Iterable[tuple[str, torch.Tensor]], label: str) -> None:
        written: Future[None] = Future()
        try:
            written.set_result(transfer.write(weights, label))
        except EngineLostError as error:  # in the main process, while the others wait for it below
            written.set_exception(error)

        def load() -> dict[str, str]:
            written.result()
            return self._run(self._load(transfer))

        try:
            lost = self._on_main(load)
        finally:
            transfer.clear()
        self._run(self._leave_out(lost))

    async def _load(self, transfer: Transfer) -> dict[str, str]:
        """Have every server take the weights; why those that have not are lost, by URL."""

        async def load(server: Server) -> None:
            try:
                if server.lost:
                    await server.check_health(timeout=5)
                await transfer.load(server)
                await self._pool.take_back(server)
            except (ServerLostError, ValueError) as error:
                self._pool.leave_out(server, str(error))
            self._pool.look_after(server)

        await self._pool.insist(load)
        return {server.url: server.lost for server in self._pool.servers if server.lost}

    async def _leave_out(self, lost: Mapping[str, str]) -> None:
        """In every process: a server that failed to take weights answers, but keeps its requests frozen."""
        for server in self._pool.servers:
            if server.url in lost:
                self._pool.leave_out(server, lost[server.url])

    def _publish_nccl(self, transfer: NCCLTransfer, weights: Iterable[tuple[str, torch.Tensor]], label: str) -> None:
        alive, sent = self._pool.alive, Future[None]()

        async def each(work: Iterable[Coroutine[Any, Any, None]]) -> None:
            await asyncio.gather(*work)

        def resume() -> None:
            sent.result()
            self._run(each(server.resume(label) for server in alive))

        try:
            self._on_main(lambda: self._run(each(server.pause() for server in alive)))
            if self._rank:
                take_all(weights)
            else:
                try:
                    sent.set_result(transfer.send(weights, alive, label))
                except Exception as error:  # while the other processes wait for it below
                    sent.set_exception(error)
            self._on_main(resume)
        except ServerLostError as error:
            raise EngineLostError(f"a server was lost during a broadcast of weights: {error}") from error

    # -- around

    def close(self) -> None:
        """End the servers that were started here, and close the connections to the others."""
        self._transfer.close()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._started is not None:
            self._started.close()

    async def _end(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._client.aclose()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _on_main(self, work: Any) -> Any:
        """The result of `work`, done by the main process, in all of them; all raise any error it raises."""
        result: list[Any] = [None, None]
        if self._rank == 0:
            try:
                result[0] = work()
            except Exception as error:
                result[1] = error
        if self._processes > 1:
            torch.distributed.broadcast_object_list(result)
        if result[1] is not None:
            raise result[1]
        return result[0]
