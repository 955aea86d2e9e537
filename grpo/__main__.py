"""The command line: `grpo COMMAND …`. Wrong usage and wrong recipes print a message and exit with code 2."""

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rollout.support.names import nearest

RECIPE_SUFFIXES = (".yaml", ".yml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; `arguments` default to the process's own."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        COMMANDS[name].run(rest)
    else:
        _fail_usage(f"unknown command {name!r}.{nearest(name, COMMANDS)}")


def train(arguments: Sequence[str]) -> None:
    """`grpo train`: run the recipe in a launched process; otherwise launch the processes."""
    from grpo.launch.processes import is_launched, launch, launch_on_cpu, missing_processes, quieten, use_all_cores
    from grpo.launch.signals import Stopped, end, end_with_launcher, listen

    options, path, overrides = _split(arguments)
    overrides = _stage_options(overrides)
    command = ["train", path, *overrides]
    if is_launched():
        end_with_launcher()
        use_all_cores()
        quieten()
    from grpo.recipe.errors import RunError
    from grpo.recipe.load import load_recipe
    from grpo.recipe.record import check_world
    from rewards.runner.call import RewardError

    try:
        recipe: Any = load_recipe(path, overrides)  # of any stage
        if missing := missing_processes():
            check_world(recipe, missing)
            launch_on_cpu(missing, command)
        if is_launched():
            nothing_done = "stopped before a step was done" if recipe.stage == "grpo" else "stopped"
            listen(["grpo", *command], nothing_done)
            from grpo.stages.run import run

            run(recipe)
            return
    except RunError as error:
        _fail(str(error))
    except RewardError as error:  # in one process: the others wait for its groups
        print(f"{error.__cause__ or ''}\n{error}".strip(), file=sys.stderr)
        sys.exit(1)
    except Stopped as stopped:
        end(str(stopped), stopped.number, saved=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail(f"stopped: {error}. Free disk space, and continue the run.")
    launch(options, command)


def check(arguments: Sequence[str]) -> None:
    """`grpo check`: print what a recipe needs, or each stage of a pipeline."""
    options, path, overrides = _split(arguments)
    match options:
        case []:
            processes = "1"
        case ["--num_processes", processes]:
            pass
        case _:
            _fail_usage(f"check: unknown options {' '.join(options)}.")
    if not processes.isdigit() or processes == "0":
        _fail(f"--num_processes {processes}: must be a positive integer.")
    from grpo.estimate.check import check_recipe

    try:
        check_recipe(path, overrides, num_processes=int(processes))
    except ValueError as error:
        _fail(str(error))


def plan(arguments: Sequence[str]) -> None:
    """`grpo plan`: lay a recipe out on many GPUs and estimate a step."""
    settings = {"--gpus": "8", "--gpu": "h200", "--completion-tokens": "", "--like": ""}
    options, path, overrides = _split(arguments)
    if len(options) % 2 or not all(name in settings for name in options[::2]):
        _fail_usage(f"plan: unknown options {' '.join(options)}.")
    settings |= dict(zip(options[::2], options[1::2], strict=True))
    for name in ("--gpus", "--completion-tokens"):
        if settings[name] and (not settings[name].isdigit() or int(settings[name]) == 0):
            _fail(f"{name} {settings[name]}: must be a positive integer.")
    from grpo.estimate.layout.show import plan_recipe

    completion, run = settings["--completion-tokens"], settings["--like"]
    try:
        plan_recipe(
            path,
            overrides,
            gpus=int(settings["--gpus"]),
            gpu=settings["--gpu"].lower(),
            completion=int(completion) if completion else None,
            run=Path(run) if run else None,
        )
    except ValueError as error:
        _fail(str(error))


def roofline(arguments: Sequence[str]) -> None:
    """`grpo roofline`: a finished run's steps against what this machine could do."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        _fail_usage("roofline takes one run's folder.")
    from grpo.estimate.roofline.show import show_roofline
    from grpo.recipe.errors import RunError

    try:
        show_roofline(Path(arguments[0]))
    except RunError as error:
        _fail(str(error))


def evaluate(arguments: Sequence[str]) -> None:
    """`grpo eval`: evaluate a checkpoint on tasks, or compare two evaluations. `grpo eval --help` lists the options."""
    from grpo.evaluation.cli import eval_command

    _run_evaluation(eval_command, "eval", arguments)


def regrade(arguments: Sequence[str]) -> None:
    """`grpo regrade`: grade saved samples again. `grpo regrade --help` lists the options."""
    from grpo.evaluation.cli import regrade_command

    _run_evaluation(regrade_command, "regrade", arguments)


def serve(arguments: Sequence[str]) -> None:
    """`grpo serve`: become vLLM's OpenAI-compatible server."""
    if not arguments or arguments[0].startswith("-"):
        _fail_usage("serve takes a checkpoint's folder or Hub name, then vLLM's options.")
    from rollout.engines.vllm_serve import serve as become_server

    try:
        become_server(arguments[0], arguments[1:])
    except (OSError, ValueError) as error:
        _fail(str(error))


def merge(arguments: Sequence[str]) -> None:
    """`grpo merge`: write a LoRA adapter as a whole model."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        _fail_usage("merge takes an adapter's folder and a folder to write.")
    from grpo.evaluation.engines import merge as merge_folders

    try:
        merge_folders(Path(arguments[0]), Path(arguments[1]))
    except (OSError, ValueError) as error:
        _fail(str(error))


def dequantize(arguments: Sequence[str]) -> None:
    """`grpo dequantize`: write a model with FP8 weights in bfloat16."""
    if len(arguments) != 2 or arguments[0].startswith("-"):
        _fail_usage("dequantize takes a model's folder and a folder to write.")
    from grpo.model.fp8 import write_dequantized

    try:
        write_dequantized(Path(arguments[0]), Path(arguments[1]))
    except (OSError, ValueError) as error:
        _fail(str(error))


def drafts(arguments: Sequence[str]) -> None:
    """`grpo drafts`: how many drafts of a model's multi-token prediction speculative decoding would keep."""
    options, path, overrides = _split(arguments)
    if options:
        _fail_usage(f"drafts: unknown options {' '.join(options)}.")
    from grpo.launch.processes import quieten
    from grpo.recipe.config import OnPolicyRecipe
    from grpo.recipe.load import load_recipe
    from grpo.stages.checks.drafts import measure_drafts

    quieten()
    try:
        recipe = load_recipe(path, overrides)
        if not isinstance(recipe, OnPolicyRecipe):
            _fail(f"{path}: drafts are measured on rollouts, which stage {recipe.stage} has none of.")
        print("\n".join(measure_drafts(recipe)))
    except (OSError, ValueError) as error:
        _fail(str(error))


def report(arguments: Sequence[str]) -> None:
    """`grpo report`: rebuild a run's page from its files."""
    from grpo.recipe.errors import RunError
    from grpo.report.page.write import write_page
    from grpo.report.records import METRICS_FILE

    if len(arguments) != 1:
        _fail_usage(f"report takes one run folder, not {len(arguments)} arguments.")
    run_dir = Path(arguments[0])
    if not (run_dir / METRICS_FILE).exists():
        _fail(f"{run_dir} contains no {METRICS_FILE}. Name a run's output_dir.")
    try:
        print(write_page(run_dir))
    except RunError as error:
        _fail(str(error))


def diagnose(arguments: Sequence[str]) -> None:
    """`grpo diagnose`: say what a run's metrics show; exit code 1 if it raises an alarm."""
    import json

    from grpo.report.diagnosis.run import diagnose as diagnose_folder
    from grpo.report.diagnosis.run import lines

    folders = [argument for argument in arguments if argument != "--json"]
    if len(folders) != 1 or folders[0].startswith("-"):
        _fail_usage("diagnose takes one run's or pipeline's folder, and --json.")
    try:
        found = diagnose_folder(Path(folders[0]))
    except ValueError as error:
        _fail(str(error))
    if "--json" in arguments:
        print(json.dumps({"runs": [diagnosis.as_json() for diagnosis in found]}, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(lines(diagnosis)) for diagnosis in found))
    sys.exit(1 if any(diagnosis.has_alarms for diagnosis in found) else 0)


def reward_test(arguments: Sequence[str]) -> None:
    """`grpo reward-test`: score a file's completions; exit code 1 if a score differs from its row's `expected`."""
    from rich.console import Console

    from grpo.recipe.load import read_yaml
    from rewards.runner.reward_test import reward_test as run

    settings = {"--columns": "{}", "--tokenizer": "null"}
    rest = list(arguments)
    while rest[:1] and rest[0] in settings and len(rest) > 1:
        settings[rest[0]] = rest[1]
        rest = rest[2:]
    if len(rest) < 2 or rest[0].startswith("-") or not all("=" in option for option in rest[2:]):
        _fail_usage("reward-test takes a function, a .jsonl file and the function's options as name=value.")
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    try:
        options = {name: read_yaml(value) for name, _, value in (option.partition("=") for option in rest[2:])}
        columns, tokenizer = (read_yaml(settings[name]) for name in ("--columns", "--tokenizer"))
        if not isinstance(columns, dict):
            _fail(f"--columns {settings['--columns']}: must be a mapping, such as '{{solution: answer}}'.")
        agrees = run(rest[0], Path(rest[1]), options, columns=columns, tokenizer=tokenizer, console=console)
    except ValueError as error:
        _fail(f"{error.__cause__ or ''}\n{error}".strip())
    sys.exit(0 if agrees else 1)


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its function, and its arguments and purpose for the usage text."""

    run: Callable[[Sequence[str]], None]
    arguments: str
    purpose: str


COMMANDS = {
    "train": Command(
        train,
        "[accelerate options] recipe.yaml [section.key=value …] [--stage NAME | --from NAME --until NAME]",
        "run a recipe's stage with `accelerate launch`; the options choose among a pipeline's stages",
    ),
    "check": Command(
        check,
        "[--num_processes N] recipe.yaml [section.key=value …]",
        "estimate a recipe's memory, tokens and FLOPs without running it",
    ),
    "plan": Command(
        plan,
        "[--gpus N] [--gpu h200] [--completion-tokens MEAN | --like RUN] recipe.yaml [section.key=value …]",
        "lay a recipe out on N GPUs: trainers, shards, servers, memory, time of a step and its bottleneck",
    ),
    "roofline": Command(roofline, "RUN", "compare the parts of a finished run's steps with this machine's floor"),
    "eval": Command(
        evaluate,
        "[recipe.yaml] [--model CHECKPOINT --tasks gsm8k,math500 …] | --compare RUN_A RUN_B",
        "evaluate a checkpoint on tasks, or compare two evaluations",
    ),
    "regrade": Command(
        regrade,
        "RUN | samples.jsonl [options]",
        "grade an evaluation's saved samples again, or external completions",
    ),
    "serve": Command(
        serve,
        "CHECKPOINT [--for-training] [vLLM's options, such as --port 8000]",
        "serve a checkpoint with vLLM's OpenAI-compatible API",
    ),
    "merge": Command(merge, "ADAPTER OUT", "write a LoRA adapter and its base as a whole model"),
    "dequantize": Command(dequantize, "MODEL OUT", "write a model with FP8 weights in bfloat16"),
    "drafts": Command(
        drafts,
        "recipe.yaml [section.key=value …]",
        "count the drafts of a model's multi-token prediction that speculative decoding would keep",
    ),
    "report": Command(report, "RUN", "rebuild a run's page from its files"),
    "diagnose": Command(
        diagnose,
        "RUN [--json]",
        "say what a run's or a pipeline's metrics show, and what to change; exit code 1 if it raises an alarm",
    ),
    "reward-test": Command(
        reward_test,
        "[--columns '{ours: theirs}'] [--tokenizer NAME] FUNCTION rows.jsonl [option=value …]",
        "score a file of completions and time the reward",
    ),
}


def usage() -> str:
    """The text of `grpo --help`."""
    lines = [f"grpo {name} {command.arguments}\n    {command.purpose}" for name, command in COMMANDS.items()]
    return "\n".join(["The command line of grpo-recipes.", "", *lines])


def _run_evaluation(command: Callable[[Sequence[str]], None], name: str, arguments: Sequence[str]) -> None:
    from grpo.launch.processes import is_launched, quieten, use_all_cores, wait_without_spinning_on_shared_cores
    from grpo.launch.signals import end_with_launcher, listen
    from grpo.recipe.errors import RunError

    if is_launched():
        end_with_launcher()
        use_all_cores()
    else:
        wait_without_spinning_on_shared_cores()
    quieten()
    listen(["grpo", name, *arguments])
    try:
        command(arguments)
    except (RunError, ValueError) as error:
        _fail(str(error))


def _split(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """(options before the recipe, its path, overrides after it)"""
    from grpo.launch.startup import takes_a_file

    recipes = [
        i
        for i, argument in enumerate(arguments)
        if argument.endswith(RECIPE_SUFFIXES)
        and not argument.startswith("-")
        and not (i and takes_a_file(arguments[i - 1]))
    ]
    if not recipes:
        _fail_usage("no recipe given. Name a file that ends in .yaml.")
    first = recipes[0]
    return list(arguments[:first]), arguments[first], list(arguments[first + 1 :])


def _stage_options(overrides: Sequence[str]) -> list[str]:
    """--from, --until and --stage, which choose a pipeline's stages, as overrides."""
    fields = {"--from": ("first",), "--until": ("last",), "--stage": ("first", "last")}
    found: list[str] = []
    rest = list(overrides)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option not in fields:
            found.append(word)
            continue
        if not equals and not rest:
            _fail_usage(f"train: {option} needs the name of a stage.")
        value = value if equals else rest.pop(0)
        found += [f"{field}={value}" for field in fields[option]]
    return found


def _fail_usage(message: str) -> NoReturn:
    _fail(f"{message}\n\n{usage()}")


def _fail(message: str) -> NoReturn:
    """Print the message from one process only, and exit with code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
    else:
        time.sleep(2)  # torchrun ends all processes when one exits: let rank 0 print first
    sys.exit(2)


if __name__ == "__main__":
    main()
