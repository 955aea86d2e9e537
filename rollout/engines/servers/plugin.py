"""The weight-transfer backend `grpo_file`, as vLLM loads it: safetensors files in a folder that both sides see.

vLLM calls `register` in each of its processes, through the entry point of group `vllm.general_plugins` in
pyproject.toml. The trainer's side is `rollout.engines.servers.transfer.FileTransfer`.
"""

import mmap
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BACKEND = "grpo_file"


def checksum(path: Path) -> int:
    """CRC-32 of the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return zlib.crc32(content)


def register() -> None:
    """Make the backend known to vLLM in this process."""
    import torch
    from safetensors.torch import load_file
    from vllm.distributed.weight_transfer.base import (
        WeightTransferEngine,
        WeightTransferInitInfo,
        WeightTransferUpdateInfo,
    )
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    from rollout.engines.vllm_setup import repack_model_for_cpu

    @dataclass
    class FileInit(WeightTransferInitInfo):
        pass

    @dataclass
    class FileUpdate(WeightTransferUpdateInfo):
        path: str
        crc32: int

    class FileEngine(WeightTransferEngine[FileInit, FileUpdate]):
        init_info_cls = FileInit
        update_info_cls = FileUpdate
        is_open = False  # an update has begun and not finished

        def init_transfer_engine(self, init_info: FileInit) -> None:
            pass

        def start_weight_update(self) -> None:
            if self.is_open:  # one that broke off: the weights it has loaded would count as this one's
                finalize_layerwise_reload(self.model, self.model_config)
            initialize_layerwise_reload(self.model)
            self.is_open = True

        def update_weights(self, update_info: dict[str, object]) -> None:
            self.receive_weights(self.parse_update_info(update_info))
            if self.device.type != "cpu":
                torch.accelerator.synchronize()

        def receive_weights(self, update_info: FileUpdate) -> None:
            path = Path(update_info.path)
            if (found := checksum(path)) != update_info.crc32:
                raise ValueError(f"{path} has checksum {found:08x}, the trainer wrote {update_info.crc32:08x}")
            with disable_mtp_completeness_check():
                model: Any = self.model
                model.load_weights(iter(load_file(path, device=str(self.device)).items()))

        def finish_weight_update(self) -> None:
            finalize_layerwise_reload(self.model, self.model_config)
            self.is_open = False
            if self.device.type == "cpu":
                repack_model_for_cpu(self.model)

        def shutdown(self) -> None:
            pass

    if BACKEND not in WeightTransferEngineFactory._registry:  # plug-ins may be loaded twice
        WeightTransferEngineFactory.register_engine(BACKEND, FileEngine)
