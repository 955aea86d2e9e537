"""From a recipe's `data` section to problems and prompts, for every stage that samples."""

from transformers import PreTrainedTokenizerBase

from grpo.recipe.config import DataConfig
from rollout.data.prompts import Prompter
from rollout.data.sources import Source, load_source


def problem_source(data: DataConfig, *, split: str, seed: int) -> Source:
    """The problems that a recipe's `data` section describes; see `load_source`."""
    return load_source(
        task=data.task,
        task_options=data.task_options,
        dataset_name=data.dataset_name,
        dataset_config=data.dataset_config,
        dataset_split=data.dataset_split,
        columns=data.columns,
        streaming=data.streaming,
        shuffle_buffer_size=data.shuffle_buffer_size,
        split=split,
        seed=seed,
    )


def prompter(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Prompter:
    """Its template with a tokenizer."""
    return Prompter(
        tokenizer,
        template=data.template,
        system_prompt=data.system_prompt,
        max_prompt_length=data.max_prompt_length,
        chat_template_kwargs=data.chat_template_kwargs,
    )
