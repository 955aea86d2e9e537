"""LoRA adapters that vLLM applies itself, beside its base, instead of weights that they are merged into.

vLLM takes an adapter as a folder in peft's format, under a number and a name of its own for each version.
"""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from vllm import LLM
    from vllm.lora.request import LoRARequest

SHARED_MEMORY = "/dev/shm"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for; a smaller adapter fits too


@dataclass(frozen=True, slots=True)
class AdapterFormat:
    """AdapterFormat({"r": 16, "lora_alpha": 32, …}): the adapters that an engine will be given.

    Args:
        config: what adapter_config.json says, as peft writes it.
        versions: of them may be in use at once.

    Raises:
        ValueError: vLLM has no room for this rank.
    """

    config: Mapping[str, Any]
    versions: int = 1

    def __post_init__(self) -> None:
        if self.config["r"] > RANKS[-1]:
            raise ValueError(
                f"model.lora.r={self.config['r']}: vLLM takes adapters up to rank {RANKS[-1]}. Set "
                "rollout.adapters=merge, or lower r."
            )

    def write(self, weights: Iterable[tuple[str, "Tensor"]], folder: Path) -> None:
        """Write an adapter, given under the names of peft's file, into a new folder."""
        from safetensors.torch import save_file

        folder.mkdir()
        folder.chmod(0o755)  # a server may run as another user
        (folder / "adapter_config.json").write_text(json.dumps(dict(self.config)), encoding="utf-8")
        save_file(
            {name: weight.detach().cpu().contiguous() for name, weight in weights}, folder / "adapter_model.safetensors"
        )


def with_room_for(adapter: AdapterFormat | None, vllm_options: Mapping[str, Any]) -> dict[str, Any]:
    """vLLM's engine arguments, with room for such adapters."""
    if adapter is None:
        return dict(vllm_options)
    rank = next(rank for rank in RANKS if rank >= adapter.config["r"])
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": adapter.versions, **vllm_options}


class LoadedAdapter:
    """The adapter of an engine in this process: its current version, as vLLM wants it named in each request."""

    def __init__(self, llm: "LLM", format: AdapterFormat) -> None:
        self._engine, self._format = llm.llm_engine, format
        self._folder = Path(tempfile.mkdtemp(prefix="grpo-adapter-", dir=SHARED_MEMORY))
        self._numbers = itertools.count(1)
        self.request: LoRARequest | None = None  # None: the base

    def load(self, weights: Iterable[tuple[str, "Tensor"]]) -> None:
        """Sample with this adapter from now on."""
        from vllm.lora.request import LoRARequest

        number = next(self._numbers)
        folder = self._folder / str(number)
        self._format.write(weights, folder)
        if self.request is not None:
            self._engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path)
        # A new number and name: what vLLM has cached of the last version then counts for nothing.
        self.request = LoRARequest(str(number), number, str(folder))
        self._engine.add_lora(self.request)

    def close(self) -> None:
        """Remove the files."""
        shutil.rmtree(self._folder)
