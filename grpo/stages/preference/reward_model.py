"""Stage `reward_model`: a sequence classifier with one output, trained on preference pairs by TRL's RewardTrainer.

The texts are built by `rewards.models.reward_input`, which the reward `reward_model` reads from the trained folder, so
that what is scored is what was trained. A MoE's balance bias is a buffer and stays as it is. Left out: LoRA.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)

from grpo.learner import checkpoint as checkpoints
from grpo.learner.savable import check_saving
from grpo.model.checks import check_finite, check_rotary, check_vocabulary, leaves_weights_out, refuse_not_finite
from grpo.model.forward.grouped import keep_attention_fused
from grpo.model.load import disable_dropout
from grpo.model.moe import moe_layers
from grpo.recipe.errors import RefusedError
from grpo.recipe.stages.preference import PreferenceData, RewardModelRecipe
from grpo.report.records import METRICS_FILE, cut_after
from grpo.stages.parts import refusals
from grpo.stages.run_folder import run_id
from grpo.stages.supervised.basis import Basis, fingerprint
from grpo.stages.supervised.stopping import StopsForSignals
from rewards.models.reward_input import RewardInput
from rewards.text import Text, completion_text
from rollout.data.dataset import DatasetSource
from rollout.data.prompts import R1_ZERO
from rollout.engines.base import check_context, load_tokenizer
from rollout.support.weights import REPORTING, whole
from rollout.types import Problem

if TYPE_CHECKING:
    from datasets import Dataset
    from trl.trainer.reward_config import RewardConfig


def run_reward_model(recipe: RewardModelRecipe) -> Path:
    """Train, and write a folder that AutoModelForSequenceClassification and the reward `reward_model` open.

    Raises:
        RefusedError: the pairs lack a column, none is short enough, the model has no room for one, or a checkpoint was
            trained on others.
        NonFiniteError: a loss, a gradient or a weight is not finite.
    """
    from trl.trainer.reward_trainer import RewardTrainer

    class Trainer(RewardTrainer):
        def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            """Do nothing: `_load` has done it. transformers 5.19's own loses a MoE's experts, with a mere warning."""

    output, section = recipe.output_dir, recipe.model
    state = PartialState()
    shown = reward_input(recipe.data)
    checkpoint = checkpoints.find_checkpoint(output, recipe.trainer.resume_from_checkpoint)
    with refusals():
        tokenizer = load_tokenizer(section.model_name_or_path, section.revision, section.trust_remote_code)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        pairs = load_pairs(recipe.data, tokenizer, shown)
        train, held_out = split(pairs, recipe.data.num_held_out)
        basis = Basis(fingerprint(rows := _dataset(train)))
        if checkpoint:
            basis.check(checkpoint, recipe.trainer.allow_changes)
    if state.is_main_process:
        dropped = pairs.num_rows - len(pairs.rows)
        print(f"{len(train)} pairs to train on, {len(held_out)} held out, {dropped} dropped as too long", flush=True)
    arguments = _arguments(recipe, state.num_processes, evaluate=bool(held_out), starts=checkpoint is None)
    set_seed(recipe.trainer.seed)  # the new head's weights
    with refusals():
        model = _load(recipe, tokenizer, shown, checkpoint)
        check_finite(model)
        check_vocabulary(model, len(tokenizer))
        longest = max(len(ids) for pair in pairs.rows for ids in (pair.chosen, pair.rejected))
        check_context(model.config, longest)
        check_rotary(model.config, longest)
        check_saving(model, tokenizer, output, copies=4, trust_remote_code=recipe.model.trust_remote_code)
    if leaves_weights_out(model.config):
        arguments.ddp_find_unused_parameters = True
    if state.is_main_process:
        cut_after(output / METRICS_FILE, checkpoints.step_of(checkpoint) if checkpoint else -1)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=_dataset(held_out) if held_out else None,
        processing_class=tokenizer,
        callbacks=[stopping := StopsForSignals(), _Records(output, basis)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stopping.check()
    check_finite(model)
    trainer.save_model(str(output))
    if held_out:
        trainer.evaluate()
    return output


# -- pairs


@dataclass(frozen=True, slots=True)
class PairTokens:
    """PairTokens("thank Ann for 7", chosen=[1, 40, 2], rejected=[1, 41, 2])"""

    prompt: str
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class LoadedPairs:
    num_rows: int  # of the dataset
    rows: list[PairTokens]  # without those that are too long


def reward_input(data: PreferenceData) -> RewardInput:
    return RewardInput(
        template=R1_ZERO if data.template == "r1_zero" else data.template,
        summary_only=data.summary_only,
        max_length=data.max_length,
        special_tokens=True,
    )


def load_pairs(data: PreferenceData, tokenizer: PreTrainedTokenizerBase, shown: RewardInput) -> LoadedPairs:
    """The dataset's pairs as the model reads them."""
    source = DatasetSource(
        data.dataset_name, config=data.dataset_config, split=data.dataset_split, columns=data.columns
    )
    problems = [source[i] for i in range(source.size)]
    if missing := [name for name in ("chosen", "rejected") if name not in problems[0].columns]:
        raise RefusedError(
            f"data.dataset_name={data.dataset_name!r} has no column {missing[0]!r}; a pair needs prompt, chosen and "
            f"rejected. It has: {', '.join(source.column_names)}. Map it: data.columns: {{{missing[0]}: …}}."
        )
    prompts: list[Text] = [problem.prompt for problem in problems]
    # Not cut, at the tokenizer's own limit neither: a pair that is too long is dropped, as TRL does.
    whole = replace(shown, max_length=2**31 - 1)
    chosen, rejected = (
        whole.token_ids(tokenizer, prompts, [_answer(problem, name) for problem in problems])
        for name in ("chosen", "rejected")
    )
    rows = [
        PairTokens(json.dumps(prompt), better, worse)
        for prompt, better, worse in zip(prompts, chosen, rejected, strict=True)
        if max(len(better), len(worse)) <= data.max_length
    ]
    if not rows:
        shortest = min(max(len(a), len(b)) for a, b in zip(chosen, rejected, strict=True))
        raise RefusedError(
            f"data.max_length={data.max_length}: all {len(problems)} pairs are longer, the shortest has {shortest} "
            "tokens. Raise it."
        )
    return LoadedPairs(len(problems), rows)


def split(pairs: LoadedPairs, num_held_out: int) -> tuple[list[PairTokens], list[PairTokens]]:
    """(training, held out): whole prompts are held out, always the same ones, until there are num_held_out pairs."""

    def order(pair: PairTokens) -> bytes:
        return hashlib.blake2b(pair.prompt.encode(), digest_size=8).digest()

    by_prompt = sorted(pairs.rows, key=order)
    end = min(num_held_out, len(by_prompt))
    while 0 < end < len(by_prompt) and by_prompt[end].prompt == by_prompt[end - 1].prompt:
        end += 1
    if end == len(by_prompt):
        raise RefusedError(
            f"data.num_held_out={num_held_out}: no pairs are left to train on of {len(by_prompt)}. Lower it."
        )
    return by_prompt[end:], by_prompt[:end]


def _answer(problem: Problem, name: str) -> str:
    answer = problem.columns[name]
    if not answer or not isinstance(answer, str | list):
        raise RefusedError(
            f"{problem.id}: the column {name!r} is {answer!r:.80}; a pair needs text or messages there. Correct or "
            "remove the row."
        )
    return completion_text(answer)


def _dataset(pairs: Sequence[PairTokens]) -> "Dataset":
    from datasets import Dataset

    return Dataset.from_dict({"chosen_ids": [p.chosen for p in pairs], "rejected_ids": [p.rejected for p in pairs]})


# -- model and trainer


def _load(
    recipe: RewardModelRecipe, tokenizer: PreTrainedTokenizerBase, shown: RewardInput, checkpoint: Path | None
) -> PreTrainedModel:
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    section = recipe.model
    with suppress_seqcls_warning():
        read: Any = AutoModelForSequenceClassification.from_pretrained
        loaded = read(
            checkpoint or section.model_name_or_path,
            revision=None if checkpoint else section.revision,
            num_labels=1,
            dtype=torch.float32,
            attn_implementation=section.attn_implementation,
            trust_remote_code=section.trust_remote_code,
            **REPORTING,
        )
    body = f"{loaded[0].base_model_prefix}."
    head = set() if checkpoint else {name for name in loaded[1]["missing_keys"] if not name.startswith(body)}
    model = whole(loaded, checkpoint or section.model_name_or_path, new=head)
    if moe_layers(model):
        model.set_experts_implementation(section.experts_implementation)
    keep_attention_fused()
    disable_dropout(model)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.update(dict(shown.as_config()))
    return model


def _arguments(recipe: RewardModelRecipe, num_processes: int, *, evaluate: bool, starts: bool) -> "RewardConfig":
    from trl.trainer.reward_config import RewardConfig

    settings = recipe.trainer
    same = ("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
    same += ("max_grad_norm", "lr_scheduler_type", "num_train_epochs", "gradient_checkpointing", "seed")
    same += ("logging_steps", "save_total_limit")
    arguments = RewardConfig(
        output_dir=str(recipe.output_dir),
        **{name: getattr(settings, name) for name in same},
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.max_pairs_per_micro_batch,
        per_device_eval_batch_size=settings.max_pairs_per_micro_batch,
        gradient_accumulation_steps=settings.batch_size // (settings.max_pairs_per_micro_batch * num_processes),
        bf16=recipe.model.dtype == "bfloat16",
        max_length=None,  # longer pairs are dropped already
        disable_dropout=False,  # done already, functional dropout included
        eval_strategy="steps" if evaluate and settings.eval_steps else "no",
        eval_steps=settings.eval_steps or None,
        eval_on_start=evaluate and starts,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        report_to="none",
        logging_nan_inf_filter=False,  # it would show an earlier loss in place of one that is not finite
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process counts all GPUs of the machine, and TRL refuses several
    return arguments


_SHOWN = ("learning_rate", "loss", "grad_norm", "accuracy", "margin", "eval/loss", "eval/accuracy", "eval/margin")


class _Records(TrainerCallback):
    """metrics.jsonl and a line of it, held-out values under eval/, and the mark of a checkpoint that is complete."""

    def __init__(self, output: Path, basis: Basis) -> None:
        self.output, self.basis = output, basis

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        refuse_not_finite(logs, state.global_step)
        if not state.is_world_process_zero or "train_runtime" in logs:
            return
        timing = ("_runtime", "_per_second")
        row = {name.replace("eval_", "eval/", 1): v for name, v in logs.items() if not name.endswith(timing)}
        with (self.output / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **row}) + "\n")
        shown = "  ".join(f"{name} {row[name]:.4g}" for name in _SHOWN if name in row)
        print(f"step {state.global_step}  {shown}", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            folder = checkpoints.checkpoint_path(self.output, state.global_step)
            self.basis.write(folder)
            checkpoints.write_mark(folder, checkpoints.Mark(step=state.global_step, run=run_id(self.output)))
