"""In-process vLLM: the default rollout engine.

`vllm_setup` starts it; docs/engines.md lists the ways in which vLLM gives wrong samples without an error, each with the
test that covers it.

Left out: tensor parallelism across the trainer's processes (each has its own engine).
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rollout.engines.adapter import AdapterFormat, LoadedAdapter, with_room_for
from rollout.engines.base import (
    completion_budgets,
    completion_texts,
    cut_at_stop,
    end_token_ids,
    load_tokenizer,
    request_seed,
)
from rollout.engines.vllm_kept import engine_kept
from rollout.engines.vllm_routes import engine_routes
from rollout.engines.vllm_setup import finish_begun, free_memory, own_source, repack_for_cpu, start, stop
from rollout.types import Completion, Group, Prompt, Sampling

if TYPE_CHECKING:
    from vllm import RequestOutput


class VLLMEngine:
    """`rollout.engines.base.Engine`, `Publisher` and `Sleeper` on vLLM.

    With several trainer processes (an initialised torch.distributed group), construct it in all of them at once: vLLM
    creates its process groups collectively. After that, each process generates independently.

    Args:
        model_path: Hugging Face folder or Hub name. Its weights are the first policy, version 0.
        dtype: "float32", "bfloat16" or "float16". On CPU, only float32 agrees with the trainer.
        max_model_len: context length in tokens, prompt and completion together.
        max_num_seqs: sequences decoded concurrently.
        kv_cache_gib: KV cache size on CPU, in GiB.
        gpu_memory_utilization: fraction of GPU memory for weights and KV cache.
        vllm_options: further arguments of `vllm.LLM`, which override what is set here.
        sleep_level: what `sleep` frees, on GPU: the KV cache, and the weights, which 1 keeps in CPU memory and 2 drops.
            0: there is no `sleep`.
        return_routes: completions carry the experts that their tokens took; for a mixture of experts.
        return_kept: completions carry the tokens that they were drawn from, where the sampling truncates. On GPU, all
            sampling then needs a temperature and a top_k above 0.
        adapter: `publish` gets the weights of such an adapter, under peft's names, and the base stays as it is.
        seed: vLLM seeds the process's global random generators with it at start-up. Samples do not depend on it.

    Raises:
        ValueError: vLLM is not installed, the model's config lacks a key or has an unsupported head size, the KV
            cache does not fit, or there is a sleep level on a CPU.
    """

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        max_model_len: int,
        max_num_seqs: int,
        kv_cache_gib: float,
        gpu_memory_utilization: float,
        vllm_options: dict[str, Any] | None = None,
        sleep_level: int = 0,
        revision: str | None = None,
        trust_remote_code: bool = False,
        return_routes: bool = False,
        return_kept: bool = False,
        adapter: AdapterFormat | None = None,
        seed: int = 0,
    ) -> None:
        vllm_options = with_room_for(adapter, vllm_options or {})
        source = own_source(vllm_options, revision, trust_remote_code)
        self._llm = start(
            model_path,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            kv_cache_gib=kv_cache_gib,
            gpu_memory_utilization=gpu_memory_utilization,
            vllm_options=vllm_options,
            sleep_level=sleep_level,
            source=source,
            return_routes=return_routes,
            return_kept=return_kept,
            seed=seed,
        )
        self._sleep_level, self._asleep = sleep_level, False
        self._routes = engine_routes(self._llm) if return_routes else None
        self._kept = engine_kept(self._llm) if return_kept else None
        self._adapter = LoadedAdapter(self._llm, adapter) if adapter else None
        self._max_model_len = max_model_len
        self._tokenizer = load_tokenizer(model_path, **source)
        self._end_ids = end_token_ids(model_path, self._tokenizer, source["revision"])
        self._request_ids = map(str, itertools.count())
        self._policy_version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield each prompt's Group as soon as its last completion ends. See `Engine.generate`."""
        budgets = completion_budgets(prompts, sampling, self._max_model_len)
        if self._kept:
            self._kept.begin(sampling)
        return self._stream(prompts, budgets, sampling)

    def _stream(self, prompts: Sequence[Prompt], budgets: Sequence[int], sampling: Sampling) -> Iterator[Group]:
        from vllm import RequestOutput, SamplingParams
        from vllm.sampling_params import RequestOutputKind

        engine = self._llm.llm_engine
        # Cached prefixes change batching, and with it the last bits of the log-probs: start with an empty cache.
        self._llm.reset_prefix_cache()
        if self._routes:
            self._routes.clear()
        pending: dict[str, Prompt] = {}
        # vLLM rejects n > 1 with greedy decoding: sample once and repeat the result.
        num_samples = sampling.num_generations if sampling.temperature > 0 else 1
        # Longest first: short prompts then fill the end of the rollout, when the batch runs empty.
        for prompt, budget in sorted(zip(prompts, budgets, strict=True), key=lambda pair: -len(pair[0].token_ids)):
            request_id = next(self._request_ids)
            params = SamplingParams(
                n=num_samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                min_p=sampling.min_p,
                max_tokens=budget,
                seed=request_seed(sampling, prompt),
                stop_token_ids=self._end_ids,
                stop=list(sampling.stop),
                logprobs=0 if sampling.logprobs else None,  # 0: only the sampled token's
                flat_logprobs=sampling.logprobs,
                detokenize=bool(sampling.stop),  # else the texts are decoded once, at the end
                skip_special_tokens=False,  # a stop text may be one
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            adapter = self._adapter.request if self._adapter else None
            engine.add_request(request_id, {"prompt_token_ids": list(prompt.token_ids)}, params, lora_request=adapter)
            pending[request_id] = prompt
        try:
            while engine.has_unfinished_requests():
                for output in engine.step():
                    assert isinstance(output, RequestOutput)  # not a pooling model's output
                    prompt = pending.pop(output.request_id)
                    completions = self._completions(output, sampling) * (sampling.num_generations // num_samples)
                    yield prompt.group(completions)
        finally:
            if pending:  # the caller stopped early
                engine.abort_request(list(pending))
            finish_begun(self._llm)

    def _completions(self, output: "RequestOutput", sampling: Sampling) -> list[Completion]:
        from vllm.logprobs import FlatLogprobs

        texts = completion_texts(self._tokenizer, self._end_ids, [sample.token_ids for sample in output.outputs])
        completions = []
        for sample, text in zip(output.outputs, texts, strict=True):
            assert sample.logprobs is None or isinstance(sample.logprobs, FlatLogprobs)  # as requested by flat_logprobs
            completions.append(
                Completion(
                    token_ids=list(sample.token_ids),
                    logprobs=sample.logprobs.logprobs if sample.logprobs is not None else [],
                    text=cut_at_stop(text, sampling.stop),
                    finish_reason="stop" if sample.finish_reason == "stop" else "length",
                    policy_version=self._policy_version,
                    routes=self._routes.take(output, sample) if self._routes else None,
                    kept=self._kept.take(output, sample) if self._kept else None,
                )
            )
        return completions

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], policy_version: int) -> None:
        """Sample with these weights from now on; `grpo.learner.policy.Policy.weights` gives them."""
        if self._asleep:
            free_memory()  # what the trainer's allocator keeps is in the way
            self._llm.wake_up(tags=["weights"])
        if self._adapter:
            self._adapter.load(weights)
        else:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
            self._llm.collective_rpc(repack_for_cpu)
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])  # last: sharded weights are gathered while they are sent
            self._asleep = False
        self._llm.reset_prefix_cache()
        self._policy_version = policy_version

    def sleep(self) -> None:
        """Free GPU memory until the next `publish`; see `Sleeper`."""
        self._llm.sleep(level=self._sleep_level)
        self._asleep = True

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self._adapter:
            self._adapter.close()
        stop(self._llm)
        del self._llm
        free_memory()
