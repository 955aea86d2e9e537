"""The command line: `grpo COMMAND …`. Wrong usage and wrong recipes print a message and exit with code 2."""

import errno
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from grpo.launch.commands import is_recipe, override, parse, parser, positive, recipe_parser, usage
from rollout.support.names import nearest

HELP = ("-h", "--help")
PROCESSES = "processes that the work is divided among; default: 1"
KINDS = "a100, h100, h200, b200, l40s, rtx4090 or cpu"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; `arguments` default to the process's own."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in HELP:
        print(usage())
    elif name == "--version":
        print(f"grpo-recipes {metadata.version('grpo-recipes')}")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        _fail(f"unknown command {name!r}.{nearest(name, COMMANDS)}\n\n{usage()}")


def train(arguments: Sequence[str]) -> None:
    """`grpo train`: run the recipe in a launched process; otherwise launch the processes."""
    from grpo.launch.processes import is_launched, launch, launch_on_cpu, missing_processes, quieten, use_all_cores
    from grpo.launch.signals import Stopped, end, end_with_launcher, listen

    options, path, words = _split(arguments)
    command = ["train", path, *words]
    if is_launched():
        end_with_launcher()
        use_all_cores()
        quieten()
    from grpo.recipe.errors import RunError
    from grpo.recipe.load import load_recipe
    from grpo.recipe.record import check_world
    from grpo.stages.checks.references import check_references
    from rewards.runner.call import RewardError

    try:
        recipe: Any = _with_stages(path, load_recipe, words)  # of any stage
        if not is_launched():  # a launched process has been started by one that did
            check_references(recipe, path)
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
    made = recipe_parser("check")
    made.add_argument("--num_processes", "--num-processes", type=positive, default=1, metavar="N", help=PROCESSES)
    given = parse(made, arguments)
    from grpo.estimate.check import check_recipe

    try:
        check_recipe(given.recipe, given.overrides, num_processes=given.num_processes)
    except ValueError as error:
        _fail(str(error))


def plan(arguments: Sequence[str]) -> None:
    """`grpo plan`: lay a recipe out on many GPUs and estimate a step."""
    made = recipe_parser("plan")
    made.add_argument("--gpus", type=positive, default=8, metavar="N", help="GPUs in all; default: 8")
    made.add_argument("--gpu", type=str.lower, default="h200", metavar="KIND", help=f"{KINDS}; default: h200")
    mean = "mean tokens of a completion; default: the longest"
    made.add_argument("--completion-tokens", type=positive, metavar="MEAN", help=mean)
    made.add_argument("--like", type=Path, metavar="RUN", help="a finished run, whose lengths are taken")
    given = parse(made, arguments)
    from grpo.estimate.layout.show import plan_recipe

    try:
        plan_recipe(
            given.recipe,
            given.overrides,
            gpus=given.gpus,
            gpu=given.gpu,
            completion=given.completion_tokens,
            run=given.like,
        )
    except ValueError as error:
        _fail(str(error))


def roofline(arguments: Sequence[str]) -> None:
    """`grpo roofline`: a finished run's steps against what this machine could do."""
    run = _folders("roofline", arguments, run="the run's folder").run
    from grpo.estimate.roofline.show import show_roofline
    from grpo.recipe.errors import RunError

    try:
        show_roofline(run)
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
    if not arguments or arguments[0].startswith("-"):  # the options after it are vLLM's
        parse(parser("serve"), arguments[:1])
        parser("serve").error("name a checkpoint's folder or Hub name, then vLLM's options")
    from rollout.engines.base import newest_inside

    if newest := newest_inside(arguments[0]):
        _fail(f"{arguments[0]} is the folder of a run. Serve a checkpoint in it, such as {newest}.")
    from rollout.engines.vllm_serve import serve as become_server

    try:
        become_server(arguments[0], arguments[1:])
    except (OSError, ValueError) as error:
        _fail(str(error))


def merge(arguments: Sequence[str]) -> None:
    """`grpo merge`: write a LoRA adapter as a whole model."""
    given = _folders("merge", arguments, adapter="an adapter's folder", out="the folder to write")
    from grpo.evaluation.engines import merge as merge_folders

    try:
        merge_folders(given.adapter, given.out)
    except (OSError, ValueError) as error:
        _fail(str(error))


def dequantize(arguments: Sequence[str]) -> None:
    """`grpo dequantize`: write a model with FP8 weights in bfloat16."""
    given = _folders("dequantize", arguments, model="a model's folder", out="the folder to write")
    from grpo.model.fp8 import write_dequantized

    try:
        write_dequantized(given.model, given.out)
    except (OSError, ValueError) as error:
        _fail(str(error))


def drafts(arguments: Sequence[str]) -> None:
    """`grpo drafts`: how many drafts of a model's multi-token prediction speculative decoding would keep."""
    given = parse(recipe_parser("drafts"), arguments)
    from grpo.launch.processes import quieten
    from grpo.recipe.config import OnPolicyRecipe
    from grpo.recipe.load import load_recipe
    from grpo.stages.checks.drafts import measure_drafts

    quieten()
    try:
        recipe = load_recipe(given.recipe, given.overrides)
        if not isinstance(recipe, OnPolicyRecipe):
            _fail(f"{given.recipe}: drafts are measured on rollouts, which stage {recipe.stage} has none of.")
        print("\n".join(measure_drafts(recipe)))
    except (OSError, ValueError) as error:
        _fail(str(error))


def report(arguments: Sequence[str]) -> None:
    """`grpo report`: rebuild a run's page from its files."""
    run_dir = _folders("report", arguments, run="the run's folder").run
    from grpo.recipe.errors import RunError
    from grpo.report.page.write import write_page
    from grpo.report.records import METRICS_FILE

    if not (run_dir / METRICS_FILE).exists():
        _fail(f"{run_dir} contains no {METRICS_FILE}. Name a run's output_dir.")
    try:
        print(write_page(run_dir))
    except RunError as error:
        _fail(str(error))


def diagnose(arguments: Sequence[str]) -> None:
    """`grpo diagnose`: say what a run's metrics show; exit code 1 if it raises an alarm."""
    made = parser("diagnose")
    made.add_argument("run", type=_run_folder, metavar="RUN", help="the folder of a run or a pipeline")
    made.add_argument("--json", action="store_true", help="print JSON")
    given = parse(made, arguments)
    from grpo.report.diagnosis.run import diagnose as diagnose_folder
    from grpo.report.diagnosis.run import lines

    try:
        found = diagnose_folder(given.run)
    except ValueError as error:
        _fail(str(error))
    if given.json:
        print(json.dumps({"runs": [diagnosis.as_json() for diagnosis in found]}, indent=1, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(lines(diagnosis)) for diagnosis in found))
    sys.exit(1 if any(diagnosis.has_alarms for diagnosis in found) else 0)


def reward_test(arguments: Sequence[str]) -> None:
    """`grpo reward-test`: score a file's completions; exit code 1 if a score differs from its row's `expected`."""
    made = parser("reward-test")
    made.add_argument(
        "--columns", default="{}", metavar="'{ours: theirs}'", help="the function's name: the file's name"
    )
    made.add_argument("--tokenizer", default="null", metavar="NAME", help="computes completion_ids")
    reference = "a built-in reward, package.module:function or path/to/file.py:function"
    made.add_argument("function", metavar="FUNCTION", help=reference)
    made.add_argument("rows", type=Path, metavar="rows.jsonl", help="a completion a line, with its columns")
    made.add_argument("options", nargs="*", type=override, metavar="option=value", help="of the function")
    given = parse(made, arguments)
    from rich.console import Console

    from grpo.recipe.load import read_yaml
    from rewards.runner.reward_test import reward_test as run

    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120)
    try:
        options = {name: read_yaml(value) for name, _, value in (option.partition("=") for option in given.options)}
        columns, tokenizer = (read_yaml(value) for value in (given.columns, given.tokenizer))
        if not isinstance(columns, dict):
            _fail(f"--columns {given.columns}: must be a mapping, such as '{{solution: answer}}'.")
        agrees = run(given.function, given.rows, options, columns=columns, tokenizer=tokenizer, console=console)
    except ValueError as error:
        _fail(f"{error.__cause__ or ''}\n{error}".strip())
    sys.exit(0 if agrees else 1)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "check": check,
    "plan": plan,
    "roofline": roofline,
    "eval": evaluate,
    "regrade": regrade,
    "serve": serve,
    "merge": merge,
    "dequantize": dequantize,
    "drafts": drafts,
    "report": report,
    "diagnose": diagnose,
    "reward-test": reward_test,
}


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
    """(accelerate's options before the recipe, its path, the words after it)"""
    from grpo.launch.startup import takes_a_file

    if arguments[:1] and arguments[0] in HELP:
        print(parser("train").format_help())
        sys.exit(0)
    recipes = [i for i, word in enumerate(arguments) if is_recipe(word) and not (i and takes_a_file(arguments[i - 1]))]
    if not recipes:
        parser("train").error("no recipe given. Name a file that ends in .yaml.")
    first = recipes[0]
    for i, word in enumerate(arguments[:first]):
        option, equals, file = word.partition("=")
        file = file if equals else arguments[i + 1]
        if takes_a_file(option) and not Path(file).is_file():
            _fail(f"{option} {file}: there is no such file. Correct the path; `accelerate config` writes one.")
    return list(arguments[:first]), arguments[first], list(arguments[first + 1 :])


def _with_stages(path: str, load: Callable[[str, Sequence[str]], Any], words: Sequence[str]) -> Any:
    """The recipe, of a pipeline with the stages that --from, --until and --stage choose."""
    fields = {"--from": ("first",), "--until": ("last",), "--stage": ("first", "last")}
    chosen: dict[str, str] = {}  # stage -> the option that names it
    overrides: list[str] = []
    limits: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option not in fields:
            overrides.append(word)
            continue
        if not equals and not rest:
            parser("train").error(f"{option} needs the name of a stage.")
        value = value if equals else rest.pop(0)
        chosen[value] = option
        limits |= dict.fromkeys(fields[option], value)
    recipe = load(path, overrides)
    for name, option in chosen.items():
        if recipe.stage != "pipeline":
            _fail(f"{option} {name}: chooses among the stages of a pipeline, and {path} is one stage, {recipe.stage}.")
        if name not in recipe.stages:
            _fail(
                f"{option} {name}: {path} has no such stage.{nearest(name, recipe.stages)} "
                f"Stages: {', '.join(recipe.stages)}."
            )
    return recipe.model_copy(update=limits) if limits else recipe


def _folders(name: str, arguments: Sequence[str], **folders: str) -> Namespace:
    """The arguments of a command that takes folders only: what each is."""
    made = parser(name)
    for folder, text in folders.items():
        kind = _run_folder if folder == "run" else Path
        made.add_argument(folder, type=kind, metavar=folder.upper(), help=text)
    return parse(made, arguments)


def _run_folder(text: str) -> Path:
    """A run's folder; a file such as its metrics.jsonl stands for the folder it is in."""
    path = Path(text)
    return path.parent if path.is_file() else path


def _fail(message: str) -> NoReturn:
    """Print the message from one process only, and exit with code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(message, file=sys.stderr)
    else:
        time.sleep(2)  # torchrun ends all processes when one exits: let rank 0 print first
    sys.exit(2)


if __name__ == "__main__":
    main()
