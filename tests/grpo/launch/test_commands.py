"""What commands say of themselves: help, usage of a single command, options in every place and spelling."""

from pathlib import Path

import pytest

import grpo
from grpo.__main__ import COMMANDS, main
from grpo.launch.commands import COMMANDS as DESCRIBED
from grpo.launch.commands import parse, positive, recipe_parser

# `eval` and `regrade` take over the signals of their process
QUIET = [name for name in COMMANDS if name not in ("eval", "regrade")]
GRPO = "model: {model_name_or_path: base}\ndata: {task: countdown}\nrewards: [{function: countdown}]\n"


def code(*arguments: str) -> object:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return ended.value.code


def test_every_command_is_described() -> None:
    assert list(COMMANDS) == list(DESCRIBED)


@pytest.mark.parametrize("name", QUIET)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_describes_one_command(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code(name, option) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: grpo {name} {DESCRIBED[name].arguments}\n\n{DESCRIBED[name].purpose}\n")
    assert said.count("grpo train") == (name == "train")


def test_help_names_every_option_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    code("plan", "--help")
    assert "a100, h100, h200, b200, l40s, rtx4090 or cpu" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out == f"grpo-recipes {grpo.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check"], "the following arguments are required: recipe.yaml"),
        (["check", "trainer.max_steps=5"], "trainer.max_steps=5: is no recipe; name a file that ends in .yaml"),
        (["check", "--num_process", "2", "x.yaml"], "no option --num_process. Did you mean '--num_processes'?"),
        (["check", "x.yaml", "--num-processes=0"], "0: must be a positive integer"),
        (["drafts", "x.yaml", "five"], "five: must have the form section.key=value"),
        (["train", "--num_processes", "2"], "no recipe given. Name a file that ends in .yaml."),
        (["train", "x.yaml", "--stage"], "--stage needs the name of a stage."),
        (["report", "a", "b"], "unrecognized arguments: b"),
        (["merge", "a"], "the following arguments are required: OUT"),
        (["serve"], "name a checkpoint's folder or Hub name"),
        (["reward-test", "accuracy"], "the following arguments are required: rows.jsonl"),
    ],
)
def test_a_wrong_argument_gets_the_usage_of_its_command_alone(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code(*arguments) == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == f"usage: grpo {arguments[0]} {DESCRIBED[arguments[0]].arguments}"
    assert error.startswith(f"grpo {arguments[0]}: error: ") and said in error


@pytest.mark.parametrize(
    "arguments", ["--num_processes 2 x.yaml a.b=1", "x.yaml --num-processes 2 a.b=1", "x.yaml a.b=1 --num_processes=2"]
)
def test_options_stand_anywhere_and_in_both_spellings(arguments: str) -> None:
    made = recipe_parser("check")
    made.add_argument("--num_processes", "--num-processes", type=positive)
    given = parse(made, arguments.split())
    assert (given.recipe, given.overrides, given.num_processes) == ("x.yaml", ["a.b=1"], 2)


def test_stages_are_chosen_of_a_pipeline_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "single.yaml").write_text(GRPO)
    assert code("train", f"{tmp_path}/single.yaml", "--stage", "sft") == 2
    assert capsys.readouterr().err == (
        f"--stage sft: chooses among the stages of a pipeline, and {tmp_path}/single.yaml is one stage, grpo.\n"
    )
    (tmp_path / "two.yaml").write_text(
        "stage: pipeline\nbase: base\nstages: {zero: {stage: grpo}, sft: {stage: sft}}\n"
    )
    assert code("train", f"{tmp_path}/two.yaml", "--from", "zero", "--until=sfft") == 2
    assert capsys.readouterr().err == (
        f"--until sfft: {tmp_path}/two.yaml has no such stage. Did you mean 'sft'? Stages: zero, sft.\n"
    )


@pytest.mark.parametrize("words", [["--config_file", "no.yaml"], ["--config-file=no.yaml"]])
def test_a_missing_file_of_accelerate_s_is_named(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert code("train", *words, "recipe.yaml") == 2
    assert "no.yaml: there is no such file. Correct the path" in capsys.readouterr().err


def test_what_a_recipe_names_is_checked_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(GRPO.replace("function: countdown", "function: contdown"))
    for command in ("train", "check"):
        assert code(command, f"{tmp_path}/recipe.yaml") == 2
        printed = capsys.readouterr()
        assert "rewards.0: no built-in reward is called 'contdown'. Did you mean 'countdown'?" in printed.err
        assert printed.out == ""


def test_a_run_s_folder_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    assert code("serve", str(tmp_path), "--port", "1") == 2
    assert f"Serve a checkpoint in it, such as {tmp_path}/checkpoint-5.\n" in capsys.readouterr().err
