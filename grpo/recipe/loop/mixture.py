"""Rules for `data.mixture`."""

from collections.abc import Iterator, Sequence

from grpo.recipe.data import DataConfig, MixedSource


def mixture_conflicts(
    mixture: Sequence[MixedSource], max_steps: int, tasks: Sequence[str], evaluated: DataConfig | None
) -> Iterator[str]:
    """Sources that never join, and evaluations that do not fit them. tasks, evaluated: of section `evaluation`."""
    first = {source.name: source.first_step(max_steps) for source in mixture}
    for name, step in first.items():
        if step >= max_steps:
            yield (
                f"data.mixture: {name!r} has from_step={step} in a run of trainer.max_steps={max_steps}, so it never "
                "joins. Lower from_step, or give it from the end, such as -400."
            )
    if first and min(first.values()) > 0:
        yield f"data.mixture: no source starts at step 0 (from_step {first}). Set from_step=0 for one of them."
    if mixture and tasks and (evaluated is None or evaluated.mixture):
        yield (
            "evaluation.tasks with data.mixture: the sources may have several templates, and tasks need one. Set "
            "evaluation.data to a single source with it."
        )
    held_out = [source.name for source in evaluated.mixture] if evaluated else []
    if held_out and (unknown := sorted(set(held_out) - first.keys())):
        yield (
            f"evaluation.data.mixture: {unknown[0]!r} is not a source of data.mixture "
            f"({', '.join(first) or 'none'}). Use the same names."
        )
