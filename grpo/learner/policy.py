"""The policy: its weights, log-probs and optimizer steps.

Runs in one process, or data-parallel in many: whole in each (DDP), or sharded over them (FSDP2).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedModel, get_scheduler

from grpo.algorithm.loss import LossOutput
from grpo.learner.batch import MicroBatch, Sample, gathered
from grpo.learner.optim import adamw, moments
from grpo.learner.scoring import Around, Batching, completion_logprobs, compute_dtype, equally_many, forward
from grpo.model.adapters import adapter_weights
from grpo.model.checks import leaves_weights_out
from grpo.model.forward.mtp import mtp_layer
from grpo.model.load import CompletionLogProbs
from grpo.model.moe import Routes, moe_layers, record_routes, sequence_balance_loss, update_balance_bias
from grpo.model.replay import Replayed, RoutesError, RoutingReplay
from grpo.model.sharding import first_entry, local, shard, whole
from grpo.model.weights import checkpoint_weights, save_model
from grpo.recipe.errors import NonFiniteError
from grpo.recipe.optimizer import OptimizerConfig
from grpo.report.metrics import ExpertLoad, Mean, Metric, Sum, merge

# (logprobs, entropy, batch); where the batch has a target also (…, divergence, teacher_logprobs), see
# CompletionLogProbs.forward
LossFunction = Callable[..., LossOutput]
WEIGHTS_WATCHED = 64  # entries per tensor in metric weight_change


class Policy:
    """A model that learns.

    Args:
        model: as `load_model` returns it; trained in place.
        optimizer: AdamW, its schedule and the gradient norm.
        max_steps: optimizer steps that the schedule spans.
        temperature: at which completions are sampled, and so the one that log-probs are computed at.
        batching: the budget of a micro-batch; its layout is what the model's attention takes.
        balance_bias_update_speed: gamma of 2408.15664 for the experts' bias; 0 freezes it.
        sequence_balance_coefficient: alpha of V3's sequence-wise balance loss; 0: none.
        train_entropy: the loss has a term with the entropy's gradient.
        train_mtp: the model's multi-token prediction learns too, with the trunk detached; else it is frozen.
        replay: of the routes that samples carry; None: none does.
        mesh: the processes the model is sharded over, see grpo/stages/mesh.py; None: it is whole in each.
        offload: what is sharded over them is in host memory.
        offload_activations: what gradient checkpointing keeps is in host memory.
        send_adapters: engines get adapters as they are, not weights with adapters merged into them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerConfig,
        accelerator: Accelerator,
        *,
        max_steps: int,
        temperature: float,
        batching: Batching,
        balance_bias_update_speed: float = 0.0,
        sequence_balance_coefficient: float = 0.0,
        train_entropy: bool = False,
        train_mtp: bool = False,
        replay: RoutingReplay | None = None,
        mesh: DeviceMesh | None = None,
        offload: bool = False,
        offload_activations: bool = False,
        send_adapters: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.send_adapters = send_adapters
        self.model = model
        self.batching = batching.for_model(model, accelerator.device)
        if sequence_balance_coefficient or train_mtp:  # of whole samples
            self.batching = replace(self.batching, shared=False)
        self.max_grad_norm = optimizer.max_grad_norm
        self.balance_bias_update_speed = balance_bias_update_speed
        self.sequence_balance_coefficient = sequence_balance_coefficient
        self.is_moe = bool(moe_layers(model))
        self.replay = replay
        self.mesh = mesh
        self.mtp: list[Tensor] = []  # trained parameters of the multi-token prediction
        if (layer := mtp_layer(model)) is not None:
            layer.requires_grad_(train_mtp)
            self.mtp = [parameter for parameter in layer.parameters() if train_mtp]
        scorer: Any = CompletionLogProbs(
            model,
            temperature,
            train_entropy=train_entropy,
            train_mtp=train_mtp,
            offload_activations=offload_activations,
        ).train()
        if mesh is None:
            if accelerator.ddp_handler and leaves_weights_out(model.config):  # DDP would wait for their gradients
                accelerator.ddp_handler.find_unused_parameters = True
            self.scorer = accelerator.prepare_model(scorer)
        else:  # accelerate only adds its autocast
            sharded = shard(scorer, model, mesh, compute_dtype(accelerator), offload=offload)
            self.scorer = accelerator.prepare_model(sharded, device_placement=not offload, evaluation_mode=True)
        self.optimizer = adamw(model, optimizer)  # of the parameters as they are now: sharded, where they stay
        self.scheduler = get_scheduler(optimizer.lr_scheduler_type, self.optimizer, optimizer.warmup_steps, max_steps)
        accelerator.register_for_checkpointing(self.scheduler)
        # The weights are in the checkpoint as a Hugging Face folder, the optimizer beside them (restore.py).
        accelerator.register_save_state_pre_hook(lambda _models, weights, _folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, _folder: models.clear())

    def set_temperature(self, temperature: float) -> None:
        """Compute log-probs at another temperature from now on."""
        self.accelerator.unwrap_model(self.scorer).set_temperature(temperature)

    def logprobs(self, samples: Sequence[Sample], *, replay: bool = True) -> list[np.ndarray]:
        """Log-probs [n] of each sample's completion, without gradient.

        replay: under the routes that samples carry; False: under the model's own.
        """
        return self._logprobs(samples, lambda _, batch: self._replaying(batch) if replay else nullcontext())

    def logprobs_and_routes(self, samples: Sequence[Sample]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Log-probs, and the routes taken for them: [tokens before the last, layers, k] of each sample."""
        routes: dict[int, np.ndarray] = {}

        @contextmanager
        def recording(indices: Sequence[int], batch: MicroBatch) -> Iterator[None]:
            with record_routes(self.model) as recorded:
                yield
            taken = gathered([samples[i] for i in indices], batch, recorded.compact())
            routes.update(zip(indices, taken, strict=True))

        logprobs = self._logprobs(samples, recording)
        return logprobs, [routes[i] for i in range(len(samples))]

    def check_routes(self, samples: Sequence[Sample]) -> None:
        """Raise RoutesError, in all processes, where an engine's routes cannot be those of the model."""
        if self.replay is None:
            return
        faults: list[str] = []
        try:
            for sample in samples:
                if sample.routes is not None:
                    self.replay.check(sample.routes, sample=sample.problem_id, num_tokens=sample.length)
        except RoutesError as error:
            faults = [str(error)]
        if faults := gather_object(faults):
            raise RoutesError(faults[0])

    def _logprobs(self, samples: Sequence[Sample], around: Around) -> list[np.ndarray]:
        scorer = self.accelerator.unwrap_model(self.scorer)
        return completion_logprobs(scorer, samples, self.batching, self.accelerator, around=around)

    def _replaying(self, batch: MicroBatch) -> AbstractContextManager[Replayed]:
        return nullcontext(Replayed()) if self.replay is None else self.replay(batch.routes)

    def _watched(self) -> AbstractContextManager[Routes | None]:
        return record_routes(self.model) if self.is_moe else nullcontext()

    def update(self, samples: Sequence[Sample], loss_function: LossFunction) -> dict[str, Metric]:
        """One optimizer step on the samples of one mini-batch. The loss is a sum over all processes' tokens."""
        self.optimizer.zero_grad()
        batches = equally_many([[samples[i] for i in indices] for indices in self.batching.split(samples)])
        count = len(batches)
        num_samples = sum(gather_object([len(samples)])) if self.sequence_balance_coefficient else 0
        num_drafts = self._num_drafts(samples) if self.mtp else 0
        metrics: list[dict[str, Metric]] = []
        faults: list[str] = []
        for index, part in enumerate(batches):
            with self._reduction(is_last=index == count - 1):
                batch = self.batching.collate(part, self.accelerator.device)
                metrics.append(self._accumulate(batch, loss_function, num_samples, num_drafts))
            if not math.isfinite(loss := metrics[-1]["loss"].value):  # type: ignore[arg-type]
                faults.append(
                    f"micro-batch {index + 1} of {count}: the loss is {loss}. {_suspect(batch)}"
                    f"Its samples: {', '.join(s.problem_id for s in part[:5])}{', …' if len(part) > 5 else ''}."
                )
        if faults := gather_object(faults):  # raised in all processes: one alone would leave the others waiting
            raise NonFiniteError(faults[0])
        merged = merge(metrics)
        if self.replay is not None:
            fed = sum(sample.length - 1 for sample in samples)
            recorded = sum(len(sample.routes) for sample in samples if sample.routes is not None)
            merged["moe/replay_missing_ratio"] = Mean(fed - recorded, fed)
        if self.balance_bias_update_speed:
            update_balance_bias(self.model, self._global_load(merged["moe/load"]), self.balance_bias_update_speed)
        norm = self._clip_gradient()
        if not math.isfinite(norm):
            names = self._without_finite_gradient()
            raise NonFiniteError(
                f"the gradient is not finite in {len(names)} parameters ({', '.join(names[:3])}) while the loss of all "
                f"{count} micro-batches is. Its norm is {norm}; the learning rate {self.learning_rate:g}."
            )
        merged |= {"grad_norm": Mean(norm), "learning_rate": Mean(self.learning_rate)}
        before = self._some_weights()
        self.optimizer.step()
        merged["weight_change"] = Mean(self._relative_change(before))
        self.scheduler.step()
        return merged

    def rehearse(self, max_prompt_length: int, max_completion_length: int) -> None:
        """Forward and backward of the largest micro-batch of samples of full length, discarded.

        What is too large for the device is found now and not at the first long rollout. Moments are made before, so
        that everything a later update has in memory is there. Weights, gradients, moments and random states stay.

        Raises:
            ValueError: out of memory, with what to lower.
        """
        longest, device = max_prompt_length + max_completion_length, self.accelerator.device
        rows = max(1, self.batching.max_tokens // longest)
        embedding: Any = self.model.get_input_embeddings()
        ids = [i % embedding.weight.shape[0] for i in range(longest)]
        sample = Sample(
            problem_id="",
            prompt_ids=ids[:max_prompt_length],
            completion_ids=ids[max_prompt_length:],
            mini_batch=0,
            sampling_logprobs=0.0,
            advantages=0.0,
            token_weights=0.0,
        )
        devices = [] if device.type == "cpu" else [device]
        try:
            moments(self.model, self.optimizer)
            generators = torch.random.fork_rng(devices, device_type=device.type)
            with generators, self._reduction(is_last=True), self._watched() as routes:
                batch = replace(self.batching, shared=False).collate([sample] * rows, device)
                found: tuple[Any, ...] = forward(self.scorer, batch)  # drafts last, if they are trained
                total = found[0].sum() + found[1].sum() + sum(drafts.loss() for drafts in found[2:])
                if routes is not None and self.sequence_balance_coefficient:
                    total = total + self._balance_loss(routes, batch)
                self.accelerator.backward(0.0 * total)
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"trainer.max_tokens_per_micro_batch={self.batching.max_tokens}: a micro-batch of {rows} × {longest} "
                f"tokens does not fit into memory ({str(error).split('. ')[0]}). Lower it, or the lengths of prompts "
                "and completions; set trainer.gradient_checkpointing=true; or divide the weights over more processes "
                "with trainer.sharding=fsdp2."
            ) from error
        self.optimizer.zero_grad()

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        return float(self.scheduler.get_last_lr()[0])

    @torch.no_grad()
    def _some_weights(self) -> Tensor:
        """Evenly spaced entries of every trained tensor, at most WEIGHTS_WATCHED of each: those that are here."""
        parts = []
        for parameter in (p for p in self._trunk() if p.requires_grad):
            spacing = -(-parameter.numel() // WEIGHTS_WATCHED)
            parts.append(local(parameter).flatten()[-first_entry(parameter) % spacing :: spacing])
        return torch.cat(parts).float()

    def _relative_change(self, before: Tensor) -> float:
        """|w - w_before| / |w_before| over some entries of all processes' weights."""
        squares = torch.stack([(self._some_weights() - before).square().sum(), before.square().sum()])
        if self.mesh is not None:
            squares = self.accelerator.reduce(squares.to(self.accelerator.device), "sum")
        change, size = squares.tolist()  # type: ignore[union-attr]
        return math.sqrt(change / size)

    def _reduction(self, *, is_last: bool) -> AbstractContextManager[None]:
        """How a micro-batch's gradient is summed over processes.

        DDP sums once, in the last backward. FSDP must sum in each, for no process has room for a whole gradient; only
        the sum over whole copies of the model, where there are several, waits for the last.
        """
        if self.mesh is None:
            return nullcontext() if is_last else self.accelerator.no_sync(self.scorer)
        scorer: Any = self.scorer
        scorer.set_requires_all_reduce(is_last)
        return nullcontext()

    def _clip_gradient(self) -> float:
        """Clip to `max_grad_norm`; returns the norm before, of all processes' parts. One that is not finite clips none.

        A multi-token prediction is clipped on its own, so that the trunk's step is what it would be without.
        """
        groups = [group for group in (self._trunk(), self.mtp) if group]
        norms = [get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups]
        found = [float(whole(norm)) for norm in norms]
        if not all(map(math.isfinite, found)):
            return next(norm for norm in found if not math.isfinite(norm))
        for group, norm in zip(groups, norms, strict=True):
            clip_grads_with_norm_(group, self.max_grad_norm, norm)
        return found[0]

    def _trunk(self) -> list[Tensor]:
        """The parameters without a multi-token prediction's."""
        own = set(map(id, self.mtp))
        return [parameter for parameter in self.model.parameters() if id(parameter) not in own]

    def _num_drafts(self, samples: Sequence[Sample]) -> int:
        """Sampled tokens after a sampled token, in all processes."""
        return sum(gather_object([sum(int((s.sampled[1:] & s.sampled[:-1]).sum()) for s in samples)]))

    def _without_finite_gradient(self) -> list[str]:
        """Parameters with a gradient that is not finite in some process."""
        gradients = [(name, local(p.grad)) for name, p in self.model.named_parameters() if p.grad is not None]
        return list(dict.fromkeys(gather_object([name for name, part in gradients if not part.isfinite().all()])))

    def _accumulate(
        self, batch: MicroBatch, loss_function: LossFunction, num_samples: int, num_drafts: int
    ) -> dict[str, Metric]:
        """Forward and backward of one micro-batch.

        num_samples: of the mini-batch, in all processes, if balanced; num_drafts: likewise, if they are trained.
        """
        # Open until after the backward: gradient checkpointing runs the layers again and must find the same hooks.
        with self._replaying(batch) as replayed, self._watched() as routes:
            logprobs, entropy, *others = forward(self.scorer, batch)
            drafts: Any = others.pop() if self.mtp else None
            output = loss_function(logprobs, entropy, batch, *others)
            loss, measured = output.loss, output.metrics
            if routes is not None and self.sequence_balance_coefficient:
                balance = self._balance_loss(routes, batch) / max(1, num_samples)
                loss, measured = loss + balance, {**measured, "moe/sequence_balance_loss": Sum(balance.item())}
            total = loss
            if drafts is not None:
                draft_loss = drafts.loss()
                total = loss + draft_loss / max(1, num_drafts)
                greedy, sampled = drafts.acceptance()
                sums = {"loss": draft_loss, "greedy_acceptance": greedy, "acceptance": sampled}
                of_drafts = {f"mtp/{name}": Mean(part.item(), len(drafts.targets)) for name, part in sums.items()}
                measured = {**measured, **of_drafts}
            # The loss is normalised over all processes, so the sum of their gradients is wanted; DDP takes the mean.
            self.accelerator.backward(total * (self.accelerator.num_processes if self.mesh is None else 1))
        metrics: dict[str, Metric] = {
            **measured,
            "loss": Sum(loss.item()),
            "entropy": Mean(float(entropy.detach().sum()), entropy.numel()),
        }
        if routes is not None:
            metrics["moe/load"] = ExpertLoad(routes.counts(batch.copies).cpu().numpy())
        if replayed.num_tokens:
            changed = torch.stack(replayed.changed)  # [layers]
            metrics["moe/replay_changed_ratio"] = Mean(changed.sum().item(), replayed.num_tokens * len(changed))
        return metrics

    def _balance_loss(self, routes: Routes, batch: MicroBatch) -> Tensor:
        """The sequence-wise balance loss, summed over the samples of a micro-batch and over the layers."""
        starts = batch.position_ids.flatten() == 0  # of rows, or of the samples in one packed row
        sequences = (starts.cumsum(0) - 1).where(batch.valid.flatten(), -1)
        layers = zip(routes.scores, routes.indices, strict=True)
        alpha = self.sequence_balance_coefficient
        return torch.stack([sequence_balance_loss(s, i.shape[-1], sequences, alpha).sum() for s, i in layers]).sum()

    def _global_load(self, load: Metric) -> Tensor:
        """Tokens per layer and expert, over all processes: [layers, experts]."""
        assert isinstance(load, ExpertLoad)
        counts = torch.from_numpy(load.counts).to(self.accelerator.device)
        return self.accelerator.reduce(counts, "sum")  # type: ignore[return-value]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a publisher is given: all weights under their checkpoint names, or adapters under peft's.

        If they are sharded, every process takes all.
        """
        return adapter_weights(self.model) if self.send_adapters else checkpoint_weights(self.model)

    def save(self, folder: Path) -> None:
        """Write the model as a Hugging Face folder. All processes call it, the main one writes."""
        save_model(self.model, folder, is_writer=self.accelerator.is_main_process)


def _suspect(batch: MicroBatch) -> str:
    """Which of the loss's inputs is already not finite, as a sentence, or nothing."""
    inputs = {"advantages": batch.advantages, "old log-probs": batch.old_logprobs, "reference": batch.ref_logprobs}
    bad = [name for name, tensor in inputs.items() if tensor is not None and not tensor.isfinite().all()]
    return f"Its {', '.join(bad)} are not finite. " if bad else "Its inputs are finite: the weights have diverged. "
