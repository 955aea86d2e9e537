"""What saving a model needs, checked before training: a valid configuration, a writable folder, room on the disk."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from grpo.model.adapters import has_adapters
from grpo.recipe.load import RecipeError

SAMPLING_ONLY = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
BEAMS_ONLY = ("early_stopping", "length_penalty")


def check_saving(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    *,
    copies: int,
    trust_remote_code: bool,
) -> None:
    """Save all but the weights to a temporary folder in output_dir, and compare free space with a checkpoint's size.

    copies: the checkpoint's size as a multiple of the model's weights; AdamW's two moments count as two.
    trust_remote_code: as the tokenizer was loaded.

    Raises:
        RecipeError: the model or its tokenizer cannot be saved, the tokenizer cannot be loaded again, or the disk has
            no room for one checkpoint.
    """
    name = model.config.name_or_path
    if (removed := normalise_generation_config(model)) and os.environ.get("RANK", "0") == "0":
        print(
            f"warning: {name}: its generation_config sets {', '.join(f'{k}={v}' for k, v in removed.items())}, which "
            "its decoding mode does not use and transformers refuses to save. Checkpoints leave this out.",
            file=sys.stderr,
            flush=True,
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".saving-") as folder:
            model.config.save_pretrained(folder)
            if (generation := getattr(model, "generation_config", None)) is not None:
                generation.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            _check_loading(str(name), folder, trust_remote_code)
    except RecipeError:
        raise
    except Exception as error:  # whatever it is, it would come again after training
        raise RecipeError(
            f"{name} cannot be saved to {output_dir}, so its training would be lost: {' '.join(str(error).split())} "
            "Correct its files, or choose another model or trainer.output_dir."
        ) from error
    saved = [p for p in model.parameters() if p.requires_grad or not has_adapters(model)]
    needed = copies * sum(p.numel() * p.element_size() for p in saved)
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise RecipeError(
            f"trainer.output_dir={output_dir}: {free / 2**30:.2g} GiB are free, but one checkpoint takes "
            f"{needed / 2**30:.2g} GiB. Free disk space, or choose another folder."
        )


def _check_loading(name: str, folder: str, trust_remote_code: bool) -> None:
    """RecipeError if the saved tokenizer cannot be loaded again."""
    try:
        AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise RecipeError(
            f"{name}: its tokenizer, once saved, cannot be loaded again, so no checkpoint could be resumed or used "
            f"({type(error).__name__}: {error}). transformers saves remote code wrongly unless the class is called "
            "…TokenizerFast: rename it, or use another tokenizer."
        ) from error


def normalise_generation_config(model: PreTrainedModel) -> dict[str, Any]:
    """Unset generation parameters that the decoding mode ignores, if they keep the model from being saved.

    `do_sample: false` with a temperature means greedy decoding, before and after. Returns what was unset.
    """
    config: Any = getattr(model, "generation_config", None)  # a classifier has none
    if config is None:
        return {}
    try:
        config.validate(strict=True)
        return {}
    except ValueError:
        unused = SAMPLING_ONLY if config.do_sample is not True else ()
        unused += BEAMS_ONLY if (config.num_beams or 1) == 1 else ()
        removed = {name: value for name in unused if (value := getattr(config, name)) is not None}
        for name in removed:
            setattr(config, name, None)
        return removed
