"""The command lines `grpo eval` and `grpo regrade`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpo.evaluation.config import PROTOCOLS, EvalRecipe, builtin_tasks
from grpo.recipe.load import load_recipe, read_yaml, stage_of

# option -> its key in the recipe, and its type
_OPTIONS: dict[str, tuple[str, type]] = {
    "--model": ("model.model_name_or_path", str),
    "--dtype": ("model.dtype", str),
    "--tasks": ("tasks", str),
    "--protocol": ("protocol", str),
    "--template": ("template", str),
    "--system-prompt": ("system_prompt", str),
    "--samples": ("sampling.num_samples", int),
    "--temperature": ("sampling.temperature", float),
    "--top-p": ("sampling.top_p", float),
    "--top-k": ("sampling.top_k", int),
    "--max-tokens": ("sampling.max_completion_length", int),
    "--seed": ("sampling.seed", int),
    "--engine": ("engine.name", str),
    "--base-url": ("engine.base_url", str),
    "--data-dir": ("data_dir", str),
    "--limit": ("limit", int),
    "--output": ("output", str),
}

_FOR_FILES = ("task", "columns", "key", "data_dir", "wrap")  # options of `grpo regrade` for external completions


def eval_command(arguments: Sequence[str]) -> None:
    """`grpo eval`: evaluate a model, or compare two finished evaluations."""
    parser = _parser(
        "grpo eval",
        "Evaluate a checkpoint on tasks. Options override the recipe, and section.key=value overrides both.",
        f"tasks: {', '.join(builtin_tasks())}, or a .yaml file; protocols: {', '.join(PROTOCOLS)}",
    )
    parser.add_argument("recipe", nargs="?", help="a recipe with `stage: eval`")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    for option, (place, kind) in _OPTIONS.items():
        parser.add_argument(option, dest=place, type=kind, help=f"sets {place}", metavar=kind.__name__.upper())
    parser.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="only compare two finished evaluations")
    values = vars(parser.parse_intermixed_args(list(arguments)))
    if values["compare"]:
        from grpo.evaluation.results.compare import compare_runs

        print(compare_runs(*map(Path, values["compare"])))
        return
    recipe = load_eval_recipe(values["recipe"], values["overrides"], values)
    _launch(recipe, ["eval", *arguments])
    from grpo.evaluation.run import run_stage

    run_stage(recipe)


def _launch(recipe: EvalRecipe, command: Sequence[str]) -> None:
    """Start several processes if requested, or if the machine has several GPUs."""
    from grpo.launch.processes import is_launched, launch, launch_on_cpu, missing_processes

    if missing := missing_processes():
        launch_on_cpu(missing, command)
    if not is_launched() and recipe.engine.name in ("vllm", "hf"):
        import torch

        options = recipe.engine.vllm_options if recipe.engine.name == "vllm" else {}
        is_divided = any(options.get(f"{kind}_parallel_size", 1) != 1 for kind in ("tensor", "pipeline"))
        if torch.cuda.device_count() > 1 and not is_divided:  # an engine over several GPUs is one process
            launch([], command)


def regrade_command(arguments: Sequence[str]) -> None:
    """`grpo regrade`: regrade an evaluation's samples, or grade external completions."""
    from grpo.evaluation.external import grade_file
    from grpo.evaluation.regrade import describe, regrade
    from grpo.evaluation.results.table import markdown

    parser = _parser(
        "grpo regrade",
        "Grade samples without generating: an evaluation's own, or a .jsonl file of external completions.",
        "example: grpo regrade theirs.jsonl --task gsm8k --columns completion=response,solution=gold,score=result "
        "--option answer_in=free_text --output runs/theirs",
    )
    parser.add_argument("samples", type=Path, help="an evaluation's folder, or a .jsonl file")
    parser.add_argument("--output", type=Path, help="output folder; default: regrade the evaluation in place")
    parser.add_argument(
        "--option", action="append", type=_pairs, default=[], metavar="NAME=VALUE", help="a grading option; repeatable"
    )
    parser.add_argument("--reward", help="evaluation only: grade with this reward instead of the task's")
    parser.add_argument("--task", help="file only: the task whose grader to use")
    parser.add_argument("--columns", type=_pairs, default={}, help="file only: column names, ours=theirs,…")
    parser.add_argument("--key", help="file only: column to join the task's dataset on")
    parser.add_argument("--data-dir", type=Path, help="file only: folder with local dataset copies, for --key")
    parser.add_argument("--wrap", help="file only: text to put around each {completion}")
    given = parser.parse_args(list(arguments))
    kind, others = ("a folder", _FOR_FILES) if given.samples.is_dir() else ("a file", ("reward",))
    if unread := [f"--{name.replace('_', '-')}" for name in others if getattr(given, name)]:
        parser.error(f"{given.samples} is {kind}, which is regraded without {', '.join(unread)}. Leave it out.")
    if given.data_dir and not given.key:
        parser.error(f"--data-dir {given.data_dir} has the dataset that --key joins. Add --key, or leave it out.")
    options = {name: _value(name, value) for pairs in given.option for name, value in pairs.items()}
    if given.samples.is_dir():
        done = regrade(given.samples, output=given.output, reward=given.reward, options=options)
    else:
        if not (given.task and given.output and given.samples.is_file()):
            parser.error(
                f"{given.samples} is not a folder; a file must exist and needs --task, --columns and --output."
            )
        done = grade_file(
            given.samples,
            given.task,
            output=given.output,
            columns=given.columns,
            key=given.key,
            data_dir=given.data_dir,
            wrap=(given.wrap or "{completion}").replace("\\n", "\n"),
            options=options,
        )
    results = done.results
    print(markdown(results.model, results.protocol, results.tasks))
    print(describe(done))
    print(f"page: {results.folder / 'index.html'}")


def _pairs(text: str) -> dict[str, str]:
    """Parse "a=b,c=d"."""
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r}: must have the form name=value,name=value")
    return {name: value for name, _, value in pairs}


def _value(option: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise ValueError(f"--option {option}={text}: not valid YAML ({error}). Quote the value.") from None


def load_eval_recipe(path: str | None, overrides: Sequence[str], options: dict[str, Any]) -> EvalRecipe:
    """Load a recipe, if a path is given, and apply options and overrides.

    Raises:
        ValueError: the recipe is of another stage, or invalid; or there is none and the options do not replace it.
    """
    if path is not None and "=" in path and not Path(path).exists():  # no recipe, just overrides
        path, overrides = None, [path, *overrides]
    if path is not None and (stage := stage_of(path)) != "eval":
        raise ValueError(
            f"{path}: is a recipe of stage {stage}, and evaluations take one with `stage: eval`. Leave it out and give "
            "--model and --tasks."
        )
    sections: dict[str, Any] = {"stage": "eval"}
    for place, _ in _OPTIONS.values():
        if (value := options.get(place)) is not None:
            is_list = place == "tasks"
            _put(sections, place, [n.strip() for n in value.split(",") if n.strip()] if is_list else value)
    if sections.get("engine", {}).get("name") == "reference":
        sections.setdefault("model", {"model_name_or_path": "reference"})
    if path is None:
        given = [*sections, *(text.partition("=")[0].partition(".")[0] for text in overrides)]
        if missing := [f"--{key}" for key in ("model", "tasks") if key not in given]:
            raise ValueError(
                f"nothing to evaluate without {' and '.join(missing)}. Such as `grpo eval --model CHECKPOINT --tasks "
                "gsm8k,math500`, or name a recipe with `stage: eval`."
            )
    recipe = load_recipe(path, overrides, sections=sections)
    assert isinstance(recipe, EvalRecipe)
    return recipe


def _put(sections: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = place.split(".")
    for part in parents:
        sections = sections.setdefault(part, {})
    sections[last] = value


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=name, description=description, epilog=epilog, allow_abbrev=False)
