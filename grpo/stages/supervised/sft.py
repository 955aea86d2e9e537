"""Stages `sft` and `pretrain`: next-token loss on texts, or on completions after their prompts, with TRL's SFTTrainer.

    sources -> tokens -> mixture -> order -> SFTTrainer (with the experts' balance) -> folder

Used for a base from nothing, for a cold start, for the second SFT on a weighted mixture, and for distilling into dense
students. Checkpoints are transformers' own, with the mark of a complete one; a resumed run ends with the same weights.
Left out: adapters.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig

from grpo.learner.checkpoint import find_checkpoint
from grpo.learner.savable import check_saving
from grpo.model.checks import check_balance, check_finite, check_model, leaves_weights_out
from grpo.model.load import load_model, new_model
from grpo.model.weights import save_model
from grpo.recipe.stages.sft import SFTModel, SFTRecipe
from grpo.report.page.write import write_page
from grpo.stages.parts import refusals
from grpo.stages.supervised.balanced import BalancedTrainer
from grpo.stages.supervised.basis import Basis, fingerprint
from grpo.stages.supervised.mixture import load_mixture, training_batches
from grpo.stages.supervised.progress import Progress
from grpo.stages.supervised.stopping import StopsForSignals
from rollout.engines.base import check_context, load_tokenizer
from rollout.support.loading import load_object

SAME_NAMES = (
    *("learning_rate", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "logging_steps", "seed"),
)


def run_sft(recipe: SFTRecipe) -> Path:
    """Train, and write a folder that AutoModelForCausalLM and vLLM open, with metrics.jsonl beside the weights.

    Raises:
        grpo.recipe.errors.RefusedError: the data, the model or the disk cannot give a right result, or the checkpoint
            is of other rows or processes.
        grpo.recipe.errors.NonFiniteError: loss or gradient became NaN or infinite.
        grpo.launch.signals.Stopped: a signal came; the last step is saved.
    """
    settings, output = recipe.trainer, recipe.output_dir
    checkpoint = find_checkpoint(output, settings.resume_from_checkpoint)
    arguments = _arguments(recipe)  # first: it starts the process group
    set_seed(settings.seed)
    with refusals():
        tokenizer, model, rows, basis = _start(recipe, checkpoint, arguments)
    arguments.ddp_find_unused_parameters = leaves_weights_out(model.config)
    batches = training_batches(rows["length"][:], settings, arguments.world_size)
    arguments.max_steps = len(batches) // (settings.gradient_accumulation_steps * arguments.world_size)
    trainer = BalancedTrainer(
        settings, batches, recipe.model.mtp, model=model, args=arguments, train_dataset=rows, processing_class=tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    epochs = sum(map(len, batches)) / len(rows)
    trainer.add_callback(stopping := StopsForSignals())
    trainer.add_callback(Progress(trainer, basis, checkpoint, epochs_per_step=epochs / arguments.max_steps))
    with trainer.recording():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    check_finite(model)
    stopping.check()
    if arguments.process_index == 0:
        save_model(model, output, is_writer=True)
        tokenizer.save_pretrained(output)
        write_page(output)
    trainer.accelerator.wait_for_everyone()
    return output


def _arguments(recipe: SFTRecipe) -> SFTConfig:
    """The trainer section in transformers' words. max_steps is set later, when the rows have been counted."""
    settings, bfloat16 = recipe.trainer, recipe.model.dtype == "bfloat16"
    on_cpu = not torch.cuda.is_available()
    same = {name: getattr(settings, name) for name in SAME_NAMES}
    arguments = SFTConfig(
        **same,
        output_dir=str(recipe.output_dir),
        lr_scheduler_type=settings.lr_scheduler_type,
        lr_scheduler_kwargs=settings.scheduler_arguments,
        save_strategy="steps" if settings.save_steps else "no",
        save_steps=settings.save_steps or 1,
        save_total_limit=None,  # Progress deletes old ones, after the new one is complete
        bf16=bfloat16,
        use_cpu=on_cpu,
        dataloader_pin_memory=not on_cpu,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        accelerator_config={"even_batches": False},  # the batches are ours, as many for every process
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=[],
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process counts all GPUs of the machine, and TRL refuses several
    return arguments


def _start(
    recipe: SFTRecipe, checkpoint: Path | None, arguments: SFTConfig
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, Any, Basis]:
    """Tokenizer, model, one epoch's rows and the run's basis; everything about them that cannot be right is refused
    here.
    """
    section, settings = recipe.model, recipe.trainer
    tokenizer = _tokenizer(section, Path(recipe.base_dir))
    config = _config(section, tokenizer)
    rows, lines = load_mixture(recipe.data, tokenizer, seed=settings.seed, base_dir=Path(recipe.base_dir))
    if arguments.process_index == 0:
        print("\n".join(lines), flush=True)
    basis = Basis(fingerprint(rows), arguments.world_size, settings.gradient_accumulation_steps)
    if checkpoint:
        basis.check(checkpoint, settings.allow_changes)
    longest = max(rows["length"])
    try:
        check_context(config, longest)
    except ValueError as error:
        context = config.get_text_config().max_position_embeddings
        raise ValueError(
            f"the longest row has {longest:,} tokens, and {section.name} has a context of {context:,} "
            f"(max_position_embeddings). Set data.max_length={context} to leave longer rows out, choose a model with a "
            "longer context, or extend this one's: model.config={max_position_embeddings: …}."
        ) from error
    if section.model_name_or_path or checkpoint:
        changes = section.config if section.model_name_or_path else {}
        mtp = None if section.mtp is None else "stored" if checkpoint else "new"
        model = load_model(section, checkpoint, mtp=mtp, **changes)
    else:
        model = new_model(section, config)
    check_balance(model, "trainer", settings.balance_bias_update_speed, settings.sequence_balance_coefficient)
    check_model(model, tokenizer_size=len(tokenizer), max_model_len=longest, disable_dropout=section.disable_dropout)
    # A signal saves too.
    check_saving(model, tokenizer, recipe.output_dir, copies=3, trust_remote_code=section.trust_remote_code)
    return tokenizer, model, rows, basis


def _tokenizer(section: SFTModel, base_dir: Path) -> PreTrainedTokenizerBase:
    name = section.tokenizer or section.model_name_or_path
    assert name is not None
    if ".py:" in name:
        return load_object(name, kind="model.tokenizer", base_dir=base_dir)()
    return load_tokenizer(name, section.revision, section.trust_remote_code)


def _config(section: SFTModel, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The model's configuration; from nothing, with the tokenizer's vocabulary and special tokens if it sets none."""
    if section.model_name_or_path is None:
        ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
        return AutoConfig.for_model(**{"vocab_size": len(tokenizer), **ids, **section.config})
    try:
        config = AutoConfig.from_pretrained(
            section.model_name_or_path, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except OSError as error:
        raise ValueError(
            f"model.model_name_or_path={section.model_name_or_path!r}: no configuration found "
            f"({str(error).splitlines()[0]}). It must be a folder with config.json or a Hub name."
        ) from error
    if unknown := [key for key in section.config if not hasattr(config, key)]:
        raise ValueError(
            f"model.config={section.config}: the configuration of {section.model_name_or_path} has no {unknown[0]!r}. "
            "Correct or remove it."
        )
    config.update(section.config)
    return config
