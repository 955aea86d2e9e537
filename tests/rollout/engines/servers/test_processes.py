"""Updates of servers by several trainer processes, of which the first sends the weights."""

from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rollout.engines.base import EngineLostError
from rollout.engines.servers.client import Server, ServerLostError
from rollout.engines.servers.transfer import NCCLTransfer, take_all
from tests.rollout.engines.servers.test_faults import FULL, WEIGHTS, FakeServer, connect, full_disk, servers

__all__ = ["servers"]  # a fixture


def _publish_from(rank: int, rendezvous: str, model: Path, url: str, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    engine = connect(model, [url], folder)
    with pytest.raises(EngineLostError, match=FULL), full_disk() if rank == 0 else nullcontext():
        engine.publish(iter(WEIGHTS), 1)
    engine.close()

    def send(transfer: NCCLTransfer, weights: Iterable[Any], servers: list[Server], label: str) -> None:
        assert rank == 0, "the others only gather"
        take_all(weights)
        raise ServerLostError("it died")

    engine, weights = connect(model, [url], folder, weights="nccl"), iter(WEIGHTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NCCLTransfer, "send", send)
        with pytest.raises(EngineLostError, match="a server was lost during a broadcast of weights: it died"):
            engine.publish(weights, 1)
    assert next(weights, None) is None
    engine.close()


def test_weights_that_the_main_process_cannot_send_stop_all_processes(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path
) -> None:
    arguments = (str(tmp_path / "rendezvous"), tiny_llama, servers[0].url, tmp_path)
    torch.multiprocessing.spawn(_publish_from, arguments, nprocs=2)  # raises what a process raises


def _publish_to_both(rank: int, rendezvous: str, model: Path, urls: list[str], folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    engine = connect(model, urls, folder)
    engine.publish(iter(WEIGHTS), 1)
    lost = {server.url: bool(server.lost) for server in engine._pool.servers}
    assert lost == {urls[0]: True, urls[1]: False}, f"process {rank}"
    engine.close()


def test_a_server_that_failed_to_take_weights_gets_no_groups_of_any_process(
    servers: list[FakeServer], tiny_llama: Path, tmp_path: Path
) -> None:
    """It answers, and would keep their requests frozen."""
    servers[0].breaks = "/update_weights"
    urls = [server.url for server in servers]
    torch.multiprocessing.spawn(_publish_to_both, (str(tmp_path / "rendezvous"), tiny_llama, urls, tmp_path), nprocs=2)
    assert servers[0].is_paused
