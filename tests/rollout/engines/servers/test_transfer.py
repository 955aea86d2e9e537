"""How weights are put together for servers: their precision, in parts; the calls of a broadcast between GPUs."""

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rollout.engines.servers import transfer
from rollout.engines.servers.client import ServerLostError
from rollout.engines.servers.transfer import FileTransfer, NCCLTransfer, make_folder

MATRIX, EXPERT = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.experts.3.gate_proj.weight"
ROUTER, BIAS = "model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.e_score_correction_bias"
OTHERS = (  # of Ernie 4.5 [1, E], Jamba, and DeepSeek-V4
    "model.layers.1.mlp.moe_statics.e_score_correction_bias",
    "model.layers.0.mamba.A_log",
    "layers.2.attn.compressor.ape",
)
NAMES = (MATRIX, EXPERT, ROUTER, BIAS, "model.norm.weight")


def trained(names: tuple[str, ...] = NAMES) -> dict[str, torch.Tensor]:
    """As an update leaves them: in float32, no number one of bfloat16."""
    shapes = {BIAS: (4,), "model.norm.weight": (2,)}
    return {name: torch.full(shapes.get(name, (2, 4)), 1.001) for name in names}


def written(transfer: FileTransfer, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    transfer.write(weights.items(), "a/0")
    return {name: weight for path, _ in transfer._files for name, weight in load_file(path).items()}


def test_weights_travel_in_the_serving_precision_but_for_what_vllm_keeps_in_float32(tmp_path: Path) -> None:
    weights = trained((*NAMES, *OTHERS))
    found = written(FileTransfer(tmp_path, torch.bfloat16), weights)
    assert {name for name, weight in found.items() if weight.dtype == torch.bfloat16} == {MATRIX, EXPERT}
    assert found[MATRIX].tolist() == [[1.0] * 4] * 2
    for name in (ROUTER, BIAS, "model.norm.weight", *OTHERS):
        assert torch.equal(found[name], weights[name])
    assert all(torch.equal(weights[name], weight) for name, weight in trained((*NAMES, *OTHERS)).items())


def test_float32_travels_bit_for_bit(tmp_path: Path) -> None:
    weights = {**trained(), "table": torch.arange(3)}
    found = written(FileTransfer(tmp_path, torch.float32), weights)
    assert found.keys() == weights.keys()
    assert all(
        torch.equal(found[name], weight) and found[name].dtype == weight.dtype for name, weight in weights.items()
    )


def test_the_folder_for_weights_is_made_where_it_is_missing(tmp_path: Path) -> None:
    folder = make_folder(str(tmp_path / "shared" / "weights"))
    assert folder.parent == tmp_path / "shared" / "weights" and folder.is_dir()


class Recorder:
    """A server's part of the weight-transfer API."""

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size = url, size
        self.calls: list[tuple[str, Any]] = []

    async def world_size(self) -> int:
        return self.size

    async def update(self, path: str, body: Mapping[str, Any] | None = None) -> None:
        self.calls.append((path, body))


class Group:
    """In place of an NCCL communicator."""

    def destroy(self) -> None:
        pass


@pytest.mark.vllm
def test_a_broadcast_is_one_update_in_parts_of_which_one_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own trainer, but for NCCL: its group, and the streams that it packs tensors on."""
    nccl = pytest.importorskip("vllm.distributed.weight_transfer.nccl_engine")
    sent: list[dict[str, torch.Tensor]] = []
    events: list[str] = []

    class Stream:
        def synchronize(self) -> None:
            events.append("synchronize")

    def producer(iterator: Iterator[tuple[str, torch.Tensor]], **_: Any) -> None:
        sent.append(dict(iterator))
        events.append("send")

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in trained().items():
            events.append("gather")
            yield name, weight

    monkeypatch.setattr(nccl, "open_trainer_endpoint", lambda info: Group())
    monkeypatch.setattr(nccl, "packed_nccl_broadcast_producer", producer)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(transfer, "PART_BYTES", 48)
    pytest.importorskip("vllm.envs").disable_envs_cache()  # an engine in this process may have filled it
    monkeypatch.setenv("VLLM_HOST_IP", "10.1.2.3")
    servers: list[Any] = [Recorder("http://a", 2), Recorder("http://b", 1)]
    broadcast = NCCLTransfer(asyncio.run, torch.bfloat16)
    broadcast.send(weights(), servers, "run/1")
    assert [list(part) for part in sent] == [[MATRIX, EXPERT, ROUTER], [BIAS, "model.norm.weight"]]
    assert events == [*["gather"] * 3, "synchronize", "send", *["gather"] * 2, "synchronize", "send"]
    assert sent[0][MATRIX].dtype == torch.bfloat16 and sent[0][ROUTER].dtype == torch.float32

    (init, joined), *update = servers[1].calls
    assert init == "/init_weight_transfer_engine"
    info = joined["init_info"]
    assert (info["master_address"], info["rank_offset"], info["world_size"]) == ("10.1.2.3", 3, 4)
    assert [path for path, _ in update] == [
        "/start_weight_update",
        "/update_weights",
        "/update_weights",
        "/finish_weight_update",
    ]
    assert update[1][1]["update_info"] == {
        "names": [MATRIX, EXPERT, ROUTER],
        "dtype_names": ["bfloat16", "bfloat16", "float32"],
        "shapes": [[2, 4]] * 3,
    }
    assert update[-1][1] == {"weight_version": "run/1"}

    broadcast.send(weights(), servers, "run/2")  # the group stays
    assert [path for path, _ in servers[1].calls].count("/init_weight_transfer_engine") == 1
    broadcast.send(weights(), servers[1:], "run/3")
    assert servers[1].calls[-5][1]["init_info"]["world_size"] == 2
    broadcast.close()


def test_a_broadcast_that_fails_takes_all_weights_first() -> None:
    """Other processes gather their shares of them."""

    async def lost() -> int:
        raise ServerLostError("it died")

    server: Any = Recorder("http://a", 1)
    server.world_size = lost
    weights = iter(trained().items())
    with pytest.raises(ServerLostError, match="it died"):
        NCCLTransfer(asyncio.run, torch.bfloat16).send(weights, [server], "run/1")
    assert next(weights, None) is None
