"""From scored groups to micro-batches under a token budget.

    ScoredGroups + Plan --assemble--> Samples --pack--> groups of Samples --collate--> MicroBatches of tensors

Samples whose gradient is zero are dropped before any forward; the token weights of the others come from the full batch,
so the gradient is the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from grpo.algorithm.plan import Plan
from grpo.model.forward.head import Kept
from grpo.model.forward.packed import Segments
from grpo.model.forward.teacher import Target
from rollout.types import KeptTokens

if TYPE_CHECKING:
    from rewards.runner.score import ScoredGroup
    from rollout.types import Group

TokenValues = float | Sequence[float] | np.ndarray  # one value for all tokens of a completion, or one for each


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion, ready to train on. Below `mini_batch` every field holds values of the completion's n tokens.

    Sample(
        problem_id="countdown/train/17",
        prompt_ids=[1, 7],
        completion_ids=[5, 2],
        mini_batch=0,                    # the optimizer step of the rollout it belongs to
        mask=True,                       # False: not sampled by the policy (a tool's output), so not trained on
        sampling_logprobs=[-0.1, -0.3],  # the engine's
        policy_version=3,                # optimizer steps before the weights that sampled it were published
        staleness=0,                     # optimizer steps since then, before the rollout's first
        advantages=0.7,
        token_weights=0.01,              # how much a token counts in the loss
        old_logprobs=None,               # the trainer's, before the rollout's first update; None: this is that update
        ref_logprobs=None,               # None: no KL term
        selected=None,                   # tokens that Clip-Cov or KL-Cov holds back
        target=None,                     # distillation: what a teacher says of the sampled tokens
        routes=None,                     # [R, layers, k] experts that the R tokens before the last took, to be replayed
        kept=None,                       # what the sampler kept for each token; None: the whole vocabulary
    )
    """

    problem_id: str
    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    mini_batch: int
    mask: TokenValues = True
    sampling_logprobs: TokenValues
    policy_version: TokenValues = 0
    staleness: TokenValues = 0
    advantages: TokenValues
    token_weights: TokenValues
    old_logprobs: TokenValues | None = None
    ref_logprobs: TokenValues | None = None
    selected: TokenValues | None = None
    target: Target | None = None
    routes: np.ndarray | None = None
    kept: KeptTokens | None = None

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def sampled(self) -> np.ndarray:
        """[n] bool: the completion tokens that the policy sampled."""
        return np.broadcast_to(np.asarray(self.mask, dtype=bool), len(self.completion_ids))

    def of_positions(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        """A field's values of all positions: those of prompt tokens, then those of the completion's before its last."""
        values = getattr(self, name)
        if values is None:
            return None
        start = max(0, len(values) - len(self.completion_ids) + 1)
        return values[:start], values[start:]

    def shares_prompt(self, other: "Sample") -> bool:
        """Whether one forward of the prompt serves both: the same tokens, and the same values of its positions."""
        if self.prompt_ids != other.prompt_ids:
            return False
        for name in PER_POSITION:
            mine, theirs = self.of_positions(name), other.of_positions(name)
            if (mine is None) != (theirs is None):
                return False
            if mine is not None and theirs is not None and not np.array_equal(mine[0], theirs[0]):
                return False
        return True

    def per_token(self, name: str) -> np.ndarray:
        """The values of a field for the tokens that the policy sampled."""
        return np.broadcast_to(getattr(self, name), len(self.completion_ids))[self.sampled]


@dataclass(frozen=True, slots=True)
class OfPosition:
    """Marks a field with values of all positions, prompts included: [B, L, ...].

    A sample has them for its R tokens before the last, which no engine feeds to the model. `missing` stands where there
    are none: on padding, the last token, and a prompt whose beginning came from a cache.
    """

    dtype: type[np.signedinteger]
    missing: int


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward and backward: B rows of L tokens, of which the policy sampled T.

    Rows are padded on the right, so causal attention needs no mask: no token sees what comes after it. With `packed`,
    all samples lie in one row, told apart by positions that restart at 0 or by `segments`. With `shared`, neighbours
    with the same prompt, and the same values of its positions, share its tokens.
    """

    input_ids: Tensor  # [B, L]
    position_ids: Tensor  # [B, L]
    copies: Tensor  # [B, L] of how many samples it is a token; 0 on padding
    mask: Tensor  # [B, L] bool; True on the T sampled tokens
    logit_positions: Tensor  # [T] index into the flattened [B * L] of the position that predicts the token
    targets: Tensor  # [T]
    sequences: Tensor  # [T] which of the samples, 0 … S - 1, a token belongs to
    segments: Segments | None  # of the one row, if packed
    target: Target | None  # of the one teacher of all these samples
    kept: Kept | None  # what each of the T tokens was drawn from
    # From here on, `collate` fills each [T] field from the Samples' field of the same name.
    sampling_logprobs: Annotated[Tensor, torch.float32]
    policy_version: Annotated[Tensor, torch.int64]
    staleness: Annotated[Tensor, torch.int64]
    advantages: Annotated[Tensor, torch.float32]
    token_weights: Annotated[Tensor, torch.float32]
    old_logprobs: Annotated[Tensor | None, torch.float32]
    ref_logprobs: Annotated[Tensor | None, torch.float32]
    selected: Annotated[Tensor | None, torch.bool]
    # And these [B, L, ...] fields, likewise.
    routes: Annotated[Tensor | None, OfPosition(np.int16, missing=-1)]

    @property
    def valid(self) -> Tensor:  # [B, L] bool; False on padding
        return self.copies > 0

    def to(self, device: torch.device) -> "MicroBatch":
        tensors: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name != "segments"}
        return replace(self, **{n: t.to(device, non_blocking=True) for n, t in tensors.items() if t is not None})


_MARKS = {
    name: kind.__metadata__[0]
    for name, kind in get_type_hints(MicroBatch, include_extras=True).items()
    if get_origin(kind) is Annotated
}
PER_TOKEN: dict[str, torch.dtype] = {n: mark for n, mark in _MARKS.items() if isinstance(mark, torch.dtype)}
PER_POSITION: dict[str, OfPosition] = {n: mark for n, mark in _MARKS.items() if isinstance(mark, OfPosition)}


def assemble(groups: "Sequence[ScoredGroup]", local: Plan, *, keep_zero_advantage: bool) -> list[Sample]:
    """This process's samples that have a gradient, in the order of the groups.

    A sample has none when its token weight is zero (masked or empty), or when its advantage is zero and only the
    advantage contributes (`keep_zero_advantage` is for beta > 0).
    """
    samples = []
    for index, scored in enumerate(groups):
        plans = (local.has_advantage[index], local.token_weights[index], local.mini_batch[index])
        for place, (completion, teaches, token_weight, step) in enumerate(
            zip(scored.group.completions, *plans, strict=True)
        ):
            if token_weight > 0 and (teaches or keep_zero_advantage):
                samples.append(
                    Sample(
                        problem_id=scored.group.problem.id,
                        prompt_ids=scored.group.prompt_ids,
                        completion_ids=completion.token_ids,
                        mini_batch=int(step),
                        mask=True if completion.mask is None else completion.mask,
                        sampling_logprobs=completion.logprobs,
                        policy_version=completion.policy_version,
                        advantages=local.of_tokens((index, place), len(completion.token_ids)),
                        token_weights=float(token_weight),
                        routes=completion.routes,
                        kept=completion.kept,
                    )
                )
    return samples


def unweighted(groups: "Iterable[Group]") -> list[Sample]:
    """Every completion as a sample that only has log-probs computed: it counts in no loss."""
    return [
        Sample(
            problem_id=group.problem.id,
            prompt_ids=group.prompt_ids,
            completion_ids=completion.token_ids,
            mini_batch=0,
            sampling_logprobs=completion.logprobs,
            advantages=0.0,
            token_weights=0.0,
            routes=completion.routes,
            kept=completion.kept,
        )
        for group in groups
        for completion in group.completions
    ]


def attach(samples: Sequence[Sample], **values: Sequence[Any]) -> list[Sample]:
    """The samples with fields filled in: attach(samples, old_logprobs=[[n], …])."""
    columns = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [replace(sample, **column) for sample, column in zip(samples, columns, strict=True)]


def pack(samples: Sequence[Sample], *, max_tokens: int, packed: bool = False, shared: bool = False) -> list[list[int]]:
    """Indices of `samples` grouped into micro-batches of at most `max_tokens` tokens, padding included.

    Longest first, so that the rows of a micro-batch are of nearly equal length; `shared`, those of one prompt together.
    A sample longer than the budget gets a micro-batch of its own.
    """
    order = sorted(range(len(samples)), key=lambda i: -samples[i].length)
    if shared:
        first: dict[tuple[int, ...], int] = {}
        order = sorted(order, key=lambda i: first.setdefault(tuple(samples[i].prompt_ids), len(first)))
    batches: list[list[int]] = []
    used = 0
    for i in order:
        cost = samples[i].length if packed or not batches else samples[batches[-1][0]].length
        if shared and batches and samples[i].shares_prompt(samples[batches[-1][-1]]):
            cost = len(samples[i].completion_ids)
        if not batches or used + cost > max_tokens:
            batches.append([])
            used, cost = 0, samples[i].length
        batches[-1].append(i)
        used += cost
    return batches


def collate(samples: Sequence[Sample], *, pad_token_id: int, packed: bool = False, shared: bool = False) -> MicroBatch:
    """Tensors of one micro-batch. Without samples: one row of padding and T = 0, for a process that has run out."""
    segments = Segments.of(samples, shared=shared) if packed and samples else None
    lengths = [sample.length for sample in samples] or [1]
    rows, width = (1, sum(segments.lengths)) if segments else (len(lengths), max(lengths))
    places = _places(samples, segments, width)
    input_ids = np.full(rows * width, pad_token_id, dtype=np.int64)
    position_ids = np.tile(np.arange(width), rows)
    copies = np.zeros(rows * width, dtype=np.int64)
    sampled, predicting = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for (prompt, completion), sample in zip(places, samples, strict=True):
        before = len(sample.prompt_ids)
        for start, ids, offset in ((prompt, sample.prompt_ids, 0), (completion, sample.completion_ids, before)):
            end = start + len(ids)
            input_ids[start:end] = ids
            position_ids[start:end] = np.arange(offset, offset + len(ids))
            copies[start:end] += 1
        (own,) = np.nonzero(sample.sampled)
        sampled.append(completion + own)
        predicting.append(np.where(own > 0, completion + own - 1, prompt + before - 1))
    tokens = np.concatenate(sampled)
    mask = np.zeros(rows * width, dtype=bool)
    mask[tokens] = True
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids).view(rows, width),
        position_ids=torch.from_numpy(position_ids).view(rows, width),
        copies=torch.from_numpy(copies).view(rows, width),
        mask=torch.from_numpy(mask).view(rows, width),
        logit_positions=torch.from_numpy(np.concatenate(predicting)),
        targets=torch.from_numpy(input_ids[tokens]),
        sequences=torch.from_numpy(np.repeat(np.arange(len(samples)), [int(s.sampled.sum()) for s in samples])),
        segments=segments,
        target=_joined([sample.target for sample in samples if sample.target is not None]),
        kept=_kept(samples),
        **{name: _concatenated(samples, name, dtype) for name, dtype in PER_TOKEN.items()},
        **{name: _placed(samples, name, mark, places, (rows, width)) for name, mark in PER_POSITION.items()},
    )


def _joined(targets: Sequence[Target]) -> Target | None:
    """The targets of one teacher, one after the other."""
    return replace(targets[0], hidden=torch.cat([target.hidden for target in targets])) if targets else None


def _kept(samples: Sequence[Sample]) -> Kept | None:
    """What the T sampled tokens were drawn from; None if the samples do not say."""
    sizes, ids = [np.zeros(1, np.int64)], []
    for sample in samples:
        if sample.kept is not None:
            counts = np.diff(sample.kept.offsets)
            sizes.append(counts[sample.sampled])
            ids.append(sample.kept.ids[np.repeat(sample.sampled, counts)])
    if not ids:
        return None
    assert len(ids) == len(samples)  # of one rollout all have it or none
    return Kept(torch.from_numpy(np.concatenate(ids)), np.concatenate(sizes).cumsum())


def _concatenated(samples: Sequence[Sample], name: str, dtype: torch.dtype) -> Any:
    """[T] values of a field, or None where the samples do not have it."""
    if any(getattr(sample, name) is None for sample in samples):
        return None
    return torch.from_numpy(np.concatenate([np.empty(0), *(s.per_token(name) for s in samples)])).to(dtype)


def _placed(
    samples: Sequence[Sample], name: str, mark: OfPosition, places: Sequence[tuple[int, int]], grid: tuple[int, int]
) -> Any:
    """[B, L, ...] values of a field, or None where no sample has it. Samples with one prompt have the same there."""
    values = {i: parts for i, sample in enumerate(samples) if (parts := sample.of_positions(name)) is not None}
    if not values:
        return None
    inner = next(iter(values.values()))[0].shape[1:]
    placed = np.full((grid[0] * grid[1], *inner), mark.missing, dtype=mark.dtype)
    for i, parts in values.items():
        prompt, completion = places[i]
        ends = (prompt + len(samples[i].prompt_ids), completion + len(samples[i].completion_ids) - 1)
        for end, part in zip(ends, parts, strict=True):
            placed[end - len(part) : end] = part
    return torch.from_numpy(placed).view(*grid, *inner)


def gathered(samples: Sequence[Sample], batch: MicroBatch, values: np.ndarray) -> list[np.ndarray]:
    """Each sample's part of values [B * L, ...] of the positions of its micro-batch: [length - 1, ...]."""
    parts = []
    for sample, (prompt, completion) in zip(
        samples, _places(samples, batch.segments, batch.copies.shape[1]), strict=True
    ):
        own = values[completion : completion + len(sample.completion_ids) - 1]
        parts.append(np.concatenate([values[prompt : prompt + len(sample.prompt_ids)], own]))
    return parts


def _places(samples: Sequence[Sample], segments: Segments | None, width: int) -> list[tuple[int, int]]:
    """Where each sample's prompt and its completion start among the B * L positions."""
    if segments:
        return segments.places
    return [(i * width, i * width + len(sample.prompt_ids)) for i, sample in enumerate(samples)]
