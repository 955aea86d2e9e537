"""The reference engine, on transformers' `generate`: for tests and for machines without vLLM.

Decodes in fixed batches, each as long as its longest completion.

Left out: continuous batching, sharing the prefill between a prompt's samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.utils.logging import disable_progress_bar

from rollout.engines.base import (
    completion_budgets,
    completion_texts,
    cut_at_stop,
    end_token_ids,
    load_tokenizer,
    request_seed,
)
from rollout.engines.hf_routes import recorded_routes
from rollout.support.weights import REPORTING, whole
from rollout.types import Completion, Group, KeptTokens, Prompt, Sampling


class HFEngine:
    """`rollout.engines.base.Engine` and `Publisher` on transformers.

    Args:
        model_path: Hugging Face folder or Hub name. Its weights are the first policy, version 0.
        dtype: "float32", "bfloat16" or "float16".
        device: where the engine runs, with its own copy of the weights.
        max_num_seqs: sequences decoded concurrently.
        max_model_len: context length in tokens, prompt and completion together.
        return_routes: completions carry the experts that their tokens took; for a mixture of experts.
        return_kept: completions carry the tokens that they were drawn from, where the sampling truncates.

    Raises:
        ValueError: the tokenizer needs remote code, or the folder lacks weights.
    """

    def __init__(
        self,
        model_path: str,
        *,
        dtype: str,
        device: torch.device | str,
        max_num_seqs: int,
        max_model_len: int,
        revision: str | None = None,
        trust_remote_code: bool = False,
        return_routes: bool = False,
        return_kept: bool = False,
    ) -> None:
        source = {"revision": revision, "trust_remote_code": trust_remote_code}
        self._tokenizer = load_tokenizer(model_path, revision, trust_remote_code)
        self._end_ids = end_token_ids(model_path, self._tokenizer, revision)
        pad = self._tokenizer.pad_token_id
        self._pad_id = self._end_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]
        read: Any = AutoModelForCausalLM.from_pretrained
        how = {"dtype": getattr(torch, dtype), "device_map": {"": torch.device(device)}}
        model = whole(read(model_path, **how, **source, **REPORTING), model_path)
        self._model: Any = model.eval().requires_grad_(False)  # Any: transformers' types for generate do not fit
        # Otherwise generate would apply the model's own sampling defaults as well, such as a repetition penalty.
        self._model.generation_config = GenerationConfig(eos_token_id=self._end_ids, pad_token_id=self._pad_id)
        disable_progress_bar()  # every publish would show one
        self._max_num_seqs = max_num_seqs
        self._max_model_len = max_model_len
        self._return_routes = return_routes
        self._return_kept = return_kept
        self._policy_version = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Group]:
        """Yield each prompt's Group as soon as the batch with its last sample ends. See `Engine.generate`."""
        budgets = completion_budgets(prompts, sampling, self._max_model_len)
        return self._stream(prompts, budgets, sampling)

    def _stream(self, prompts: Sequence[Prompt], budgets: Sequence[int], sampling: Sampling) -> Iterator[Group]:
        # Longest first: prompts of similar length share a batch, which keeps padding small.
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].token_ids))
        rows = [(i, sample) for i in order for sample in range(sampling.num_generations)]
        done: dict[int, list[Completion]] = {i: [] for i in order}
        for batch in self._batches(rows, prompts):
            completions = self._complete(
                [prompts[i].token_ids for i, _ in batch],
                [request_seed(sampling, prompts[i]) + sample for i, sample in batch],
                torch.tensor([budgets[i] for i, _ in batch], device=self._model.device),
                sampling,
            )
            for (i, _), completion in zip(batch, completions, strict=True):
                done[i].append(completion)
                if len(done[i]) == sampling.num_generations:
                    yield prompts[i].group(done.pop(i))

    def _batches(self, rows: list[tuple[int, int]], prompts: Sequence[Prompt]) -> Iterator[list[tuple[int, int]]]:
        """Rows that are decoded together; with prompts of one length if padding would become part of the model's state.

        DeepSeek-V4 compresses every 4 or 128 positions of a row, and padding on the left would move what is in them.
        """

        def length(row: tuple[int, int]) -> int:
            return len(prompts[row[0]].token_ids) if self._model._is_stateful else 0

        for _, group in groupby(rows, key=length):
            alike = list(group)
            for start in range(0, len(alike), self._max_num_seqs):
                yield alike[start : start + self._max_num_seqs]

    def _complete(
        self, prompt_ids: list[Sequence[int]], seeds: list[int], budgets: Tensor, sampling: Sampling
    ) -> list[Completion]:
        """One completion per row; budgets: [B] tokens."""
        # Padded here: the tokenizer may have no PAD token.
        prompt_length = max(map(len, prompt_ids))
        padding = [prompt_length - len(ids) for ids in prompt_ids]
        rows = [[self._pad_id] * left + list(ids) for left, ids in zip(padding, prompt_ids, strict=True)]
        mask = [[0] * left + [1] * (prompt_length - left) for left in padding]
        sampler = _Sampler(sampling, seeds, self._model.device, record_kept=self._return_kept and sampling.truncates)
        stop = _StopTexts(self._tokenizer, sampling.stop, prompt_length)
        with recorded_routes(self._model) if self._return_routes else nullcontext() as recorded:
            output = self._model.generate(
                input_ids=torch.tensor(rows, device=self._model.device),
                attention_mask=torch.tensor(mask, device=self._model.device),
                max_new_tokens=int(budgets.max()),
                do_sample=False,
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([_RowBudget(prompt_length + budgets), stop]),
            )
        tokens = output[:, prompt_length:]  # [B, T]
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()  # [B, T]
        is_end = torch.isin(tokens, torch.tensor(self._end_ids, device=tokens.device))
        # Finished rows are padded, and PAD may be an end token: the first one counts.
        first_end = torch.where(is_end.any(1), is_end.int().argmax(1), tokens.shape[1])
        first_end = torch.minimum(first_end, stop.last_tokens(tokens))
        lengths = torch.minimum(first_end + 1, budgets).tolist()
        stopped = (first_end < budgets).tolist()
        token_ids = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
        kept = sampler.kept_tokens(lengths)
        texts = completion_texts(self._tokenizer, self._end_ids, token_ids)
        routes: list[Any] = [None] * len(rows)
        if recorded is not None:  # the last token of a row was never fed
            all_routes = recorded.rows(len(rows))
            ends = [prompt_length + length - 1 for length in lengths]
            routes = [row[left:end].copy() for row, left, end in zip(all_routes, padding, ends, strict=True)]
        return [
            Completion(
                token_ids=ids,
                logprobs=row[: len(ids)],
                text=cut_at_stop(text, sampling.stop),
                finish_reason="stop" if stop else "length",
                policy_version=self._policy_version,
                routes=taken,
                kept=drawn_from,
            )
            for ids, row, text, stop, taken, drawn_from in zip(
                token_ids, logprobs, texts, stopped, routes, kept, strict=True
            )
        ]

    def publish(self, weights: Iterable[tuple[str, Tensor]], policy_version: int) -> None:
        """Sample with these weights from now on; `grpo.model.weights.checkpoint_weights(model)` gives them."""
        # from_pretrained knows how checkpoint names map to this architecture's modules. Its result may share memory
        # with the given tensors, hence the copy.
        loaded, info = type(self._model).from_pretrained(
            None,
            config=self._model.config,
            state_dict=dict(weights),
            dtype=self._model.dtype,
            device_map={"": self._model.device},
            output_loading_info=True,
        )
        if unmatched := sorted(info["missing_keys"] | info["unexpected_keys"]):
            raise ValueError(
                f"weights {unmatched[:5]} ({len(unmatched)} in all) are missing or unknown: an update must contain "
                "every weight under its checkpoint name. Send grpo.model.weights.checkpoint_weights(model)."
            )
        source = loaded.state_dict()
        for name, tensor in self._model.state_dict().items():
            tensor.copy_(source[name])
        self._policy_version = policy_version

    def close(self) -> None:
        """Free the model's memory."""
        del self._model
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


class _Sampler(LogitsProcessor):
    """Samples by the Gumbel-max trick: the argmax of log-probs plus Gumbel noise is a draw from their softmax.

    `generate` then takes that argmax as if decoding greedily. Each row has its own random stream, independent of the
    rest of the batch, and only the sampled tokens' log-probs are kept, not all logits.
    """

    def __init__(self, sampling: Sampling, seeds: list[int], device: torch.device, *, record_kept: bool) -> None:
        self.logprobs: list[Tensor] = []  # one [B] per generated token
        self._num_rows = len(seeds)
        self._kept: list[np.ndarray] | None = [] if record_kept else None  # likewise: [K, 2] row and token id, by row
        self._warpers = LogitsProcessorList()
        self._generators = []
        if sampling.temperature > 0:
            self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if sampling.min_p > 0:
                self._warpers.append(MinPLogitsWarper(sampling.min_p))
            if sampling.top_k > 0:
                self._warpers.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        logprobs = self._warpers(input_ids, scores).log_softmax(-1)  # [B, V]; generate gives float32
        keys = logprobs
        if self._generators:
            noise = torch.empty_like(logprobs)
            for row, generator in zip(noise, self._generators, strict=True):
                row.exponential_(generator=generator)
            keys = logprobs - noise.log_()
        self.logprobs.append(logprobs.gather(1, keys.argmax(1, keepdim=True))[:, 0])
        if self._kept is not None:
            self._kept.append(logprobs.isfinite().nonzero().to(torch.int32).cpu().numpy())
        return keys

    def kept_tokens(self, lengths: Sequence[int]) -> list[KeptTokens | None]:
        """What each row's tokens were drawn from, as many as `lengths` says; None where nothing was recorded."""
        if self._kept is None:
            return [None] * self._num_rows
        sizes = np.stack([np.bincount(part[:, 0], minlength=self._num_rows) for part in self._kept], 1)  # [B, T]
        pairs = np.concatenate(self._kept)
        rows = np.split(pairs[np.argsort(pairs[:, 0], kind="stable"), 1], sizes.sum(1).cumsum()[:-1])
        offsets = [np.concatenate([[0], row[:length].cumsum()]) for row, length in zip(sizes, lengths, strict=True)]
        return [KeptTokens(ids[: ends[-1]].copy(), ends) for ids, ends in zip(rows, offsets, strict=True)]


class _RowBudget(StoppingCriteria):
    """Ends each row at its own length; lengths: [B] tokens, padding included."""

    def __init__(self, lengths: Tensor) -> None:
        self._lengths = lengths

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # noqa: ARG002
        return input_ids.shape[1] >= self._lengths


class _StopTexts(StoppingCriteria):
    """Ends a row once its completion contains one of the stop texts."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self._tokenizer, self._stop, self._prompt_length = tokenizer, stop, prompt_length
        # A token may be a single byte; one extra token, as the last one may extend past the stop text.
        self._window = max((len(text.encode()) for text in stop), default=0) + 1
        self._last: dict[int, int] = {}  # row -> index of the token that completes the stop text

    def last_tokens(self, tokens: Tensor) -> Tensor:
        """[B]: index within the completion of the token that completed a stop text, else T; tokens: [B, T]."""
        rows, length = tokens.shape
        return torch.tensor([self._last.get(row, length) for row in range(rows)], device=tokens.device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # noqa: ARG002
        length = input_ids.shape[1]
        rows = [row for row in range(len(input_ids)) if row not in self._last] if self._stop else []
        tails = input_ids[:, max(self._prompt_length, length - self._window) :]
        for row, text in zip(rows, self._tokenizer.batch_decode(tails[rows]) if rows else [], strict=True):
            if any(stop in text for stop in self._stop):
                self._last[row] = length - self._prompt_length - 1
        return torch.tensor([row in self._last for row in range(len(input_ids))], device=input_ids.device)
