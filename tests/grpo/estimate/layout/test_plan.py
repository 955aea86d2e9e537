"""`grpo plan`: layouts, memory per GPU, time by phase against what was measured, and what would fit instead."""

from pathlib import Path

import pytest
from transformers import LlamaConfig

from grpo.__main__ import main
from grpo.estimate.layout.gpus import GPUS, cpu, find_gpu
from grpo.estimate.layout.layout import Layout, lay_out
from grpo.estimate.layout.lengths import Lengths
from grpo.estimate.layout.phases import Phase, awaited, overlap, phases
from grpo.estimate.layout.show import bottleneck, plan_recipe
from grpo.estimate.machine import machine_flops
from grpo.estimate.memory import beyond_update
from grpo.estimate.models import Models
from grpo.recipe.config import OnPolicyRecipe
from grpo.recipe.load import RecipeError, load_recipe
from tests.conftest import tiny_v3_config
from tests.grpo.estimate.test_check import measured_peak

RECIPES = Path(__file__).parents[4] / "recipes"
SERVERS = ("rollout.engine=server", "rollout.servers=[http://a:8000, http://b:8000]")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    tiny_v3_config().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.yaml").write_text(
        "model: {model_name_or_path: ./model}\n"
        "data: {task: countdown, max_prompt_length: 32}\n"
        "rollout: {max_completion_length: 96, problems_per_step: 16, num_generations: 8}\n"
        "rewards: [{function: countdown}]\n"
    )
    return tmp_path / "recipe.yaml"


def laid_out(path: Path, gpus: int, *overrides: str, gpu: str = "h200") -> Layout:
    recipe = load_recipe(path, overrides)
    assert isinstance(recipe, OnPolicyRecipe)
    return lay_out(recipe, Models(), GPUS[gpu], gpus)


def test_trainers_shards_and_servers_share_the_gpus(path: Path) -> None:
    plain = laid_out(path, 8)
    assert (plain.trainers, plain.shards, plain.replicas, plain.servers, plain.engines) == (8, 1, 8, 0, 8)
    hybrid = laid_out(path, 16, "trainer.sharding=fsdp2", "trainer.sharding_replicas=2")
    assert (hybrid.trainers, hybrid.shards, hybrid.replicas) == (16, 8, 2)
    apart = laid_out(path, 10, "trainer.sharding=fsdp2", *SERVERS)
    assert (apart.trainers, apart.shards, apart.servers, apart.server_gpus, apart.engines) == (8, 8, 2, 1, 2)
    assert not any(part.startswith("engine") for part in apart.on_trainer)
    assert sum(apart.on_server.values()) == int(0.9 * 141e9)  # vLLM's own default


def test_a_server_takes_as_many_gpus_as_its_model_needs() -> None:
    """And trainers fit on the GPUs that docs/scale.md says, with completions of R1-Zero's first 8,200 steps."""
    shorter = ["rollout.max_completion_length=32768", "trainer.max_tokens_per_micro_batch=34816"]
    recipe = load_recipe(RECIPES / "r1_zero_671b_servers.yaml", ["schedules=null", *shorter])
    assert isinstance(recipe, OnPolicyRecipe)
    models = Models()
    layout = lay_out(recipe, models, GPUS["h200"], 8 * 16 + 512)
    assert layout.server_gpus == 16  # 671B parameters x 2 bytes over 0.9 x 141 GB each
    assert layout.on_server["weights"] == layout.shape.total * 2 // 16
    # A layer of 256 experts in bfloat16, gathered twice, and its gradient are what no number of shards divides.
    assert layout.on_trainer["layers, gathered"] == 2 * 2 * layout.shape.total // 61
    assert "the largest part a layer's gradient" in layout.excess()
    assert not lay_out(recipe, models, GPUS["b200"], 8 * 16 + 512).excess()


def test_too_few_gpus_for_the_servers_are_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match="2 servers of 1 h200 each leave none of 2 GPUs to a trainer"):
        laid_out(path, 2, *SERVERS)


def test_what_does_not_fit_is_refused_with_what_would(path: Path) -> None:
    # Of so small a model, only the KV cache can be too large for a GPU of 24 GB: 28.8 GB for one sequence.
    overrides = ["rollout.max_model_len=60000000"]
    with pytest.raises(RecipeError) as refused:
        plan_recipe(path, overrides, gpus=4, gpu="rtx4090")
    message = str(refused.value)
    assert "does not fit on 4 x rtx4090: a trainer needs" in message and "the largest part engine" in message
    # Every GPU of a server would hold MLA's latents whole, so that only a larger GPU helps.
    assert "4 x l40s would hold it." in message
    assert "\n" not in message


def test_a_number_of_trainers_that_cannot_share_the_problems_is_refused(path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"problems_per_step=16 with 32 processes.* 32 x h200 would hold it with .*32"
    ):
        plan_recipe(path, gpus=32, gpu="h200")


def test_an_unknown_gpu_is_refused_with_the_nearest(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--gpu h20: must be one of a100, h100.*h200"):
        plan_recipe(path, gpus=1, gpu="h20")


# FLOPs per second of a float32 matrix product on two cores of an AMD EPYC and of an Intel Xeon.
EPYC, XEON = 153e9, 280e9
WIDE, R1_ZERO = (32, 16), (64, 8)  # problems and completions of each
GIVEN_LLAMA = ["rollout.problems_per_step=4", "rollout.max_completion_length=64", "data.max_prompt_length=128"]
GIVEN_LLAMA += ["trainer.max_tokens_per_micro_batch=512"]
SHORT = Lengths(11, 28.9, 134, 0.941)
SMOLLM2 = {"generate": 7.81, "update": 10.94, "sync": 0.309}


# Means over steps of finished runs on two cores. The constants of `cpu` are fitted to `one` and `SmolLM2-135M`.
@pytest.mark.parametrize(
    ("flops", "processes", "sizes", "lengths", "measured"),
    [
        (EPYC, 1, WIDE, Lengths(11, 43.4, 139.2, 0.583), {"generate": 5.53, "update": 3.54, "sync": 0.062}),
        (EPYC, 1, WIDE, Lengths(11, 45.5, 142.5, 0.602), {"generate": 5.88, "update": 3.34, "sync": 0.064}),
        (XEON, 1, R1_ZERO, SHORT, {"generate": 3.52, "update": 2.22, "sync": 0.073}),
        (XEON, 2, R1_ZERO, SHORT, {"generate": 2.81, "update": 1.80, "sync": 0.080}),
        (XEON, 4, R1_ZERO, SHORT, {"generate": 2.99, "update": 2.86, "sync": 0.111}),
    ],
    ids=["EPYC, seed 42", "EPYC, seed 43", "one", "two", "four"],
)
def test_phases_agree_with_a_measured_run(
    flops: float, processes: int, sizes: tuple[int, int], lengths: Lengths, measured: dict[str, float]
) -> None:
    problems, completions = sizes
    changed = [f"rollout.problems_per_step={problems}", f"rollout.num_generations={completions}"]
    recipe = load_recipe(RECIPES / "r1_zero.yaml", changed)
    assert isinstance(recipe, OnPolicyRecipe)
    layout = lay_out(recipe, Models(), cpu(processes, 24 * 2**30, flops, 2), processes)
    found = {phase.name: phase.seconds for phase in phases(recipe, layout, lengths)}
    assert found.pop("score") == 0  # no reference, one step per rollout
    assert found == {name: pytest.approx(seconds, rel=0.3) for name, seconds in measured.items()}


def test_phases_of_a_larger_dense_model_agree_with_a_measured_run(tmp_path: Path) -> None:
    """SmolLM2-135M, whose size these are."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path / "model")
    recipe = load_recipe(RECIPES / "r1_zero.yaml", [*GIVEN_LLAMA, f"model.model_name_or_path={tmp_path / 'model'}"])
    assert isinstance(recipe, OnPolicyRecipe)
    layout = lay_out(recipe, Models(), cpu(1, 24 * 2**30, XEON, 2), 1)
    found = {phase.name: phase.seconds for phase in phases(recipe, layout, Lengths(13.1, 60.8, 64, 1.0))}
    assert found == {"score": 0, **{name: pytest.approx(seconds, rel=0.3) for name, seconds in SMOLLM2.items()}}


def test_cpu_is_this_machine_divided_among_its_processes() -> None:
    one, two = find_gpu("cpu", 1), find_gpu("cpu", 2)
    assert one.device == two.device == "cpu" and two.flops == one.flops / 2 and two.memory == one.memory // 2
    assert one.flops == machine_flops("float32", device="cpu") > 1e9


def test_memory_agrees_with_a_measured_peak() -> None:
    measured = measured_peak(RECIPES / "v3_base", 46, 176)  # a micro-batch at full length
    recipe = load_recipe(RECIPES / "r1_zero.yaml")
    assert isinstance(recipe, OnPolicyRecipe)
    parts = lay_out(recipe, Models(), cpu(1, 24 * 2**30, EPYC, 2), 1).on_trainer
    estimate = parts["activations"] + parts["attention scores"] + parts["LM head, in chunks"]
    assert measured < estimate < 1.3 * measured  # with room for what malloc keeps


def test_an_engine_that_sleeps_during_updates_keeps_its_cache(path: Path) -> None:
    awake, asleep = (laid_out(path, 1, f"rollout.sleep_level={level}") for level in (0, 2))
    assert asleep.sequences == awake.sequences > 0
    assert sum(asleep.on_trainer.values()) < sum(awake.on_trainer.values())


def test_gradient_buckets_stay_while_the_engine_is_awake(path: Path) -> None:
    """Two whole copies, summed by DDP. What an update gives back is where the engine's memory is."""
    parts = laid_out(path, 2).estimate.parts
    engine = {name: size for name, size in parts.items() if name.startswith("engine")}
    others = {name: size for name, size in parts.items() if name not in engine}
    given_back = {name: size for name, size in others.items() if name not in ("weights", "AdamW", "gradient buckets")}
    assert others["gradient buckets"] == others["gradients"] > 0
    kept = beyond_update(engine, others)["engine, beyond an update's parts"]
    assert kept == sum(engine.values()) - sum(given_back.values())


def test_sharding_over_machines_is_slower_than_within_one(path: Path) -> None:
    recipe = load_recipe(path, ["trainer.sharding=fsdp2"])
    hybrid = load_recipe(path, ["trainer.sharding=fsdp2", "trainer.sharding_replicas=2"])
    assert isinstance(recipe, OnPolicyRecipe) and isinstance(hybrid, OnPolicyRecipe)
    lengths, models = Lengths(32, 96, 96), Models()
    update = [phases(one, lay_out(one, models, GPUS["h200"], 16), lengths)[2] for one in (recipe, hybrid)]
    assert update[0].seconds > update[1].seconds
    assert update[0].bound == "links between trainers"


def test_adapters_that_are_sent_are_written_and_read_in_float32_at_a_gigabyte_per_second(path: Path) -> None:
    sent = [*SERVERS, "model.lora={r: 8, target_modules: [o_proj]}", "rollout.adapters=send"]
    recipe = load_recipe(path, sent)
    assert isinstance(recipe, OnPolicyRecipe)
    layout = lay_out(recipe, Models(), GPUS["h200"], 10)
    (found,) = (phase for phase in phases(recipe, layout, Lengths(32, 96, 96)) if phase.name == "sync")
    assert found.seconds == pytest.approx(2 * 4 * layout.shape.trained / 1e9)


def test_the_bottleneck_is_one_phase_its_bound_and_what_helps(path: Path) -> None:
    recipe = load_recipe(path, ["rollout.max_completion_length=4064", "trainer.max_tokens_per_micro_batch=8192"])
    assert isinstance(recipe, OnPolicyRecipe)
    found = phases(recipe, lay_out(recipe, Models(), GPUS["h200"], 1), Lengths(32, 512, 4064))
    assert found[0].bound == "the engine's own work per iteration and token"
    assert "Bottleneck: generate takes" in bottleneck(found)
    assert "The longest completion sets the number of iterations" in bottleneck(found)


@pytest.mark.parametrize(
    ("seconds", "lockstep", "ahead", "longest"),
    [
        ((10.0, 2.0, 5.0, 1.0), 18.0, 11.0, "generate"),
        ((10.0, 6.0, 7.0, 1.0), 24.0, 14.0, "update"),  # generate is longer than each, and the trainers' side longer
    ],
)
def test_a_step_ahead_of_the_update_takes_the_longer_side(
    seconds: tuple[float, ...], lockstep: float, ahead: float, longest: str
) -> None:
    names = ("generate", "score", "update", "sync")
    found = [Phase(name, each, "FLOP/s", "") for name, each in zip(names, seconds, strict=True)]
    assert sum(phase.seconds for phase in awaited(found, overlap=False)) == lockstep
    assert sum(phase.seconds for phase in awaited(found, overlap=True)) == ahead
    assert f"Bottleneck: {longest} takes" in bottleneck(awaited(found, overlap=True))


def test_max_staleness_overlaps_sampling_and_update_on_gpus_alone(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ahead = load_recipe(path, [*SERVERS, "rollout.max_staleness=1"])
    assert isinstance(ahead, OnPolicyRecipe)
    assert overlap(ahead, lay_out(ahead, Models(), GPUS["h200"], 10))
    assert not overlap(ahead, lay_out(ahead, Models(), cpu(1, 24 * 2**30, EPYC, 2), 1))  # they share the cores
    plan_recipe(path, [*SERVERS, "rollout.max_staleness=1"], gpus=10, gpu="h200")
    printed = capsys.readouterr().out
    assert "With max_staleness=1 sampling runs beside the update" in printed and "The trainers wait for" in printed
    plan_recipe(path, [*SERVERS], gpus=10, gpu="h200")
    assert "beside the update" not in capsys.readouterr().out


def test_plan_is_a_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--gpus", "10", "--gpu", "H100", str(path), *SERVERS])
    printed = capsys.readouterr().out
    assert "10 x h100\n  8 trainers, each with the whole policy\n  2 servers of one GPU\n" in printed
    assert "A trainer's h100 (estimate)" in printed and "A server's h100 (estimate)" in printed
    assert "Bottleneck: " in printed and "Assumed: 30% of 9.89e+14 FLOP/s" in printed


@pytest.mark.parametrize(
    ("option", "said"), [("--gpu-count", "there is no option --gpu-count"), ("--gpus", "must be a positive")]
)
def test_wrong_options_are_named(path: Path, option: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", option, "0", str(path)])
    assert said in capsys.readouterr().err
