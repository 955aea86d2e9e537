"""The experts that the tokens of in-process vLLM took.

On GPU vLLM returns them with a completion. On CPU it does not, but its routers have the callback that it records with,
and its model runner says whose tokens a forward is over.
"""

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput, RequestOutput


class EngineRoutes(Protocol):
    """Where the routes of a finished completion come from."""

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> np.ndarray | None:
        """[prompt and completion tokens but the last, MoE layers, k]; None if there are none."""
        ...

    def clear(self) -> None:
        """Forget those of completions that never finished."""
        ...


def engine_routes(llm: "LLM") -> EngineRoutes:
    """Of an engine in this process that was started to return routes."""
    (worker,) = llm.collective_rpc(itself)
    modules: list[Any] = _moe_modules(worker)
    if worker.device.type == "cpu":
        return _CapturedRoutes(worker.model_runner, [module.router for module in modules])
    return _ReturnedRoutes([module.layer_id for module in modules])


def itself(worker: Any) -> Any:
    return worker


def running_name(name: str) -> str:
    """What a request was called that runs as `name`: vLLM appends "-" and random letters."""
    return name.partition("-")[0]


def finished_name(output: "RequestOutput", sample: "CompletionOutput") -> str:
    """The same of a finished sample: vLLM makes a request of each of several, and names it by its index."""
    return f"{sample.index}_{output.request_id}" if len(output.outputs) > 1 else output.request_id


def _moe_modules(worker: Any) -> list[Any]:
    """vLLM's modules of routed experts, in the order of the layers."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    found: list[Any] = [module for module in worker.get_model().modules() if isinstance(module, MoERunner)]
    return sorted(found, key=lambda module: module.layer_id)


class _ReturnedRoutes:
    """vLLM's own, which have a slot for every layer of the model, also for those without experts."""

    def __init__(self, layers: list[int]) -> None:
        self._layers = layers

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> np.ndarray | None:  # noqa: ARG002
        return None if sample.routed_experts is None else sample.routed_experts[:, self._layers]

    def clear(self) -> None:
        pass


class _CapturedRoutes:
    """Captured from the routers, forward by forward. Without prefix caching, every token passes through a forward."""

    def __init__(self, runner: Any, routers: list[Any]) -> None:
        self._runner = runner
        self._layers: list[Tensor] = [torch.empty(0)] * len(routers)  # of the forward that is running: [N, k]
        self._parts: dict[str, list[tuple[int, np.ndarray]]] = {}  # request -> (first position, [tokens, layers, k])
        for layer, router in enumerate(routers):
            router.set_capture_fn(partial(self._capture, layer))

    def _capture(self, layer: int, experts: Tensor) -> None:
        self._layers[layer] = experts
        if layer < len(self._layers) - 1:
            return
        taken = torch.stack(self._layers, 1).to(torch.int16).numpy()
        batch = self._runner.input_batch
        bounds = self._runner.query_start_loc.np[: batch.num_reqs + 1]
        positions = self._runner.positions
        for name, start, end in zip(batch.req_ids, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            self._parts.setdefault(running_name(name), []).append((int(positions[start]), taken[start:end]))

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> np.ndarray:
        parts = self._parts.pop(finished_name(output, sample))
        assert output.prompt_token_ids is not None
        length = len(output.prompt_token_ids) + len(sample.token_ids) - 1
        routes = np.empty((length, *parts[0][1].shape[1:]), np.int16)
        for position, taken in parts:  # a preempted request starts again, and its later forwards count
            routes[position : position + len(taken)] = taken[: max(0, length - position)]
        routes = routes[min(position for position, _ in parts) :]  # above 0 if vllm_options switch the prefix cache on
        return routes.astype(np.uint8 if routes.max() < 256 else np.uint16)

    def clear(self) -> None:
        self._parts.clear()
