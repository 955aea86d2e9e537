"""The trainer's side of a weight update: where the weights are put for the servers to take.

`NCCLTransfer` is written against vLLM 0.32's trainer API and has not been run: it needs GPUs on both sides.
"""

import asyncio
import shutil
import socket
import tempfile
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout.engines.base import EngineLostError
from rollout.engines.servers.client import Server
from rollout.engines.servers.plugin import checksum

if TYPE_CHECKING:
    from torch import Tensor

SHARED_MEMORY = "/dev/shm"
FILE_BYTES = 2**30  # weights are copied and written in files of about this size


class FileTransfer:
    """Weights as safetensors files, deleted once the servers have them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @staticmethod
    def make_folder(parent: str | None) -> Path:
        """A folder for one run's weights, by default in shared memory."""
        folder = Path(tempfile.mkdtemp(prefix="grpo-weights-", dir=parent or SHARED_MEMORY))
        folder.chmod(0o755)  # a server may run as another user
        return folder

    def write(self, weights: "Iterable[tuple[str, Tensor]]") -> list[tuple[Path, int]]:
        """Write the weights; returns files and their checksums.

        Raises:
            EngineLostError: they could not be written. All weights are taken first: other processes count on it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        files = []
        weights = iter(weights)
        try:
            for number, part in enumerate(_parts(weights)):
                path = self._folder / f"{number}.safetensors"
                save_file(part, path)
                files.append((path, checksum(path)))
        except (OSError, SafetensorError) as error:
            for _ in weights:
                pass
            raise EngineLostError(
                f"the weights for the servers could not be written to {self._folder}: {error}. "
                "Free space there, or name another folder in rollout.servers.weights_dir"
            ) from error
        return files

    def clear(self) -> None:
        """Free the memory or disk space."""
        for path in self._folder.glob("*.safetensors"):
            path.unlink()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _parts(weights: "Iterable[tuple[str, Tensor]]") -> "Iterator[dict[str, Tensor]]":
    """The weights in pieces of about FILE_BYTES, on the CPU."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights:
        # Views of one parameter, such as the experts', would each be written with all of it.
        part[name] = weight.detach().cpu().clone(memory_format=_contiguous())
        size += weight.nbytes
        if size >= FILE_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _contiguous() -> Any:
    import torch

    return torch.contiguous_format


class NCCLTransfer:
    """Weights broadcast from the main process to all servers' GPUs, through vLLM's trainer engine. Not run yet.

    Args:
        run: runs a coroutine in the engine's event loop and returns its result.
        rank: this trainer process; the others only take part in gathering sharded weights.
    """

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], rank: int) -> None:
        self._run, self._rank = run, rank
        self._members: list[str] = []
        self._trainer: Any = None
        self._source = _listed_source()

    def send(self, weights: "Iterable[tuple[str, Tensor]]", servers: Sequence[Server], label: str) -> None:
        """Send the weights to these servers, whose requests are frozen. All trainer processes call it.

        A change of the servers makes a new NCCL group: one with a lost member never completes a broadcast.
        """
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        self._source.weights = [(name, weight.detach().contiguous()) for name, weight in weights]
        client = _AllServers(self._run, servers, label)
        if self._members != [server.url for server in servers]:
            if self._trainer is not None:
                self._trainer.shutdown()
            address, port = _free_address()
            info = NCCLTrainerInitInfo(address, port, 1 + client.world_size, rank=self._rank)
            self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=self._source)
            self._members = [server.url for server in servers]
        self._trainer.client = client
        self._trainer.send_weights()
        self._source.weights = []

    def close(self) -> None:
        """Leave the NCCL group."""
        if self._trainer is not None:
            self._trainer.shutdown()


class _AllServers:
    """vLLM's VLLMWeightSyncClient for several servers at once."""

    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], servers: Sequence[Server], label: str) -> None:
        self._run, self._servers, self._label = run, servers, label
        self._sizes: list[int] = run(_gather(server.world_size() for server in servers))
        self.world_size = sum(self._sizes)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        offsets = [init_info["rank_offset"] + sum(self._sizes[:i]) for i in range(len(self._sizes))]
        self._each("/init_weight_transfer_engine", [{"init_info": {**init_info, "rank_offset": o}} for o in offsets])

    def start_weight_update(self) -> None:
        self._each("/start_weight_update", [None] * len(self._servers))

    def update_weights(self, update_info: Any) -> None:
        self._each("/update_weights", [{"update_info": update_info}] * len(self._servers))

    def finish_weight_update(self, weight_version: str | None = None) -> None:  # noqa: ARG002 (vLLM passes none)
        self._each("/finish_weight_update", [{"weight_version": self._label}] * len(self._servers))

    def _each(self, path: str, bodies: Sequence[dict[str, Any] | None]) -> None:
        self._run(_gather(s.update(path, body) for s, body in zip(self._servers, bodies, strict=True)))


async def _gather(requests: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    return list(await asyncio.gather(*requests))


def _listed_source() -> Any:
    """A vLLM WeightSource over a list that is exchanged before each update."""
    from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

    class Listed(WeightSource):
        weights: "Sequence[tuple[str, Tensor]]" = ()

        def metadata(self) -> list[ParamMeta]:
            return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self.weights]

        def __iter__(self) -> "Iterator[tuple[str, Tensor]]":
            return iter(self.weights)

    return Listed()


def _free_address() -> tuple[str, int]:
    """This machine's name and a free port, where servers find the trainer."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return socket.gethostname(), probe.getsockname()[1]
