"""The commands users type, verbatim. Most recipes here are invalid, so that runs end before anything is loaded."""

import os
import resource
import shutil
import subprocess
import sys
import zipfile
from argparse import Namespace
from pathlib import Path

import psutil
import pytest

from grpo.launch.codec import PROGRAM
from grpo.launch.processes import (
    is_launched,
    torchrun_options,
    use_all_cores,
    wait_without_spinning_on_shared_cores,
)
from grpo.launch.startup import grpo_train_arguments

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
WRONG = """# -*- coding: grpo-recipe -*-
import os; os._exit(77)  # neither a recipe nor to be run as Python
"""
UNEVEN = """# -*- coding: grpo-recipe -*-
model: {model_name_or_path: ./base}
data: {task: countdown, max_prompt_length: 32}
rollout: {problems_per_step: 3, max_completion_length: 64}
rewards: [{function: countdown}]
"""


def run(command: str, cwd: Path, gib: int = 64) -> subprocess.CompletedProcess[str]:
    """Run a command as typed, in this test's environment, with a memory limit."""
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHER_VARIABLES and "ACCELERATE" not in k}
    environment |= {"PATH": f"{BIN}{os.pathsep}{environment['PATH']}", "HF_HOME": str(cwd)}  # no accelerate config
    return subprocess.run(
        command.split(),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (gib << 30, gib << 30)),
    )


def test_accelerate_launches_a_recipe_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    done = run("accelerate launch uneven.yaml trainer.max_step=5 rollout.num_generations=1", tmp_path)
    assert "uneven.yaml: 2 errors" in done.stderr
    assert "trainer.max_step: unknown key. Did you mean 'max_steps'?" in done.stderr
    assert "rollout.num_generations=1" in done.stderr


def test_several_machines_become_one_run() -> None:
    """accelerate leaves CPU processes to MPI, so torchrun has to know the machines too."""
    asked = Namespace(num_machines=2, machine_rank=1, main_process_ip="10.0.0.1", main_process_port=29500)
    assert torchrun_options(asked, 4) == [
        *("--nnodes", "2", "--node_rank", "1", "--master_addr", "10.0.0.1", "--master_port", "29500"),
        *("--nproc_per_node", "2"),
    ]
    assert torchrun_options(Namespace(num_machines=None), 4) == ["--standalone", "--nproc_per_node", "4"]


def test_two_cpu_processes_are_started(tmp_path: Path) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    done = run("accelerate launch --num_processes 2 --cpu uneven.yaml", tmp_path)
    assert done.stderr.count("problems_per_step=3 with 2 processes") == 1


@pytest.mark.parametrize("count", [1, 2])
def test_accelerate_launch_prints_our_message_alone_and_exits_with_2(tmp_path: Path, count: int) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    wrong = run(f"accelerate launch --num_processes {count} --cpu uneven.yaml trainer.max_step=5", tmp_path)
    assert wrong.stderr == "uneven.yaml:\n  - trainer.max_step: unknown key. Did you mean 'max_steps'?\n"
    options = "rollout.problems_per_step=4"  # a recipe without fault, which a process refuses: there is no ./base
    refused = run(f"accelerate launch --num_processes {count} --cpu uneven.yaml {options}", tmp_path)
    assert refused.stderr == (
        f"model '{tmp_path}/base' has no tokenizer: no such folder or Hub model. Name a Hugging Face folder, or a Hub "
        "model that this machine has or can reach.\n"
    )
    assert (wrong.returncode, refused.returncode) == (2, 2)


def test_a_run_that_fails_ends_with_the_reward_s_error(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "fails.py").write_text("def fails(completions, **columns): raise KeyError('x')\n")
    (tmp_path / "run.yaml").write_text(
        f"# -*- coding: grpo-recipe -*-\nmodel: {{model_name_or_path: {tiny_llama}}}\n"
        "data: {task: countdown, max_prompt_length: 64}\n"
        "rollout: {engine: hf, problems_per_step: 1, num_generations: 2, max_completion_length: 4}\n"
        "rewards: [{function: ./fails.py:fails}]\n"
    )
    done = run("accelerate launch run.yaml", tmp_path)
    assert done.returncode == 1 and "CalledProcessError" not in done.stderr
    assert done.stderr.splitlines()[-2] == "reward 'fails' raised KeyError: 'x'"


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("x.yaml a.b=1", "x.yaml a.b=1"),
        ("--cpu --num_processes 2 x.yml", "--cpu --num_processes 2 x.yml"),
        ("--config_file a.yaml x.yaml", "--config_file a.yaml x.yaml"),
        ("--cpu -m grpo train x.yaml a.b=1", "--cpu x.yaml a.b=1"),
        ("-m other train x.yaml", None),
        ("--config_file a.yaml script.py x.yaml", None),
        ("--config-file a.yaml x.yaml", "--config-file a.yaml x.yaml"),
        ("--config-file a.yaml script.py", None),
        ("--mpirun-hostfile pyproject.toml x.yaml", "--mpirun-hostfile pyproject.toml x.yaml"),
        ("--cpu pyproject.toml x.yaml", None),  # a script without suffix
        ("--help", None),
    ],
)
def test_accelerate_launch_is_taken_over_for_recipes_only(
    monkeypatch: pytest.MonkeyPatch, words: str, arguments: str | None
) -> None:
    monkeypatch.chdir(ROOT)
    assert grpo_train_arguments(words.split()) == (arguments and arguments.split())


@pytest.mark.slow
def test_an_evaluation_on_two_processes_equals_one_on_a_single_process(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "sums.jsonl").write_text("".join(f'{{"prompt": "{i}+1=", "solution": "{i + 1}"}}\n' for i in range(5)))
    (tmp_path / "eval.yaml").write_text(
        f"# -*- coding: grpo-recipe -*-\nstage: eval\nmodel: {{model_name_or_path: {tiny_llama}}}\ntasks: [sums]\n"
        "define_tasks: {sums: {dataset_name: sums.jsonl}}\ntemplate: '{prompt}'\nengine: {name: hf}\n"
        "sampling: {num_samples: 3, max_completion_length: 4, temperature: 1.0, top_p: 1.0}\n"
    )
    for count in (1, 2):
        done = run(f"accelerate launch --num_processes {count} --cpu eval.yaml output=of{count}", tmp_path)
        assert done.stdout.count("| sums |") == 1, done.stderr
    rows = [(tmp_path / f"of{count}" / "samples.jsonl").read_text().splitlines() for count in (1, 2)]
    assert rows[0] == rows[1] and len(rows[0]) == 15
    assert not (tmp_path / "of2" / "samples-1.jsonl").exists()


def test_torchrun_workers_find_the_codec(tmp_path: Path) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    done = run("torchrun --standalone --nproc_per_node 2 uneven.yaml", tmp_path)
    assert done.stderr.count("problems_per_step=3 with 2 processes") == 1


@pytest.mark.parametrize("command", ["grpo train", "python -m grpo train"])
def test_grpo_train_prints_recipe_errors_and_exits_with_2(tmp_path: Path, command: str) -> None:
    (tmp_path / "uneven.yaml").write_text(UNEVEN)
    done = run(f"{command} --num_processes 1 uneven.yaml trainer.max_steps=0", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("uneven.yaml:\n  - trainer.max_steps=0: must be greater than 0.")
    assert "Traceback" not in done.stderr


def test_accelerate_launches_the_module(tmp_path: Path) -> None:
    done = run("accelerate launch -m grpo train none.yaml", tmp_path)
    assert "none.yaml does not exist." in done.stderr


def test_a_misspelt_command_gets_a_suggestion(tmp_path: Path) -> None:
    assert run("grpo trian x.yaml", tmp_path).stderr.startswith("unknown command 'trian'. Did you mean 'train'?\n")


@pytest.mark.parametrize("command", ["grpo", "grpo trian x.yaml", "grpo train"])
def test_wrong_usage_prints_the_usage(tmp_path: Path, command: str) -> None:
    done = run(command, tmp_path)
    assert done.returncode == (0 if command == "grpo" else 2)
    assert "grpo train [accelerate options] recipe.yaml" in done.stdout + done.stderr


def test_a_recipe_is_never_run_as_python_and_is_decoded_once(tmp_path: Path) -> None:
    # Python reads a source until its decoder returns nothing: one that never stops would exhaust the 4 GiB.
    (tmp_path / "wrong.yaml").write_text(WRONG * 1000)
    done = run("python wrong.yaml", tmp_path, gib=4)
    assert done.returncode == 2
    assert "wrong.yaml is not valid YAML" in done.stderr


def test_multiprocessing_children_do_not_train_again(tmp_path: Path) -> None:
    assert WRONG.encode().decode("grpo-recipe") == PROGRAM
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(WRONG)
    # A spawned child runs its parent's main file this way.
    code = f"import runpy; print(runpy.run_path({str(recipe)!r}, run_name='__mp_main__')['__name__'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "__mp_main__"


def test_a_wheel_installs_the_codec(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("grpo", "rewards", "rollout"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=source, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "grpo_recipe_codec.pth" in names and "grpo/launch/codec.py" in names and "rollout/types.py" in names
        lines = archive.read("grpo_recipe_codec.pth").decode().splitlines()
    assert len(lines) == 2 and all(line.startswith("import ") for line in lines)  # a .pth runs no others


def test_a_single_process_uses_all_cores_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for given, wanted in [("1", str(cores)), ("7", "7")]:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        use_all_cores()
        assert os.environ["OMP_NUM_THREADS"] == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    use_all_cores()
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_threads_wait_asleep_where_other_programs_use_the_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 12.0)
    wait_without_spinning_on_shared_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 96.0)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # the user's own
    wait_without_spinning_on_shared_cores()
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.delenv("GOMP_SPINCOUNT")
    wait_without_spinning_on_shared_cores()
    assert os.environ.pop("OMP_WAIT_POLICY") == "PASSIVE"
    assert capsys.readouterr().err == "other programs use 96% of the cores: OMP_WAIT_POLICY=PASSIVE for this run\n"


def test_launched_processes_are_recognised() -> None:
    assert is_launched({"LOCAL_RANK": "0"})
    assert is_launched({"ACCELERATE_MIXED_PRECISION": "no"})
    assert not is_launched({"OMP_NUM_THREADS": "1"})


def test_report_rebuilds_a_run_s_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.25}\n')
    done = run("grpo report .", tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == "index.html"
    assert "0.25" in (tmp_path / "index.html").read_text()


def test_report_rejects_a_folder_without_metrics(tmp_path: Path) -> None:
    done = run("grpo report .", tmp_path)
    assert done.returncode == 2 and "contains no metrics.jsonl" in done.stderr
