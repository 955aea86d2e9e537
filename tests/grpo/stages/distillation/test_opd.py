"""Stage `opd`: what it refuses, that it learns, resumes exactly and does not depend on the number of processes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM

import grpo
from grpo.learner.scoring import Batching
from grpo.recipe.errors import RefusedError
from grpo.recipe.load import RecipeError, load_recipe
from grpo.recipe.stages.opd import OPDRecipe
from grpo.report.records import deterministic
from grpo.stages import build
from grpo.stages.distillation.teachers import Teachers, check_column, teacher_of
from grpo.stages.problems import stream_of
from rollout.types import Problem
from tests.conftest import byte_tokenizer, sharpen, tiny_llama_config
from tests.grpo.stages.test_trainer import launch, rows, run

RECIPE = "# -*- coding: grpo-recipe -*-\n"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts, of which every second asks for the other teacher."""
    file = tmp_path_factory.mktemp("data") / "questions.jsonl"
    lines = [{"prompt": f"{i}+{i}", "skill": ("sums", "words")[i % 2]} for i in range(8)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture(scope="module")
def other_llama(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """tiny_llama with other weights."""
    folder = tmp_path_factory.mktemp("models") / "other"
    model = LlamaForCausalLM(tiny_llama_config())
    sharpen(model, seed=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


def write(folder: Path, student: Path, teachers: dict[str, Path], questions: Path, **sections: dict[str, Any]) -> Path:
    recipe: dict[str, Any] = {
        "stage": "opd",
        "model": {"model_name_or_path": str(student)},
        "teachers": {name: {"model_name_or_path": str(path)} for name, path in teachers.items()},
        "teacher_column": "skill",
        "data": {"dataset_name": str(questions), "max_prompt_length": 8},
        "rollout": {"engine": "hf", "problems_per_step": 4, "num_generations": 2, "max_completion_length": 8},
        "algorithm": {"loss": "jsd"},
        "trainer": {"output_dir": str(folder / "run"), "max_steps": 4, "learning_rate": 3e-3},
    }
    for name, values in sections.items():
        recipe[name] = {**recipe.get(name, {}), **values} if isinstance(values, dict) else values
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE + yaml.safe_dump(recipe))
    return path


def test_teachers_are_there_before_the_engine_takes_its_memory_and_the_largest_micro_batch_is_tried(
    tiny_llama: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write(tmp_path, tiny_llama, {"sums": tiny_llama, "words": tiny_llama}, questions))
    assert isinstance(recipe, OPDRecipe)
    loaded: list[str] = []

    def teachers(recipe: OPDRecipe, *_arguments: Any, **_keywords: Any) -> None:
        loaded.extend(recipe.teachers)

    def engine(*_arguments: Any) -> None:
        raise ValueError(f"after {loaded}")

    monkeypatch.setattr(build, "Teachers", teachers)
    monkeypatch.setattr(build, "_engine", engine)
    with pytest.raises(ValueError, match=r"after \['sums', 'words'\]"):
        build.build(recipe)


@pytest.mark.parametrize("loss", ["sampled", "reverse_kl", "forward_kl"])
def test_the_student_comes_near_its_teacher(
    tiny_llama: Path, other_llama: Path, questions: Path, tmp_path: Path, loss: str
) -> None:
    path = write(
        tmp_path,
        tiny_llama,
        {"only": other_llama},
        questions,
        algorithm={"loss": loss},
        teacher_column=None,  # type: ignore[arg-type]
        rollout={"problems_per_step": 8},
        trainer={"output_dir": str(tmp_path / "run"), "max_steps": 12, "learning_rate": 3e-3},
    )
    assert grpo.train(path).name == "checkpoint-12"
    steps = rows(tmp_path / "run")
    kl = [row["teacher_kl"] for row in steps]
    assert sum(kl[-3:]) < 0.8 * sum(kl[:3])
    assert not [name for name in steps[0] if name.startswith(("reward", "frac_reward"))]


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    teachers = {"sums": tiny_llama, "words": tiny_v3}
    settings: dict[str, Any] = {
        "algorithm": {"loss": "sampled", "steps_per_generation": 2},
        "rewards": [{"function": "random"}],
    }
    whole, half = (write(tmp_path / name, tiny_v3, teachers, questions, **settings) for name in ("whole", "half"))
    finished = grpo.train(whole)
    grpo.train(half, trainer={"max_steps": 2})
    resumed = grpo.train(half, trainer={"resume_from_checkpoint": True})
    for name in ("metrics.jsonl", "samples.jsonl"):
        before, after = ([deterministic(row) for row in rows(path.parent / "run", name)] for path in (whole, half))
        assert after == before
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (resumed, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_source_of_a_mixture_names_its_teacher(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    mixture = [{"name": name, "dataset_name": str(questions)} for name in ("sums", "words")]
    data = {"dataset_name": None, "mixture": mixture}
    path = write(
        tmp_path, tiny_v3, {"sums": tiny_llama, "words": tiny_v3}, questions, data=data, trainer={"max_steps": 1}
    )
    path.write_text(path.read_text().replace("teacher_column: skill", "teacher_column: data_source"))
    grpo.train(path)
    [row] = [row for row in rows(tmp_path / "run") if "divergence" in row]
    assert row["divergence"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_do_what_one_does(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path, sharding: str
) -> None:
    """Sharded: with teachers in parts in host memory, of which each judges in one process only."""
    teachers = {"sums": tiny_llama, "words": tiny_v3}
    two = write(tmp_path / "two", tiny_v3, teachers, questions, trainer={"max_steps": 1, "sharding": sharding})
    one = write(tmp_path / "one", tiny_v3, teachers, questions, trainer={"max_steps": 1})
    run(launch("--cpu", "--num_processes", "2", two))
    grpo.train(one)
    [expected], [got] = (rows(tmp_path / name / "run") for name in ("one", "two"))
    for name in ("loss", "divergence", "teacher_kl", "grad_norm", "entropy"):
        assert got[name] == pytest.approx(expected[name], rel=1e-4)


def recipe_of(path: Path, **sections: Any) -> OPDRecipe:
    recipe = load_recipe(path, sections=sections)
    assert isinstance(recipe, OPDRecipe)
    return recipe


def test_a_problem_without_a_known_teacher_is_an_error_that_names_the_known(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(write(tmp_path, tiny_v3, {"sums": tiny_llama, "word": tiny_v3}, questions))
    expected = "problem .* asks for teacher 'words', and the recipe's are sums, word. Did you mean 'word'?"
    with pytest.raises(ValueError, match=expected):
        check_column(recipe, [stream_of(recipe.data, byte_tokenizer(), seed=0)], Accelerator(cpu=True))
    with pytest.raises(ValueError, match=r"has no such column; it has target\. Name the column that chooses among"):
        teacher_of(recipe, Problem(id="p", prompt="", columns={"target": 3}))
    with pytest.raises(RefusedError, match="asks for teacher 'words'"):
        grpo.train(tmp_path / "recipe.yaml")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()  # before a model loads


def test_a_quantized_students_teachers_are_not_quantized(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    model = {"lora": {"r": 4}, "quantization": "4bit"}
    recipe = recipe_of(write(tmp_path, tiny_v3, {"sums": tiny_llama, "words": tiny_llama}, questions, model=model))
    batching = Batching(256, pad_token_id=258)
    found = Teachers(recipe, Accelerator(cpu=True), tokenizer_size=263, batching=batching).teachers["sums"].scorer
    stored = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).state_dict()
    weights = found.state_dict()
    assert all(torch.equal(weights[f"model.{name}"], weight) for name, weight in stored.items())


def test_a_teacher_with_another_tokenizer_is_refused(
    tiny_v3: Path, tiny_llama: Path, questions: Path, tmp_path: Path
) -> None:
    larger, ended = tmp_path / "larger", tmp_path / "ended"
    for folder, change in ((larger, {"additional_special_tokens": ["<tool>"]}), (ended, {"eos_token": "<pad>"})):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        tokenizer.add_special_tokens(change)
        tokenizer.save_pretrained(folder)
        LlamaForCausalLM(tiny_llama_config()).save_pretrained(folder)
    for folder, difference in (
        (larger, r"264 entries against 263, 1 of them different: '<tool>' has id 263 there and None here"),
        (ended, "eos_token_id is 258 there and 257 here"),
    ):
        path = write(tmp_path / f"{folder.name}_run", tiny_v3, {"sums": tiny_llama, "words": folder}, questions)
        with pytest.raises(
            RefusedError, match=rf"teachers\.words=.*: its tokenizer is not the student's \({difference}"
        ):
            grpo.train(path)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher_column": None}, "teachers: sums, words are several, so each problem must name its own"),
        ({"algorithm": {"loss": "sampled", "beta": 0.2}}, "only jsd has a mixture"),
        ({"algorithm": {"beta": 1.0}}, r"algorithm.beta=1.0: .* less than 1"),
        ({"teachers": {"sums": {"path": "x"}}}, r"teachers.sums.path: unknown key"),
        (
            {"evaluation": {"num_problems": 4, "data": {"task": "countdown", "max_prompt_length": 8}}},
            "nothing says which answer is right",
        ),
        ({"algorithm": {"loss": "kl"}}, "'sampled', 'reverse_kl', 'forward_kl' or 'jsd'"),
    ],
)
def test_recipes_that_cannot_be_right_are_refused(
    questions: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, tmp_path, {"sums": tmp_path, "words": tmp_path}, questions)
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, sections=sections)
