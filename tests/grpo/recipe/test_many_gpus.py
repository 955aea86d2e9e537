"""The recipes for many GPUs are valid, and are laid out or refused as they say; the launchers' options exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from transformers import Qwen2Config

from grpo.estimate.check import check_recipe
from grpo.estimate.layout.gpus import GPUS
from grpo.estimate.layout.layout import Layout, lay_out
from grpo.estimate.models import Models
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import load_recipe

ROOT = Path(__file__).parents[3]
RECIPES, LAUNCHERS = ROOT / "recipes", ROOT / "docs" / "launch"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-7B's published shape."""
    folder = tmp_path_factory.mktemp("qwen")
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=131_072,
    )
    config.save_pretrained(folder)
    return folder


def laid_out(name: str, model: Path, gpus: int) -> Layout:
    recipe = load_recipe(RECIPES / name, [f"model.model_name_or_path={model}"])
    assert isinstance(recipe, OnPolicyRecipe)
    return lay_out(recipe, Models(), GPUS["h100"], gpus)


def test_eight_gpus_hold_one_sharded_policy_and_an_engine_each(qwen: Path) -> None:
    layout = laid_out("gsm8k_8gpu.yaml", qwen, 8)
    assert (layout.trainers, layout.shards, layout.servers) == (8, 8, 0)
    assert not layout.excess()


def test_two_machines_hold_a_copy_each_and_a_third_serves(qwen: Path) -> None:
    layout = laid_out("gsm8k_2x8_servers.yaml", qwen, 24)
    assert (layout.trainers, layout.shards, layout.replicas) == (16, 8, 2)
    assert (layout.servers, layout.server_gpus) == (8, 1)
    assert not layout.excess()


@pytest.mark.parametrize("name", ["gsm8k_8gpu.yaml", "gsm8k_2x8_servers.yaml"])
def test_check_accepts_them(name: str, qwen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_recipe(RECIPES / name, [f"model.model_name_or_path={qwen}"], num_processes=8)
    assert "7.62B total" in capsys.readouterr().out


def test_the_671b_recipe_keeps_the_published_rollout() -> None:
    published, ours = load_recipe(RECIPES / "r1_zero_671b.yaml"), load_recipe(RECIPES / "r1_zero_671b_servers.yaml")
    assert isinstance(published, OnPolicyRecipe) and isinstance(ours, OnPolicyRecipe)
    assert ours.problems_per_rollout == published.problems_per_rollout == 512
    assert ours.trainer.max_steps * 16 == published.trainer.max_steps
    assert ours.trainer.sharding == "fsdp2" and ours.rollout.engine == "server"


@pytest.mark.parametrize("name", ["slurm.sh", "ssh.sh"])
def test_the_launchers_are_valid_shell(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCHERS / name], check=True)


def test_the_jobset_s_pods_train_and_serve() -> None:
    jobset = yaml.safe_load((LAUNCHERS / "jobset.yaml").read_text())
    jobs = {job["name"]: job["template"]["spec"] for job in jobset["spec"]["replicatedJobs"]}
    assert jobs["trainer"]["parallelism"] == jobs["trainer"]["completions"] == 2
    for job in jobs.values():
        (container,) = job["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        subprocess.run(["bash", "-n", "-c", container["args"][0]], check=True)


@pytest.mark.parametrize("name", ["slurm.sh", "ssh.sh", "jobset.yaml"])
def test_accelerate_has_every_option_the_launchers_use(name: str) -> None:
    text = (LAUNCHERS / name).read_text()
    used = set(re.findall(r"(--(?:num|machine|main)_\w+)", text))
    assert {"--num_machines", "--num_processes", "--machine_rank", "--main_process_ip"} <= used
    known = {option for action in launch_command_parser()._actions for option in action.option_strings}
    assert used <= known
    recipe = re.search(r"recipes/[\w.]+\.yaml", text)
    assert recipe and (ROOT / recipe[0]).exists()


@pytest.mark.parametrize(
    ("overrides", "memory"),
    [
        ([], 0.3),  # beside the trainer
        (["rollout.engine=server", "rollout.servers={start: 1}"], 0.9),
        (["rollout.engine=server", "rollout.servers={start: 1}", "rollout.gpu_memory_utilization=0.5"], 0.5),
    ],
)
def test_servers_that_a_run_starts_have_their_gpus_to_themselves(overrides: list[str], memory: float) -> None:
    recipe = load_recipe(RECIPES / "r1_zero.yaml", overrides)
    assert isinstance(recipe, OnPolicyRecipe)
    assert recipe.rollout.gpu_memory_utilization == memory
