"""Sample the problems batch by batch, then write the dataset. Batches already on disk are not sampled again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from rich.console import Console
from rich.table import Table

from grpo.recipe.errors import RefusedError, RunError
from grpo.recipe.stages.rejection import RejectionRecipe
from grpo.stages import parts
from grpo.stages.checks.prompts import check_prompts
from grpo.stages.collect import keep, score
from grpo.stages.problems import stream_of
from grpo.stages.rejection.candidates import FOLDER, REWARD, Candidate, Candidates, question
from grpo.stages.rejection.dataset import write_dataset
from grpo.stages.rejection.rewrite import check_endpoint
from grpo.stages.rejection.select import Counts
from rewards.runner.score import Rewards, ScoredGroup
from rollout.data.stream import ProblemStream
from rollout.engines.base import load_tokenizer
from rollout.types import Prompt


def run_rejection(recipe: RejectionRecipe) -> Path:
    """Write a Hugging Face dataset of the samples that pass all filters; returns its folder.

    Raises:
        RefusedError: the dataset has too few problems, the weights have changed since the run began, or the model that
            rewrites cannot be asked.
        RunError: no sample passed the filters, or the model that rewrites stopped answering.
    """
    accelerator = parts.accelerator(recipe.model)
    candidates = Candidates(recipe.output_dir / FOLDER)
    weights = parts.same_weights(recipe.model, recipe.output_dir, candidates.state())
    done: Any = [len(candidates.files)]
    if accelerator.num_processes > 1:
        broadcast_object_list(done)
    if done[0] < len(recipe.batches):
        _sample(recipe, candidates, done[0], weights, accelerator)
    _by_main(accelerator, lambda: _print_counts(write_dataset(recipe)))
    return recipe.output_dir


def _by_main(accelerator: Accelerator, work: Callable[[], None]) -> None:
    """The main process works, the others wait; all raise its RunError."""
    answer: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            work()
        except RunError as error:
            answer = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(answer)
    if answer[0] is not None:
        raise answer[0]


def _sample(
    recipe: RejectionRecipe, candidates: Candidates, done: int, weights: str | None, accelerator: Accelerator
) -> None:
    """Sample, score and write the batches from number `done` on; cheap and fallible parts first."""
    model, rollout = recipe.model, recipe.rollout
    with parts.refusals():
        tokenizer = load_tokenizer(model.model_name_or_path, model.revision, model.trust_remote_code)
        problems = stream_of(
            recipe.data,
            tokenizer,
            seed=recipe.seed,
            process_index=accelerator.process_index,
            num_processes=accelerator.num_processes,
        )
        _check_size(recipe, problems)
        if (section := recipe.rewrite) is not None:
            _by_main(accelerator, lambda: check_endpoint(section))
        check_prompts("data", problems.source, problems.prompter, accelerator)
        rewards = parts.rewards(recipe.rewards, num_workers=recipe.num_reward_workers, timeout=recipe.reward_timeout)
    try:
        with parts.refusals():
            parts.preflight([problems.source], (), rewards, accelerator)
            if state := candidates.state():
                problems.load_state_dict(state["problems"])
            accelerator.wait_for_everyone()  # all have read the state before the first one writes
            engine = parts.engine(
                rollout.engine,
                rollout,
                model,
                max_model_len=recipe.max_model_len,
                device=accelerator.device,
                base_url=rollout.base_url,
            )
        try:
            for number in range(done, len(recipe.batches)):
                prompts = [prompt for prompt in problems.take(recipe.batches[number]) if not _is_repeated(prompt)]
                scored = score(prompts, engine, rewards, recipe.candidate_sampling, lambda _: nullcontext())
                batch = _gathered(recipe, keep(prompts, scored), accelerator)
                if accelerator.is_main_process:
                    candidates.write(batch, rewards.names, {"problems": problems.state_dict(), "weights": weights})
                    print(_progress(recipe, number, batch, rewards), flush=True)
        finally:
            engine.close()
    finally:
        rewards.close()


def _check_size(recipe: RejectionRecipe, problems: ProblemStream) -> None:
    size = problems.source.size
    if size is not None and recipe.rollout.num_problems > size:
        raise RefusedError(
            f"rollout.num_problems={recipe.rollout.num_problems}: the dataset has {size} problems. Set it to {size}; "
            "for more samples of each, raise rollout.num_generations."
        )


def _is_repeated(prompt: Prompt) -> bool:
    """Whether the stream has begun again, as it does where rows cannot become a prompt: their ids end in `@1`."""
    return "@" in prompt.problem.id.rpartition("/")[2]


def _gathered(recipe: RejectionRecipe, scored: Sequence[ScoredGroup], accelerator: Accelerator) -> list[Candidate]:
    """The candidates of all processes in the order of the stream, whatever the number of processes."""
    rows = [
        (place * accelerator.num_processes + accelerator.process_index, list(_rows(recipe, group)))
        for place, group in enumerate(scored)
    ]
    everywhere: list[Any] = gather_object(rows)
    return [row for _, group in sorted(everywhere, key=lambda item: item[0]) for row in group]


def _rows(recipe: RejectionRecipe, scored: ScoredGroup) -> Iterator[Candidate]:
    group, data = scored.group, recipe.data
    for sample, completion in enumerate(group.completions):
        yield {
            "prompt": question(group.problem),
            "completion": group.completion_prefix + completion.text,
            "data_source": str(group.problem.columns.get("data_source") or data.task or data.dataset_name),
            "problem_id": group.problem.id,
            "sample": sample,
            "num_tokens": len(completion.token_ids),
            "finished": completion.finish_reason == "stop",
            **{REWARD + name: values[sample] for name, values in scored.counted.items()},
        }


def _progress(recipe: RejectionRecipe, number: int, batch: Sequence[Candidate], rewards: Rewards) -> str:
    means = []
    for name in rewards.names:
        values = [row[REWARD + name] for row in batch if row[REWARD + name] is not None]
        means.append(f"{name} {sum(values) / len(values):.3f}" if values else f"{name} –")
    return f"batch {number + 1} of {len(recipe.batches)}: {len(batch)} samples, {', '.join(means)}"


def _print_counts(counts: Counts) -> None:
    table = Table()
    for heading in ("", "samples", "removed", "share"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("sampled", str(counts.sampled), "", "")
    for removal in counts.removals:
        share = f"{removal.removed / removal.seen:.1%}" if removal.seen else ""
        table.add_row(removal.by, str(removal.seen - removal.removed), str(removal.removed), share)
    table.add_row("kept", str(counts.kept), "", f"{counts.kept / counts.sampled:.1%}")
    table.add_row("problems covered", f"{counts.problems_covered} of {counts.problems}", "", "")
    Console(highlight=False).print(table)
