"""The commands of `grpo`: what each takes and does, for its usage and its help.

`train` passes its options on to accelerate and `serve` to vLLM, so their parsers are only for the help.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass

from rollout.support.names import nearest


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand's arguments and purpose for the usage text; details: what else its help says."""

    arguments: str
    purpose: str
    details: str = ""


COMMANDS = {
    "train": Command(
        "[accelerate options] recipe.yaml [section.key=value …] [--stage NAME | --from NAME --until NAME]",
        "run a recipe's stage with `accelerate launch`; the options choose among a pipeline's stages",
        """options before the recipe: those of `accelerate launch`, such as
  --num_processes N     processes, one per GPU
  --cpu                 without a GPU
  --config_file FILE    written by `accelerate config`
  --use_fsdp --fsdp_version 2
options after the recipe, of a pipeline:
  --stage NAME          only this stage
  --from NAME           start at this stage
  --until NAME          stop after this stage""",
    ),
    "check": Command(
        "[--num_processes N] recipe.yaml [section.key=value …]",
        "estimate a recipe's memory, tokens and FLOPs without running it",
    ),
    "plan": Command(
        "[--gpus N] [--gpu h200] [--completion-tokens MEAN | --like RUN] recipe.yaml [section.key=value …]",
        "lay a recipe out on N GPUs: trainers, shards, servers, memory, time of a step and its bottleneck",
    ),
    "roofline": Command("RUN", "compare the parts of a finished run's steps with this machine's floor"),
    "eval": Command(
        "[recipe.yaml] [--model CHECKPOINT --tasks gsm8k,math500 …] | --compare RUN_A RUN_B",
        "evaluate a checkpoint on tasks, or compare two evaluations",
    ),
    "regrade": Command(
        "RUN | samples.jsonl [options]",
        "grade an evaluation's saved samples again, or external completions",
    ),
    "serve": Command(
        "CHECKPOINT [--for-training] [vLLM's options, such as --port 8000]",
        "serve a checkpoint with vLLM's OpenAI-compatible API",
        """CHECKPOINT: a folder or a Hub name.
  --for-training        take weights from a trainer, with --enable-lora adapters; opens vLLM's development endpoints
all other options are vLLM's: `grpo serve CHECKPOINT --help` lists them""",
    ),
    "merge": Command("ADAPTER OUT", "write a LoRA adapter and its base as a whole model"),
    "dequantize": Command("MODEL OUT", "write a model with FP8 weights in bfloat16"),
    "drafts": Command(
        "recipe.yaml [section.key=value …]",
        "count the drafts of a model's multi-token prediction that speculative decoding would keep",
    ),
    "report": Command("RUN", "rebuild a run's page from its files"),
    "diagnose": Command(
        "RUN [--json]",
        "say what a run's or a pipeline's metrics show, and what to change; exit code 1 if it raises an alarm",
    ),
    "reward-test": Command(
        "[--columns '{ours: theirs}'] [--tokenizer NAME] FUNCTION rows.jsonl [option=value …]",
        "score a file of completions and time the reward",
    ),
}


def usage() -> str:
    """The text of `grpo --help`."""
    lines = [f"grpo {name} {command.arguments}\n    {command.purpose}" for name, command in COMMANDS.items()]
    ends = ["", "grpo COMMAND --help describes a command's options; grpo --version."]
    return "\n".join(["The command line of grpo-recipes.", "", *lines, *ends])


def parser(name: str) -> ArgumentParser:
    """A command's parser, without arguments yet. Wrong ones print its usage and exit with code 2, --help with 0."""
    command = COMMANDS[name]
    return ArgumentParser(
        prog=f"grpo {name}",
        usage=f"grpo {name} {command.arguments}".replace("%", "%%"),
        description=command.purpose,
        epilog=command.details or None,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def recipe_parser(name: str) -> ArgumentParser:
    """Of a command that takes a recipe and overrides."""
    made = parser(name)
    made.add_argument("recipe", type=recipe_file, metavar="recipe.yaml", help="the recipe's file")
    example = "a value in its place, such as trainer.max_steps=5"
    made.add_argument("overrides", nargs="*", type=override, metavar="section.key=value", help=example)
    return made


def parse(made: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The arguments' values, options before, between or after the others."""
    known = made._option_string_actions
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("-") and option not in known:  # before argparse takes its value for something else
            made.error(f"there is no option {option}.{nearest(option, known)}")
    return made.parse_intermixed_args(arguments)


def positive(text: str) -> int:
    """The type of an option."""
    if not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text}: must be a positive integer")
    return int(text)


def recipe_file(text: str) -> str:
    if not is_recipe(text):
        raise ArgumentTypeError(f"{text}: is no recipe; name a file that ends in .yaml, before any section.key=value")
    return text


def override(text: str) -> str:
    if "=" not in text:
        raise ArgumentTypeError(f"{text}: must have the form section.key=value, such as trainer.max_steps=5")
    return text


def is_recipe(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) and not word.startswith("-")
