"""`accelerate launch recipe.yaml` runs as `grpo train recipe.yaml`, and so does `accelerate launch -m grpo train …`.

Python calls `take_over` when it starts `accelerate` (codec.pth). On its own, accelerate warns about options
that a recipe's user did not choose, prints its own traceback below every error, and leaves its training process running
when it is ended; `grpo train` runs accelerate's launcher without these (grpo/launch/processes.py).
"""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from grpo.launch.signals import COMMAND

# accelerate's options with a file of its own, which may be YAML, each in both of its spellings
_FILE_OPTIONS = {
    spelling
    for name in ("config_file", "deepspeed_config_file", "deepspeed_hostfile", "mpirun_hostfile")
    for spelling in (f"--{name}", f"--{name.replace('_', '-')}")
}


def take_over() -> None:
    """Become `grpo train` if this process is `accelerate launch` with a recipe in place of a script."""
    program, *words = [Path(word).name for word in sys.orig_argv[1:2]] + sys.orig_argv[2:]
    if [program, *words[:1]] == ["accelerate", "launch"]:
        del words[0]
    elif program != "accelerate-launch":
        return
    if (arguments := grpo_train_arguments(words)) is not None:
        os.environ[COMMAND] = shlex.join(["accelerate", "launch", *words])
        os.execv(sys.executable, [sys.executable, "-m", "grpo", "train", *arguments])


def takes_a_file(option: str) -> bool:
    """Whether the word after this one names a file for accelerate: neither a recipe nor a script."""
    return option in _FILE_OPTIONS


def grpo_train_arguments(words: Sequence[str]) -> list[str] | None:
    """The arguments of `grpo train` for these of `accelerate launch`; None if what they launch is not a recipe."""
    for i, word in enumerate(words):
        if word in ("-m", "--module"):
            return [*words[:i], *words[i + 3 :]] if [*words[i + 1 : i + 3]] == ["grpo", "train"] else None
        if word.startswith("-") or (i and takes_a_file(words[i - 1])):
            continue
        if word.endswith((".yaml", ".yml")):
            return [*words]
        if word.endswith(".py") or Path(word).is_file():  # a script
            return None
    return None
