"""`grpo roofline`: floors from FLOPs and bytes, on a run whose rows are written here."""

import json
from pathlib import Path

import pytest

from grpo.__main__ import main
from grpo.estimate.layout.gpus import GPUS
from grpo.estimate.layout.layout import lay_out
from grpo.estimate.layout.lengths import Lengths, read_run
from grpo.estimate.models import Models
from grpo.estimate.roofline import show
from grpo.estimate.roofline.floors import Part, parts, peak
from grpo.estimate.roofline.show import verdict
from grpo.estimate.shape import forward_flops
from grpo.recipe.load import RecipeError
from tests.conftest import tiny_v3_config

ROW = {
    "completions/mean_length": 48.0,
    "completions/max_length": 96.0,
    "frac_trained_samples": 0.5,
    "step_time": 10.0,
    "time/generate": 6.0,
    "time/update": 3.0,
    "time/sync": 0.5,
    "time/reward": 0.25,
    "time/score": 0.0,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three rollouts of 16 samples with prompts of 16 tokens; the first is slower."""
    tiny_v3_config().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(
        "model: {model_name_or_path: ./model}\n"
        "data: {task: countdown, max_prompt_length: 32}\n"
        "rollout: {max_completion_length: 96, problems_per_step: 2, num_generations: 8}\n"
        "rewards: [{function: countdown}]\n"
    )
    rows = [{"step": step, **ROW, "num_tokens": step * 16 * 64.0} for step in (1, 2, 3)]
    rows[0]["step_time"] = 100.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "environment.json").write_text(json.dumps({"num_processes": 1}))
    return tmp_path


def test_a_run_is_read_without_its_first_rollout(run: Path) -> None:
    found = read_run(run)
    assert found.lengths == Lengths(prompt=16, completion=48, longest=96, trained=0.5)
    assert found.mean("step_time") == 10.0
    assert found.mean("time/save") == 0.0


def test_prompts_of_groups_that_were_sampled_and_not_trained_on_are_counted(run: Path) -> None:
    """Dynamic sampling: num_tokens are those of six groups where two are trained on."""
    rows = [{"step": step, **ROW, "num_tokens": step * 3 * 16 * 64.0} for step in (1, 2, 3)]
    rows = [row | {"dynamic_sampling/sampled_groups": 6} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_run(run).lengths == Lengths(prompt=16, completion=48, longest=96, trained=0.5)


def test_floors_are_flops_and_bytes_at_the_peaks(run: Path) -> None:
    found = read_run(run)
    kind = peak("cpu", "two cores", flops=1e9, bandwidth=1e12, memory=2**34)
    layout = lay_out(found.recipe, Models(), kind, 1)
    by_name = {part.name: part for part in parts(found, layout)}
    shape = layout.shape
    sampled = forward_flops(shape, ((16, 64),))
    assert by_name["generate"].floor == pytest.approx(sampled / 1e9)
    # Half of the samples, each with an eighth of its prompt, forward and backward; AdamW moves 7 values of 4 bytes per
    # parameter.
    trained = forward_flops(shape, ((8, 50),))
    assert by_name["update"].floor == pytest.approx(3 * trained / 1e9 + 7 * 4 * shape.total / 1e12)
    assert by_name["sync"].floor == pytest.approx(2 * 4 * shape.total / 1e12)
    assert by_name["reward"].floor is None
    assert by_name["everything else"].seconds == pytest.approx(0.25)
    assert by_name["generate"].bound == "FLOP/s"


@pytest.mark.parametrize(
    ("device", "options", "cached"),
    [
        ("cuda", "", 32),  # two blocks of 16 tokens; the third has the last token
        ("cuda", "vllm_options: {enable_prefix_caching: false}", 0),
        ("cuda", "vllm_options: {block_size: 32}", 32),
        ("cuda", "engine: hf", 0),
        ("cpu", "", 0),  # blocks of 128
    ],
)
def test_a_prompt_in_the_engine_s_cache_is_computed_once_for_its_group(
    run: Path, device: str, options: str, cached: int
) -> None:
    recipe = (run / "recipe.yaml").read_text()
    if options:
        (run / "recipe.yaml").write_text(recipe.replace("rollout: {", f"rollout: {{{options}, "))
    rows = [{"step": step, **ROW, "num_tokens": step * 16 * 88.0} for step in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_run(run)
    assert found.lengths.prompt == 40
    layout = lay_out(found.recipe, Models(), peak(device, "p", flops=1e9, bandwidth=1e12, memory=2**34), 1)
    computed = forward_flops(layout.shape, ((16, 88),)) - forward_flops(layout.shape, ((14, cached),))
    [generate] = [part for part in parts(found, layout) if part.name == "generate"]
    assert generate.floor == pytest.approx(computed / 1e9)


def test_the_verdict_says_when_neither_peak_binds() -> None:
    rest = Part("update", 1.0, 0.9, "FLOP/s")
    assert "bound by memory bandwidth" in verdict([Part("generate", 9.0, 6.0, "memory bandwidth"), rest])
    assert "bound neither by FLOP/s nor by memory" in verdict([Part("generate", 9.0, 0.9, "memory bandwidth"), rest])
    assert "not those of the machine it ran on" in verdict([Part("generate", 9.0, 18.0, "memory bandwidth"), rest])
    assert "has no floor" in verdict([Part("reward", 9.0, None, ""), rest])


def test_roofline_is_a_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["roofline", str(run)])
    printed = capsys.readouterr().out
    assert "mean of 2 rollouts after the first, 16 + 48 tokens, 50% of samples trained on" in printed
    assert "All but generate and update: 10.0% of a step." in printed
    assert "generate is 60% of a step and" in printed


def test_servers_take_gpus_beside_those_of_the_run_s_processes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """environment.json counts trainers: two here, and two servers with a GPU each."""
    recipe = (run / "recipe.yaml").read_text().replace("rollout: {", "rollout: {engine: server, servers: {start: 2}, ")
    (run / "recipe.yaml").write_text(recipe)
    (run / "environment.json").write_text(json.dumps({"num_processes": 2}))
    monkeypatch.setattr(show, "machine", lambda processes: ("cuda", 80 * 10**9, "h100"))
    monkeypatch.setattr(show, "machine_flops", lambda dtype, processes: 1e12)
    monkeypatch.setattr(show, "machine_bandwidth", lambda: 1e12)
    found = {part.name: part for part in show.show_roofline(run)}
    layout = lay_out(read_run(run).recipe, Models(), GPUS["h100"], 4)
    assert (layout.trainers, layout.servers) == (2, 2)
    trained = forward_flops(layout.shape, ((8, 64),))  # half of 16 samples, each with its prompt
    assert found["update"].floor == pytest.approx((3 * trained / 2 + 7 * 4 * layout.shape.total) / 1e12)


def test_a_folder_without_rollouts_is_refused(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(RecipeError, match="has 0 rollouts, and at least two are needed"):
        read_run(run)
