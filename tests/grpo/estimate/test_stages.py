"""`grpo check` on every kind of stage and on a pipeline: literal sizes, whose model is meant, and what is not known."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from grpo.estimate.check import check_recipe
from grpo.estimate.machine import machine_flops
from grpo.estimate.models import Models
from grpo.estimate.shape import forward_flops
from grpo.estimate.stage import Estimate, estimate_stage
from grpo.estimate.wording import duration
from grpo.recipe.load import RecipeError, load_recipe
from tests.conftest import tiny_llama_config

GIB = 2**30
DATA: dict[str, Any] = {"task": "countdown", "max_prompt_length": 32}
ROLLOUT: dict[str, Any] = {"max_completion_length": 96}
COUNTDOWN: list[dict[str, Any]] = [{"function": "countdown"}]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and no weights."""
    tiny_llama_config().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def estimate(model: Path, *, device: str = "cpu", **sections: Any) -> Estimate:
    recipe = load_recipe(None, sections={"model": {"model_name_or_path": str(model)}, **sections})
    found = estimate_stage(recipe, Models(), device=device)
    assert found is not None
    return found


def test_sft_holds_weights_gradients_adamw_and_a_micro_batch(model: Path) -> None:
    data = {"sources": [{"dataset_name": "rows.jsonl"}], "max_length": 128, "max_rows": 1000}
    found = estimate(model, stage="sft", data=data, trainer={"per_device_train_batch_size": 4, "num_train_epochs": 2})
    assert found.parts["weights"] == found.parts["gradients"] == 4 * found.shape.total
    assert found.parts["AdamW"] == 8 * found.shape.total
    assert found.work.training and (found.work.training.rows, found.work.training.length) == (4, 128)
    assert found.update_flops == 3 * forward_flops(found.shape, ((2000, 128),))
    assert found.sampling_flops == 0 and not any(part.startswith("engine") for part in found.parts)


def test_rows_that_are_not_known_leave_flops_open_but_not_memory(model: Path) -> None:
    found = estimate(model, stage="sft", data={"sources": [{"dataset_name": "rows.jsonl"}], "max_length": 512})
    assert found.memory > 0 and found.flops is None and found.seconds(1) is None
    assert found.notes == ["The FLOPs depend on how many rows the data has."]


def test_a_context_that_is_too_short_is_said_before_anything_runs(model: Path) -> None:
    data = {"sources": [{"dataset_name": "rows.jsonl"}], "max_rows": 8, "max_length": 513}
    assert estimate(model, stage="sft", data=data).notes == [
        "Texts of up to 513 tokens exceed the model's context of 512: they will be refused."
    ]
    assert estimate(model, stage="sft", data=data | {"max_length": 512}).notes == []


def test_a_reward_model_reads_both_answers_of_a_pair_and_has_no_engine(model: Path) -> None:
    trainer = {"max_steps": 10, "batch_size": 16, "max_pairs_per_micro_batch": 8}
    found = estimate(model, stage="reward_model", data={"dataset_name": "pairs", "max_length": 64}, trainer=trainer)
    assert found.work.training and found.work.training.rows == 16
    assert found.update_flops == 3 * forward_flops(found.shape, ((2 * 10 * 16, 64),))
    assert set(found.parts) == {"weights", "gradients", "AdamW", "activations", "attention scores"}


@pytest.mark.parametrize(
    ("stage", "sections", "texts"),
    [
        (
            "rejection",
            {"data": DATA, "rollout": {**ROLLOUT, "num_problems": 100, "num_generations": 8}, "rewards": COUNTDOWN},
            ((800, 128),),
        ),
        (
            "pairs",
            {
                "data": DATA,
                "rollout": {**ROLLOUT, "num_generations": 4},
                "judge": "judge.py:prefer",
                "pairs": {"num_problems": 50},
            },
            ((200, 128),),
        ),
        (
            "held_out",
            {
                "rollout": {**ROLLOUT, "num_samples": 4},
                "sets": {
                    "easy": {"data": DATA, "rewards": COUNTDOWN, "num_problems": 10},
                    "long": {"data": {**DATA, "max_prompt_length": 64}, "rewards": COUNTDOWN, "num_problems": 20},
                },
            },
            ((40, 128), (80, 160)),
        ),
    ],
)
def test_stages_that_sample_hold_an_engine_alone(
    model: Path, stage: str, sections: dict[str, Any], texts: tuple[tuple[int, int], ...]
) -> None:
    found = estimate(model, stage=stage, **sections)
    assert found.parts == {"engine: weights": 4 * found.shape.total, "engine: KV cache": GIB}
    assert found.shape.kept_bytes == 0  # no activations were measured
    assert (found.sampling_flops, found.update_flops) == (forward_flops(found.shape, texts), 0.0)


def test_a_server_has_its_own_memory(model: Path) -> None:
    rollout = {**ROLLOUT, "engine": "server"}
    assert estimate(model, stage="rejection", data=DATA, rollout=rollout, rewards=COUNTDOWN).parts == {}


def test_several_teachers_wait_in_host_memory_and_one_is_on_the_device(model: Path, tmp_path: Path) -> None:
    larger = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    larger.save_pretrained(tmp_path / "larger")
    sizes = [Models().shape(config).total for config in (tiny_llama_config(), larger)]
    teachers = {name: {"model_name_or_path": str(tmp_path / name)} for name in ("model", "larger")}
    sections: dict[str, Any] = {
        "stage": "opd",
        "data": DATA,
        "rollout": {**ROLLOUT, "engine": "hf", "problems_per_step": 2, "num_generations": 4},
        "teachers": teachers,
        "teacher_column": "skill",
    }
    hidden = 2 * 4 * 96 * 256 * 4  # problems x completions x tokens x the wider teacher's states, in float32
    on_gpu = estimate(model, device="cuda", **sections)
    assert on_gpu.parts["teacher, one at a time"] == 4 * sizes[1]
    assert on_gpu.host == {"teachers": 4 * sum(sizes), "teachers' hidden states": hidden}
    on_cpu = estimate(model, **sections)
    assert on_cpu.parts["teachers"] == 4 * sum(sizes) and not on_cpu.host
    assert "teacher, one at a time" not in on_cpu.parts

    one = estimate(model, **sections | {"teachers": {"larger": teachers["larger"]}})
    assert one.parts["teacher"] == 4 * sizes[1] and "teachers" not in one.parts


def test_a_reward_model_is_held_by_every_reward_worker(model: Path) -> None:
    reward = {"function": "reward_model", "options": {"model_name_or_path": str(model)}}
    trainer = {"num_reward_workers": 3}
    found = estimate(model, stage="grpo", data=DATA, rollout=ROLLOUT, rewards=[reward], trainer=trainer)
    assert found.parts["reward models, in 3 workers"] == 3 * 4 * found.shape.total


def test_a_model_from_nothing_has_the_vocabulary_of_its_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("def tokenizer():\n    return range(100)\n")
    config = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    section = {"config": config | {"intermediate_size": 32}, "tokenizer": f"{tmp_path}/words.py:tokenizer"}
    trainer = {"max_steps": 10, "max_tokens_per_batch": 64}
    data = {"sources": [{"dataset_name": "x.jsonl"}], "max_length": 16}
    recipe = load_recipe(None, sections={"stage": "pretrain", "model": section, "data": data, "trainer": trainer})
    found = estimate_stage(recipe, Models(), device="cpu")
    assert found is not None
    assert found.shape.config.vocab_size == 100
    assert found.update_flops == 3 * forward_flops(found.shape, ((10 * 4, 16),))


def pipeline(base: str, student: Path) -> dict[str, Any]:
    sft = {"stage": "sft", "trainer": {"num_train_epochs": 2}}
    return {
        "stage": "pipeline",
        "base": base,
        "stages": {
            "rl": {"from": "base", "data": DATA, "rollout": ROLLOUT, "rewards": COUNTDOWN},
            "kept": {
                "stage": "rejection",
                "from": "rl",
                "data": DATA,
                "rollout": {**ROLLOUT, "num_problems": 100, "num_generations": 8},
                "rewards": COUNTDOWN,
                "select": {"max_per_problem": 2},
            },
            "sft": {**sft, "from": "rl", "data": {"sources": [{"dataset_name": "stage:kept"}], "max_length": 128}},
            "distill": {
                **sft,
                "model": {"model_name_or_path": str(student), "config": {"max_position_embeddings": 4096}},
                "data": {"sources": [{"dataset_name": "rows.jsonl"}]},
            },
        },
    }


def write(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(json.dumps(sections))  # JSON is YAML
    return path


def lines(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """What was printed, by the first word of each line."""
    return {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}


def test_a_pipeline_has_a_line_per_stage(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    student.save_pretrained(tmp_path / "student")
    assert check_recipe(write(tmp_path / "recipe.yaml", pipeline(str(model), tmp_path / "student")))
    printed = lines(capsys)
    assert printed["name"].split() == ["name", "stage", "reads", "GiB", "FLOP", "time"]
    assert printed["rl"].split()[:3] == ["rl", "grpo", "base"]
    assert printed["sft"].split()[:4] == ["sft", "sft", "rl,", "kept"]
    shape = Models().shape(tiny_llama_config())
    # At most 2 samples of 100 problems are kept, and read twice, by the base's architecture.
    assert printed["sft"].split()[5] == f"{3 * forward_flops(shape, ((2 * 200, 128),)):.1e}"
    assert printed["kept"].split()[4] == f"{forward_flops(shape, ((800, 128),)):.1e}"
    assert printed["distill"].split()[-2:] == ["?", "?"]
    assert printed["distill:"] == "distill: The FLOPs depend on how many rows the data has."
    assert printed["All"].startswith("All that is known fits in")


def test_the_shape_of_a_stage_is_that_of_the_model_at_the_start_of_its_chain(model: Path, tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "student")
    recipes = {
        "rl": load_recipe(
            None, sections={"model": {"model_name_or_path": str(model)}, "data": DATA, "rewards": COUNTDOWN}
        ),
        "sft": load_recipe(
            None,
            sections={
                "stage": "sft",
                "model": {"model_name_or_path": "stage:rl", "config": {"max_position_embeddings": 4096}},
                "data": {"sources": [{"dataset_name": "x.jsonl"}]},
            },
        ),
    }
    models = Models(recipes)
    assert models.named("stage:sft").hidden_size == tiny_llama_config().hidden_size
    assert models.named("stage:sft").max_position_embeddings == 4096
    assert models.named("stage:rl").max_position_embeddings == tiny_llama_config().max_position_embeddings
    assert models.named(str(tmp_path / "student")).hidden_size == 64


def test_a_model_that_is_not_there_yet_is_said_once_and_stops_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = pipeline("runs/base/checkpoint-1", model)
    assert check_recipe(write(tmp_path / "recipe.yaml", sections))
    printed = capsys.readouterr().out
    assert printed.count("no configuration found") == 1
    assert "rl, kept, sft: model_name_or_path='runs/base/checkpoint-1': no configuration found" in printed


def test_a_single_stage_whose_model_is_not_there_yet_is_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = {"model": {"model_name_or_path": "runs/base/checkpoint-1"}, "data": DATA, "rewards": COUNTDOWN}
    assert check_recipe(write(tmp_path / "recipe.yaml", sections))
    assert "Its memory and FLOPs cannot be estimated" in capsys.readouterr().out


def test_a_local_folder_without_a_model_is_an_error_that_names_the_stage(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.distill: model_name_or_path='.*nowhere'.*must be a folder"):
        check_recipe(write(tmp_path / "recipe.yaml", pipeline(str(model), tmp_path / "nowhere")))


def test_every_process_must_get_the_same_number_of_problems_in_every_stage(model: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.rl: rollout\.problems_per_step=32 with 3 processes"):
        check_recipe(write(tmp_path / "recipe.yaml", pipeline(str(model), model)), num_processes=3)


def test_what_does_not_fit_comes_with_what_would_help(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rollout = {**ROLLOUT, "kv_cache_gib": 1_000_000}
    sections = {"model": {"model_name_or_path": str(model)}, "data": DATA, "rollout": rollout, "rewards": COUNTDOWN}
    assert not check_recipe(write(tmp_path / "recipe.yaml", {"stage": "rejection", **sections}))
    alone = capsys.readouterr().out
    assert "The largest part is engine: KV cache.\nShrink the KV cache.\n" in alone
    assert not check_recipe(write(tmp_path / "recipe.yaml", sections))
    assert "micro-batches smaller (one full text must fit). Shrink the KV cache." in capsys.readouterr().out


def test_time_is_the_work_over_the_measured_speed(model: Path) -> None:
    data = {"sources": [{"dataset_name": "rows.jsonl"}], "max_rows": 1000}
    found = estimate(model, stage="sft", data=data)
    assert found.seconds(1) == pytest.approx((found.update_flops or 0) / 0.3 / machine_flops("float32", 1))


def test_durations_are_written_in_a_unit_one_can_read() -> None:
    assert [duration(seconds) for seconds in (0.4, 89, 400, 90_000, 86_400 * 30, 3.2e9)] == [
        "0.4 seconds",
        "89.0 seconds",
        "6.7 minutes",
        "25.0 hours",
        "30.0 days",
        "101 years",
    ]
