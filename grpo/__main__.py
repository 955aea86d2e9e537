"""The command line.

grpo train [accelerate's options] recipe.yaml [section.key=value …]   train, by way of `accelerate launch`
grpo check [--num_processes N] recipe.yaml [section.key=value …]      what a recipe needs, without running it
grpo eval --model CKPT --tasks gsm8k,math500 [options]                evaluate a checkpoint; also: grpo eval recipe.yaml
grpo eval --compare RUN_A RUN_B                                       the difference of two evaluations
grpo regrade RUN                                                      judge kept samples again, without generating
grpo report run_dir                                                   write the page of a run again
grpo reward-test [--columns '{ours: theirs}'] [--tokenizer NAME] FUNCTION rows.jsonl [option=value …]
                                                                      what a reward says of completions, and how fast
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

RECIPE_SUFFIXES = (".yaml", ".yml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; wrong recipes and wrong usage are said in words and end with exit code 2."""
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(__doc__)
    elif command in COMMANDS:
        COMMANDS[command](rest)
    else:
        _fail(f"there is no command {command!r}.\n{__doc__}")


def train(arguments: Sequence[str]) -> None:
    """`grpo train`: in a launched process, run the recipe; otherwise launch such processes."""
    from grpo.recipe.launch import is_launched, launch, launch_on_cpu, missing_processes, use_all_cores

    options, path, overrides = _split(arguments)
    if is_launched():
        use_all_cores()
    from grpo.recipe.load import RecipeError, check_world, load_recipe

    try:
        recipe = load_recipe(path, overrides)
        if missing := missing_processes():
            check_world(recipe, missing)
            launch_on_cpu(missing, ["train", path, *overrides])
        if is_launched():
            from grpo.stages.pipeline import run

            run(recipe)
            return
    except RecipeError as error:
        _fail(str(error))
    launch(options, ["train", path, *overrides])


def check(arguments: Sequence[str]) -> None:
    """`grpo check`: shapes, memory and tokens of a recipe."""
    options, path, overrides = _split(arguments)
    match options:
        case []:
            processes = "1"
        case ["--num_processes", processes]:
            pass
        case _:
            _fail(f"check does not know {' '.join(options)}.\n{__doc__}")
    if not processes.isdigit() or processes == "0":
        _fail(f"--num_processes {processes}: must be a whole number from 1 on.")
    from grpo.recipe.check import check_recipe
    from grpo.recipe.load import RecipeError

    try:
        check_recipe(path, overrides, num_processes=int(processes))
    except RecipeError as error:
        _fail(str(error))


def report(arguments: Sequence[str]) -> None:
    """`grpo report`: the page of a run, from its files alone."""
    from grpo.report.page import write_page
    from grpo.report.records import METRICS_FILE

    if len(arguments) != 1:
        _fail(f"report takes one run folder, not {len(arguments)} arguments.\n{__doc__}")
    run_dir = Path(arguments[0])
    if not (run_dir / METRICS_FILE).exists():
        _fail(f"{run_dir} holds no {METRICS_FILE}: name the output_dir of a run.")
    print(write_page(run_dir))


def reward_test(arguments: Sequence[str]) -> None:
    """`grpo reward-test`: verdicts and timing; exit code 1 where a row says to expect something else."""
    import yaml
    from rich.console import Console

    from rewards.runner.reward_test import reward_test as run

    settings = {"--columns": "{}", "--tokenizer": "null"}
    rest = list(arguments)
    while rest[:1] and rest[0] in settings and len(rest) > 1:
        settings[rest[0]] = rest[1]
        rest = rest[2:]
    if len(rest) < 2 or rest[0].startswith("-") or not all("=" in option for option in rest[2:]):
        _fail(f"reward-test takes a function, a .jsonl file and the function's options, name=value.\n{__doc__}")
    options = {name: yaml.safe_load(value) for name, _, value in (option.partition("=") for option in rest[2:])}
    columns, tokenizer = (yaml.safe_load(settings[name]) for name in ("--columns", "--tokenizer"))
    if not isinstance(columns, dict):
        _fail(f"--columns {settings['--columns']}: must be a mapping, such as '{{solution: gold}}'.")
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    try:
        agrees = run(rest[0], Path(rest[1]), options, columns=columns, tokenizer=tokenizer, console=console)
    except ValueError as error:
        _fail(f"{error.__cause__ or ''}\n{error}".strip())
    sys.exit(0 if agrees else 1)


def evaluate(arguments: Sequence[str]) -> None:
    """`grpo eval`: a checkpoint on tasks. `grpo eval --help` lists the options."""
    from grpo.evaluation.cli import eval_command

    _say_errors(eval_command, arguments)


def regrade(arguments: Sequence[str]) -> None:
    """`grpo regrade`: samples judged again. `grpo regrade --help` lists the options."""
    from grpo.evaluation.cli import regrade_command

    _say_errors(regrade_command, arguments)


def _say_errors(command: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> None:
    from grpo.recipe.launch import is_launched, use_all_cores

    if is_launched():
        use_all_cores()
    try:
        command(arguments)
    except ValueError as error:
        _fail(str(error))


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "check": check,
    "eval": evaluate,
    "regrade": regrade,
    "report": report,
    "reward-test": reward_test,
}


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Options before the recipe, its path, overrides after it."""
    recipes = [
        i
        for i, argument in enumerate(arguments)
        # accelerate has a YAML file of its own
        if argument.endswith(RECIPE_SUFFIXES)
        and not argument.startswith("-")
        and arguments[i - 1 : i] != ["--config_file"]
    ]
    if not recipes:
        _fail(f"name a recipe, a file that ends in .yaml.\n{__doc__}")
    first = recipes[0]
    return list(arguments[:first]), arguments[first], list(arguments[first + 1 :])


def _fail(message: str) -> NoReturn:
    """Say what is wrong, once for all processes, and exit with code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
    else:
        time.sleep(2)  # torchrun ends all processes when one ends: let the first one speak
    sys.exit(2)


if __name__ == "__main__":
    main()
