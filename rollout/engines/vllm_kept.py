"""The tokens that in-process vLLM left to draw from after min-p, top-k and top-p.

On GPU vLLM returns them with a completion (`return_sampling_mask`). Its CPU runner does not; there they are read off
the log-probs that its sampler hands out, which are those it draws from.
"""

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import Tensor

from rollout.engines.vllm_routes import finished_name, itself, running_name
from rollout.types import KeptTokens, Sampling

if TYPE_CHECKING:
    from vllm import LLM, CompletionOutput, RequestOutput


class EngineKept(Protocol):
    """Where the kept tokens of a finished completion come from."""

    def begin(self, sampling: Sampling) -> None:
        """Before requests with this sampling, which all running ones have.

        Raises:
            ValueError: vLLM refuses it.
        """
        ...

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> KeptTokens | None:
        """None if the sampling does not truncate."""
        ...


def engine_kept(llm: "LLM") -> EngineKept:
    """Of an engine in this process that was started to return kept tokens."""
    (worker,) = llm.collective_rpc(itself)
    return _CapturedKept(worker.model_runner) if worker.device.type == "cpu" else _ReturnedKept()


class _ReturnedKept:
    """vLLM's own, for which every request of the engine must have a top_k: it bounds what is sent."""

    def begin(self, sampling: Sampling) -> None:
        if sampling.temperature == 0 or sampling.top_k == 0:
            raise ValueError(
                f"algorithm.sampling_mask with vLLM on GPU: temperature={sampling.temperature:g} and "
                f"top_k={sampling.top_k}, and vLLM returns the kept tokens only if both are above 0, in evaluations "
                "too. Set rollout.top_k and evaluation.top_k, such as 1000, or use rollout.engine=hf."
            )

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> KeptTokens:  # noqa: ARG002
        assert sample.sampling_mask is not None  # as asked for at the start
        return _joined([np.asarray(ids, np.int32) for ids in sample.sampling_mask.token_ids])


class _CapturedKept:
    """Captured from the sampler, step by step."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._active = False
        self._parts: dict[str, dict[int, np.ndarray]] = {}  # request -> index of the token -> what it was drawn from
        runner.sampler.topk_topp_sampler.register_forward_hook(self._capture)

    def begin(self, sampling: Sampling) -> None:
        self._active = sampling.truncates
        self._parts.clear()  # of completions that never finished

    def _capture(self, _module: Any, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        if not self._active:
            return
        batch, (_, logprobs) = self._runner.input_batch, output  # [requests, V], -inf where nothing is drawn
        rows, ids = logprobs.isfinite().nonzero(as_tuple=True)
        ends = rows.bincount(minlength=batch.num_reqs).cumsum(0)[:-1].numpy()
        last = self._runner.positions[self._runner.query_start_loc.np[1 : batch.num_reqs + 1] - 1].tolist()
        indices = [position + 1 - int(batch.num_prompt_tokens[row]) for row, position in enumerate(last)]
        for name, index, kept in zip(batch.req_ids, indices, np.split(ids.int().numpy(), ends), strict=True):
            self._parts.setdefault(running_name(name), {})[index] = kept  # below 0: a part of a prompt, not a token

    def take(self, output: "RequestOutput", sample: "CompletionOutput") -> KeptTokens | None:
        if not self._active:
            return None
        parts = self._parts.pop(finished_name(output, sample))
        return _joined([parts[index] for index in range(len(sample.token_ids))])


def _joined(parts: list[np.ndarray]) -> KeptTokens:
    return KeptTokens(np.concatenate([np.empty(0, np.int32), *parts]), np.cumsum([0, *map(len, parts)]))
