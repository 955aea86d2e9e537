"""From a recipe's `data` to sources, prompters and the training stream."""

from transformers import PreTrainedTokenizerBase

from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.data import DataConfig, MixedSource, ProblemsConfig, SourceConfig
from rollout.data.curriculum import Curriculum, CurriculumSettings
from rollout.data.mixture import MixedStream, NamedSource, Part
from rollout.data.prompts import Prompter
from rollout.data.sources import Source, load_source
from rollout.data.stream import ProblemStream, PromptStream


def source_of(data: SourceConfig, *, split: str, seed: int) -> Source:
    """The problems that a source's section describes; see `load_source`."""
    source = load_source(
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
    return NamedSource(data.name, source) if isinstance(data, MixedSource) else source


def prompter_of(data: SourceConfig, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int) -> Prompter:
    """Its template with a tokenizer."""
    return Prompter(
        tokenizer,
        template=data.template,
        system_prompt=data.system_prompt,
        max_prompt_length=max_prompt_length,
        chat_template_kwargs=data.chat_template_kwargs,
    )


def stream_of(
    data: ProblemsConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    curriculum: Curriculum | None = None,
    may_change: bool = False,
    **shard: int,
) -> ProblemStream:
    """The training stream of a single source; shard: process_index and num_processes."""
    source, prompter = source_of(data, split="train", seed=seed), prompter_of(data, tokenizer, data.max_prompt_length)
    return ProblemStream(source, prompter, seed=seed, curriculum=curriculum, may_change=may_change, **shard)


def curriculum_of(data: DataConfig, *, seed: int) -> Curriculum | None:
    """A new curriculum, for one source."""
    return Curriculum(CurriculumSettings(**data.curriculum.model_dump()), seed=seed) if data.curriculum else None


def training_stream(
    recipe: OnPolicyRecipe, tokenizer: PreTrainedTokenizerBase, *, process_index: int, num_processes: int
) -> PromptStream:
    """The training stream of one process: of the only source, or of a mixture."""
    data, seed = recipe.data, recipe.trainer.seed
    shard = {"process_index": process_index, "num_processes": num_processes}
    may_change = any(name.partition(".")[0] == "data" for name in recipe.trainer.allow_changes)
    if not data.mixture:
        curriculum = curriculum_of(data, seed=seed)
        return stream_of(data, tokenizer, seed=seed, curriculum=curriculum, may_change=may_change, **shard)
    parts = {}
    for source in data.mixture:
        prompter = prompter_of(source, tokenizer, data.max_prompt_length)
        rows = source_of(source, split="train", seed=seed)
        curriculum = curriculum_of(data, seed=seed)
        stream = ProblemStream(rows, prompter, seed=seed, curriculum=curriculum, may_change=may_change)
        first = source.first_step(recipe.trainer.max_steps) * recipe.rollout.problems_per_step
        parts[source.name] = Part(stream, source.weight, first)
    return MixedStream(parts, seed=seed, **shard)
