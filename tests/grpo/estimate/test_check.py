"""`grpo check`: published models' parameters, memory against a measurement, advice when a model does not fit."""

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from grpo.estimate.check import check_recipe
from grpo.estimate.memory import beyond_update, caches_latents, engine_parts, training_parts
from grpo.estimate.models import Models
from grpo.estimate.shape import ModelShape, forward_flops, kv_bytes_per_token, measure_shape
from grpo.estimate.stage import estimate_stage, update_flops
from grpo.estimate.work import work_of
from grpo.model.load import CompletionLogProbs
from grpo.recipe.config import GRPORecipe
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.loop.lora import LoRAConfig
from grpo.recipe.section import StageRecipe
from tests.conftest import tiny_llama_config, tiny_v3_config

RECIPES = Path(__file__).parents[3] / "recipes"


def measured_peak(folder: Path, rows: int, length: int) -> int:
    """Bytes of tensors that a forward and a backward hold at most, beyond weights and their gradients.

    Counted at the allocator: a process's resident memory also depends on which freed pages malloc happens to reuse.
    """
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    if hasattr(model.config, "n_routed_experts"):
        model.set_experts_implementation("grouped_mm")
    scorer = CompletionLogProbs(model.train(), 1.0)

    def step(rows: int, length: int) -> None:
        ids = torch.randint(0, 256, (rows, length))
        positions = torch.arange(length).expand(rows, length)
        scorer(ids, positions, torch.arange(ids.numel()), ids.flatten())[0].sum().backward()

    step(1, 16)  # leaves the gradients
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        step(rows, length)
    assert profiled.profiler and profiled.profiler.kineto_results
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def recipe(tmp_path: Path, *overrides: str) -> GRPORecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "model: {model_name_or_path: ./model}\n"
        "data: {task: countdown, max_prompt_length: 32}\n"
        "rollout: {max_completion_length: 96, problems_per_step: 4, num_generations: 8}\n"
        "rewards: [{function: countdown}]\n"
    )
    loaded = load_recipe(path, overrides)
    assert isinstance(loaded, GRPORecipe)
    return loaded


def memory_parts(loaded: StageRecipe, shape: ModelShape, *, num_processes: int = 1, width: int = 4) -> dict[str, int]:
    """On CPU, in float32 unless `width` says otherwise."""
    work = work_of(loaded, num_processes=num_processes)
    assert work and work.training and work.generation
    trained = training_parts(work.training, shape, width, device="cpu", num_processes=num_processes)
    return trained | engine_parts(work.generation, shape, width, device="cpu")


def test_r1_zero_has_671b_parameters_and_37b_active(capsys: pytest.CaptureFixture[str]) -> None:
    fits = check_recipe(RECIPES / "r1_zero_671b.yaml", num_processes=2)
    printed = capsys.readouterr().out
    assert not fits
    assert "671.03B total, 37.55B active" in printed
    assert "61 layers, hidden 7168, 256 experts (8 active) and 1 shared" in printed
    assert "70,272 bytes per token" in printed  # 61 layers x (512 + 64) latents x 2 bytes
    assert "One process cannot hold it" in printed and "sharded over at least" in printed
    assert "32 problems x 16 completions = 512 samples, at most 33,554,432 tokens sampled" in printed


def test_the_r1_zero_recipe_has_the_published_hyperparameters() -> None:
    published = load_recipe(RECIPES / "r1_zero_671b.yaml")
    assert isinstance(published, GRPORecipe)
    assert published.trainer.learning_rate == 3e-6
    assert published.trainer.max_steps == 10_400
    assert published.algorithm.beta == 0.001
    assert published.algorithm.ref_model_sync_steps == 400
    assert published.algorithm.steps_per_generation == 16
    assert published.problems_per_rollout * published.rollout.num_generations == 8192
    assert published.rollout.problems_per_step * published.rollout.num_generations == 512
    assert published.rollout.temperature == 1.0
    lengths = {step: published.at(step).rollout.max_completion_length for step in (0, 8199, 8200, 10_399)}
    assert lengths == {0: 32_768, 8199: 32_768, 8200: 65_536, 10_399: 65_536}
    assert [(r.function, r.weight) for r in published.rewards] == [("accuracy", 1.0), ("format", 1.0)]


@pytest.mark.parametrize("config", [tiny_v3_config(), tiny_llama_config()], ids=["v3", "llama"])
def test_parameter_counts_equal_the_real_model_s(config) -> None:
    real = AutoModelForCausalLM.from_config(config)
    shape = measure_shape(config, rows=1, length=16, width=4)
    assert shape.total == sum(p.numel() for p in real.parameters())
    # Two MoE layers use 2 of 8 experts of 3 matrices, 64 x 32.
    idle = 2 * 6 * 3 * 64 * 32 if config.model_type == "deepseek_v3" else 0
    assert shape.active == shape.total - idle


@pytest.mark.parametrize(
    ("config", "rows", "length"),
    [(tiny_v3_config(), 32, 128), (tiny_llama_config(), 64, 128)],
    ids=["v3", "llama"],
)
def test_activations_agree_with_a_measured_peak(tmp_path: Path, config, rows: int, length: int) -> None:
    """With room for what malloc keeps of freed blocks, as in benchmarks/memory/plan_memory.py."""
    config.save_pretrained(tmp_path / "model")
    measured = measured_peak(tmp_path / "model", rows, length)
    tokens = f"trainer.max_tokens_per_micro_batch={rows * length}"
    loaded = recipe(tmp_path, tokens, f"rollout.max_completion_length={length - 32}")
    parts = memory_parts(loaded, measure_shape(config, rows=rows, length=length, width=4))
    estimate = parts["activations"] + parts["attention scores"] + parts["LM head, in chunks"]
    assert measured < estimate < 1.5 * measured


def test_memory_parts_follow_the_recipe(tmp_path: Path) -> None:
    shape = measure_shape(tiny_llama_config(), rows=4, length=128, width=4)
    plain = memory_parts(recipe(tmp_path), shape)
    assert plain["weights"] == plain["gradients"] == plain["engine: weights"] == 4 * shape.total
    assert plain["AdamW"] == 8 * shape.total
    assert plain["engine: KV cache"] == 2**30
    assert "reference" not in plain and "gradient buckets" not in plain

    more = memory_parts(recipe(tmp_path, "algorithm.beta=0.1"), shape, num_processes=2)
    assert more["reference"] == more["gradient buckets"] == 4 * shape.total


def test_sharding_divides_what_is_trained(tmp_path: Path) -> None:
    shape = measure_shape(tiny_v3_config(), rows=1, length=128, width=4)
    whole = memory_parts(recipe(tmp_path, "algorithm.beta=0.1"), shape, num_processes=4)
    sharded = memory_parts(recipe(tmp_path, "algorithm.beta=0.1", "trainer.sharding=fsdp2"), shape, num_processes=4)
    for part in ("weights", "gradients", "AdamW", "reference"):
        assert sharded[part] == pytest.approx(whole[part] / 4, abs=4)
    assert "gradient buckets" in whole and "gradient buckets" not in sharded
    assert sharded["layers, gathered"] == sharded["a layer's gradient"] == 2 * whole["weights"] // 3
    assert sharded["head, gathered"] == 4 * 263 * 64
    assert sharded["engine: weights"] == whole["engine: weights"]


def test_layers_are_gathered_in_the_precision_they_compute_in(tmp_path: Path) -> None:
    """But for adapters on experts, whose weights are cast afterwards."""
    sharded = recipe(tmp_path, "trainer.sharding=fsdp2", "model.dtype=bfloat16")
    lora = sharded.model.model_copy(update={"lora": LoRAConfig(target_parameters=["experts.down_proj"])})
    for loaded, gathered in ((sharded, 2), (sharded.model_copy(update={"model": lora}), 4)):
        shape = measure_shape(tiny_v3_config(), rows=1, length=128, width=2, lora=loaded.model.lora)
        parts = memory_parts(loaded, shape, num_processes=4, width=2)
        assert parts["layers, gathered"] == 2 * gathered * shape.total // 3
        assert parts["a layer's gradient"] == (gathered + 4) * shape.trained // 3
        assert ("weights, cast for the forward" in parts) == (gathered == 4)


def test_offloaded_parts_are_in_host_memory(tmp_path: Path) -> None:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    on = ["trainer.sharding=fsdp2", "trainer.gradient_checkpointing=true", "algorithm.beta=0.1"]
    plain = recipe(tmp_path, *on)
    moved = recipe(tmp_path, *on, "trainer.offload_params=true", "trainer.activation_offloading=true")
    before, after = (
        estimate_stage(one, Models(), device="cuda", num_processes=4, memory=2**34) for one in (plain, moved)
    )
    assert before and after and not before.host
    assert list(after.host) == ["weights", "gradients", "AdamW", "reference", "layers' inputs, checkpointed"]
    assert sum(after.host.values()) == before.memory - after.memory
    assert after.host["layers' inputs, checkpointed"] == 3 * 64 * 128 * 64 * 4  # layers x rows x tokens x width


def test_an_engine_that_sleeps_takes_the_place_of_what_only_an_update_holds() -> None:
    others = {"weights": 10, "gradients": 10, "AdamW": 20, "activations": 5, "reward models, in 2 workers": 7}
    beyond = "engine, beyond an update's parts"
    assert beyond_update({"engine: weights and KV cache": 40}, others) == {beyond: 25}
    assert beyond_update({"engine: weights and KV cache": 8}, others) == {beyond: 0}


def test_checkpointing_keeps_one_layer_s_activations_and_the_others_inputs(tmp_path: Path) -> None:
    deep = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=16, num_attention_heads=4
    )
    shape = measure_shape(deep, rows=4, length=128, width=4)
    budget = "trainer.max_tokens_per_micro_batch=512"
    full = memory_parts(recipe(tmp_path, budget), shape)
    checkpointed = recipe(tmp_path, budget, "trainer.gradient_checkpointing=true")
    parts = memory_parts(checkpointed, shape)
    assert full["activations"] == shape.kept_bytes * 17 // 16
    assert parts["activations, checkpointed"] == 16 * 512 * 64 * 4 + shape.kept_bytes // 8
    assert parts["attention scores"] == shape.score_bytes // 8


def test_kv_cache_bytes_for_mla_and_grouped_queries() -> None:
    v3 = Models().of_recipe(load_recipe(RECIPES / "r1_zero_671b.yaml"))
    assert kv_bytes_per_token(v3, 2, compressed=True) == 61 * 576 * 2
    assert kv_bytes_per_token(v3, 2, compressed=False) == 61 * 128 * 2 * 192 * 2
    assert kv_bytes_per_token(tiny_llama_config(), 4, compressed=False) == 2 * 2 * 2 * 32 * 4
    # On CPU, vLLM caches latents only at V3's size.
    assert caches_latents("vllm", v3, "cpu")
    assert not caches_latents("vllm", tiny_v3_config(), "cpu")
    assert caches_latents("vllm", tiny_v3_config(), "cuda")
    assert not caches_latents("hf", v3, "cuda")


def test_flops_are_two_per_parameter_forward_and_six_in_total(tmp_path: Path) -> None:
    config = tiny_llama_config()
    shape = measure_shape(config, rows=1, length=16, width=4)
    works = [work_of(recipe(tmp_path, *more)) for more in ([], ["algorithm.beta=0.1"])]
    plain, more = [work.training for work in works if work and work.training]
    assert plain.texts == ((100 * 4 * 8, 32 + 96),)  # steps x problems x completions
    rollout = forward_flops(shape, plain.texts)
    attention = 2 * 4 * (32 + 32) * 128  # layers x heads x (key + value) x length
    assert rollout == 100 * 4 * 8 * 128 * (2 * shape.active + attention)
    assert update_flops(plain, shape) == 3 * rollout
    assert update_flops(more, shape) == 4 * rollout


def test_a_small_model_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    recipe(tmp_path)
    assert check_recipe(tmp_path / "recipe.yaml", ["trainer.max_tokens_per_micro_batch=1024"])
    printed = capsys.readouterr().out
    assert "It fits." in printed
    assert "8 x 128 tokens" in printed
    assert "as MLA latents: 480 bytes" in printed  # 3 layers x (32 + 8) x 4 bytes


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    recipe(tmp_path)
    with pytest.raises(RecipeError, match=r"model_name_or_path='.*model'.*must be a folder with config\.json"):
        check_recipe(tmp_path / "recipe.yaml")


def test_check_is_a_command(tmp_path: Path) -> None:
    recipe(tmp_path)
    grpo = Path(sys.executable).parent / "grpo"
    done = subprocess.run(
        [grpo, "check", "--num_processes", "3", "recipe.yaml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rollout.problems_per_step=4 with 3 processes")
