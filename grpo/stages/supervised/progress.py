"""What an SFT run shows and keeps while it trains: lines of progress, metrics.jsonl, complete checkpoints."""

import json
import time
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from grpo.learner import checkpoint as checkpoints
from grpo.model.checks import refuse_not_finite
from grpo.model.moe import load_metrics
from grpo.report.records import METRICS_FILE, cut_after, read_rows
from grpo.stages.run_folder import run_id
from grpo.stages.supervised.balanced import BalancedTrainer
from grpo.stages.supervised.basis import Basis


class Progress(TrainerCallback):
    """Called by the trainer in every process; the main process writes."""

    def __init__(self, trainer: BalancedTrainer, basis: Basis, resumed: Path | None, epochs_per_step: float) -> None:
        self.trainer, self.settings, self.basis = trainer, trainer.settings, basis
        self.output = Path(str(trainer.args.output_dir))
        self.epochs_per_step = epochs_per_step
        self.loads: Tensor | None = None  # [layers, E], of all processes since the last row
        self.tokens = 0  # at the last row
        self.earlier_tokens = 0  # of the run that is resumed; the trainer counts its own
        self.mark = time.perf_counter()
        if not trainer.is_world_process_zero():
            return
        metrics = self.output / METRICS_FILE
        if resumed is None:
            metrics.write_text("", encoding="utf-8")
            return
        cut_after(metrics, checkpoints.step_of(resumed))
        self.earlier_tokens = self.tokens = max((row["num_tokens"] for row in read_rows(metrics)), default=0)

    def on_pre_optimizer_step(self, *_args: Any, **_kwargs: Any) -> None:
        """Balance the experts."""
        loads = self.trainer.balance()
        if loads is not None:
            self.loads = loads if self.loads is None else self.loads + loads

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_kwargs: Any) -> None:
        """The last step and every saved one are logged: a resumed run counts tokens from the last row on."""
        control.should_log |= control.should_save or state.global_step >= state.max_steps

    def on_log(
        self, _args: Any, state: TrainerState, _control: Any, logs: dict[str, Any] | None = None, **_kwargs: Any
    ) -> None:
        """A row of metrics.jsonl: means since the last row."""
        if not logs or "loss" not in logs:  # the summary after training
            return
        refuse_not_finite(logs, state.global_step)
        if not state.is_world_process_zero:
            return
        now, tokens = time.perf_counter(), self.earlier_tokens + int(logs["num_tokens"])
        row = {"step": state.global_step, "epoch": state.global_step * self.epochs_per_step, "num_tokens": tokens}
        row |= {k: logs[k] for k in ("learning_rate", "loss", "grad_norm", "entropy", "mean_token_accuracy")}
        row |= {name: value for name, value in logs.items() if name.startswith("mtp/")}
        if self.loads is not None:
            row |= load_metrics(self.loads)
            shares = self.loads.double() / self.loads.sum(-1, keepdim=True)
            row["moe/load"] = [[round(share, 6) for share in layer] for layer in shares.tolist()]
        row |= {"tokens_per_second": (tokens - self.tokens) / (now - self.mark), "time/train": now - self.mark}
        self.loads, self.tokens, self.mark = None, tokens, now
        with (self.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shown = {name: value for name, value in row.items() if name not in ("moe/load", "time/train")}
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()), flush=True)

    def on_save(self, _args: Any, state: TrainerState, *_rest: Any, **_kwargs: Any) -> None:
        """Mark the checkpoint as complete once every process has written its part, then delete old ones."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            folder = checkpoints.checkpoint_path(self.output, state.global_step)
            self.basis.write(folder)
            checkpoints.write_mark(folder, checkpoints.Mark(step=state.global_step, run=run_id(self.output)))
            checkpoints.rotate(self.output, self.settings.save_total_limit)

    def on_train_begin(self, *_args: Any, **_kwargs: Any) -> None:
        """Loading is not training time."""
        self.mark = time.perf_counter()
