"""Which servers a run uses, and how long it waits for them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Servers({start: 2}) or Servers(urls=["http://host:8000"]), and how weights reach them.

    Args:
        urls: servers that are running, without /v1.
        start: instead, the number of servers to start on this machine.
        api_key_env: environment variable with the servers' API key.
        weights: "file": safetensors files in `weights_dir`; "nccl": broadcast between GPUs.
        weights_dir: a folder that trainer and servers see under the same path; None: shared memory.
        start_timeout: seconds until a started server must be up.
        health_timeout: seconds within which a living server answers /health.
        request_timeout: seconds within which a server completes one group.
        update_timeout: seconds within which a server takes new weights.
        patience: seconds to wait for a server to come back when none is left.
    """

    urls: Sequence[str] = ()
    start: int = 0
    api_key_env: str | None = None
    weights: Literal["file", "nccl"] = "file"
    weights_dir: str | None = None
    start_timeout: float = 1800.0
    health_timeout: float = 60.0
    request_timeout: float = 3600.0
    update_timeout: float = 600.0
    patience: float = 60.0

    def authorization(self) -> dict[str, str]:
        """The header that carries the key. ValueError if its variable is not set."""
        if self.api_key_env is None:
            return {}
        if not (key := os.environ.get(self.api_key_env)):
            raise ValueError(
                f"rollout.servers.api_key_env={self.api_key_env}: this environment variable is not set. Export it."
            )
        return {"Authorization": f"Bearer {key}"}
