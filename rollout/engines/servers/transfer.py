"""The trainer's side of a weight update: how the weights get to the servers.

Whole weights are sent a part at a time, in the precision they are served in. `NCCLTransfer` is written against vLLM
0.32's trainer API; its calls are tested, and it has not been run: it needs GPUs on both sides.
"""

import asyncio
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rollout.engines.adapter import SHARED_MEMORY, AdapterFormat
from rollout.engines.base import EngineLostError
from rollout.engines.servers.client import Server
from rollout.engines.servers.plugin import checksum

PART_BYTES = 2**30  # weights are copied and sent in parts of about this size
# Beside vectors, such as the experts' balance bias: small, and vLLM has them in float32 in some models.
FLOAT32 = re.compile(
    r"(\bgate|\brouter|weights_proj|conv1d)\.weight$|\bhc_|\b(e_score_correction_bias|A_log|ape|position_bias)$"
)


class Transfer(Protocol):
    """Brings weights to servers by way of a folder that both sides see. The main process calls it."""

    def write(self, weights: Iterable[tuple[str, Tensor]], label: str) -> None:
        """Write the weights that `load` brings to servers.

        Raises:
            EngineLostError: they could not be written. All weights are taken first: other processes count on it.
        """
        ...

    async def load(self, server: Server) -> None:
        """Have a server take what was written last. ServerLostError if it does not."""
        ...

    def clear(self) -> None:
        """Free what no server will read again."""
        ...

    def close(self) -> None:
        """Remove the folder."""
        ...


def make_folder(parent: str | None) -> Path:
    """A folder for one run's weights, by default in shared memory."""
    place = Path(parent or SHARED_MEMORY)
    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="grpo-weights-", dir=place))
    folder.chmod(0o755)  # a server may run as another user
    return folder


class FileTransfer:
    """Whole weights as safetensors files, deleted once the servers have them."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self._folder, self._dtype = folder, dtype
        self._files: list[tuple[Path, int]] = []  # with their checksums
        self._label = ""

    def write(self, weights: Iterable[tuple[str, Tensor]], label: str) -> None:
        from safetensors.torch import save_file

        self._files, self._label = [], label
        # A copy: views of one parameter, such as the experts', would each be written with all of it.
        copy = {"device": "cpu", "copy": True, "memory_format": torch.contiguous_format}
        with _taking_all(weights, self._folder) as rest:
            for number, part in enumerate(_parts(rest, self._dtype, copy)):
                path = self._folder / f"{number}.safetensors"
                save_file(part, path)
                self._files.append((path, checksum(path)))

    async def load(self, server: Server) -> None:
        await server.load(self._files, self._label)

    def clear(self) -> None:
        for path in self._folder.glob("*.safetensors"):
            path.unlink()

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class AdapterTransfer:
    """Adapters as folders in peft's format, each a version with a name of its own.

    A server forgets a version that no request will ask for; a running one may still make it read the files.
    """

    def __init__(self, folder: Path, format: AdapterFormat) -> None:
        self._folder, self._format = folder, format
        self._written: dict[str, Path] = {}  # by label, in order

    def write(self, weights: Iterable[tuple[str, Tensor]], label: str) -> None:
        folder = self._folder / label.replace("/", "-")
        with _taking_all(weights, self._folder) as rest:
            self._format.write(rest, folder)
        self._written[label] = folder

    async def load(self, server: Server) -> None:
        labels = [*self._written]
        newest = labels[-1]
        await server.load_adapter(self._written[newest], newest, outdated=labels[: -self._format.versions])

    def clear(self) -> None:
        for label in [*self._written][: -2 * self._format.versions]:
            shutil.rmtree(self._written.pop(label))

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


class NoTransfer:
    """What the other processes do in an update: take part in gathering sharded weights."""

    def write(self, weights: Iterable[tuple[str, Tensor]], label: str) -> None:  # noqa: ARG002
        take_all(weights)

    async def load(self, server: Server) -> None:
        raise AssertionError(f"only the main process sends weights to {server.url}")

    def clear(self) -> None:
        pass

    def close(self) -> None:
        pass


@contextmanager
def _taking_all(weights: Iterable[tuple[str, Tensor]], folder: Path) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """Around writing them: of an error of the disk, EngineLostError, after all weights have been taken."""
    from safetensors import SafetensorError

    rest = iter(weights)
    try:
        yield rest
    except (OSError, SafetensorError) as error:
        take_all(rest)
        raise EngineLostError(
            f"the weights for the servers could not be written to {folder}: {error}. "
            "Free space there, or name another folder in rollout.servers.weights_dir"
        ) from error


def take_all(weights: Iterable[Any]) -> None:
    """Take part in gathering the weights that are left."""
    for _ in weights:
        pass


def _parts(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype, to: Mapping[str, Any]
) -> Iterator[dict[str, Tensor]]:
    """The weights in pieces of about PART_BYTES, in the precision they are served in; to: arguments of `Tensor.to`."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights:
        cast = weight.is_floating_point() and weight.ndim > 1 and not FLOAT32.search(name)
        part[name] = weight.detach().to(dtype=dtype if cast else weight.dtype, **to)
        size += part[name].nbytes
        if size >= PART_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


class NCCLTransfer:
    """Weights broadcast from the main process to all servers' GPUs, through vLLM's trainer engine. Not run yet.

    vLLM's trainer wants to know names and shapes before it takes the weights, and would go through all of them twice.
    Here an update of the servers is several sends of the trainer, each of a part that is at hand.

    Args:
        run: runs a coroutine in the engine's event loop and returns its result.
    """

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], dtype: torch.dtype) -> None:
        self._run, self._dtype = run, dtype
        self._members: list[str] = []
        self._trainer: Any = None

    def send(self, weights: Iterable[tuple[str, Tensor]], servers: Sequence[Server], label: str) -> None:
        """Send the weights to these servers, whose requests are frozen. The main process calls it.

        A change of the servers makes a new NCCL group: one with a lost member never completes a broadcast. Whatever is
        raised, all weights are taken first: other processes count on it.
        """
        weights = iter(weights)
        try:
            self._join(servers)
            trainer = self._trainer
            trainer.client.begin()
            for part in _parts(weights, self._dtype, {}):
                trainer.source.part = part
                torch.cuda.current_stream().synchronize()  # vLLM reads the part on streams of its own
                trainer.send_weights()
                part.clear()  # before the next one is gathered
            trainer.client.end(label)
        finally:
            take_all(weights)

    def _join(self, servers: Sequence[Server]) -> None:
        if self._members == [server.url for server in servers]:
            return
        self.close()
        self._trainer = _trainer_of(_AllServers(self._run, servers))
        self._members = [server.url for server in servers]

    def close(self) -> None:
        """Leave the NCCL group."""
        if self._trainer is not None:
            self._trainer.shutdown()


class _AllServers:
    """vLLM's VLLMWeightSyncClient for several servers at once, whose update begins and ends apart from the sends."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], servers: Sequence[Server]) -> None:
        self._run, self._servers = run, servers
        self._sizes: list[int] = run(_gather(server.world_size() for server in servers))
        self.world_size = sum(self._sizes)

    def begin(self) -> None:
        self._each("/start_weight_update", [None] * len(self._servers))

    def end(self, label: str) -> None:
        self._each("/finish_weight_update", [{"weight_version": label}] * len(self._servers))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [init_info["rank_offset"] + sum(self._sizes[:i]) for i in range(len(self._sizes))]
        self._each("/init_weight_transfer_engine", [{"init_info": {**init_info, "rank_offset": o}} for o in offsets])

    def start_weight_update(self) -> None:
        pass

    def update_weights(self, update_info: Any) -> None:
        self._each("/update_weights", [{"update_info": update_info}] * len(self._servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        pass

    def _each(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> None:
        self._run(_gather(s.update(path, body) for s, body in zip(self._servers, bodies, strict=True)))


async def _gather(requests: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    return list(await asyncio.gather(*requests))


def _trainer_of(client: _AllServers) -> Any:
    """vLLM's trainer, in a new NCCL group with the servers. Its source is one part, exchanged before each send."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    class Source(WeightSource):
        part: Mapping[str, Tensor] = {}

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.part.items()]

        def __iter__(self) -> Iterator[tuple[str, Tensor]]:
            return iter(self.part.items())

    info = NCCLTrainerInitInfo(*_free_address(), 1 + client.world_size, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=Source())


def _free_address() -> tuple[str, int]:
    """This machine's address and a free port, where servers find the trainer. Names may mean loopback, or nothing."""
    from vllm.utils.network_utils import get_ip

    with socket.socket() as probe:
        probe.bind(("", 0))
        return get_ip(), probe.getsockname()[1]
