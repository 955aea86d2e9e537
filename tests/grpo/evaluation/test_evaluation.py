"""`grpo eval` from recipe to files, with a real engine on a tiny model, and its errors."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import grpo
from grpo.evaluation.cli import load_eval_recipe
from grpo.evaluation.config import EvalRecipe
from grpo.evaluation.grading import build_grader
from grpo.evaluation.run import run_evaluation
from grpo.recipe.load import RecipeError, load_recipe
from rewards.programs.sandbox import isolation, pool
from tests.grpo.evaluation.conftest import recipe, samples


def test_samples_are_written_with_everything_regrading_needs(tiny_llama: Path, sums: Path) -> None:
    results = run_evaluation(recipe(tiny_llama, sums))
    rows = samples(results.folder)
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(f"sums/{i}", j) for i in range(5) for j in (0, 1)]
    # The random model's output does not matter here.
    said = {
        name: rows[3].pop(name) for name in ("completion", "seed", "num_tokens", "finish_reason", "answer", "reason")
    }
    assert isinstance(said["completion"], str) and isinstance(said["reason"], str) and said["num_tokens"] <= 4
    assert rows[3] == {
        "task": "sums",
        "problem_id": "sums/1",
        "sample": 1,
        "prompt": "1+1=?",
        "completion_prefix": "",
        "reference_answer": "2",
        "verdict": "wrong",
        "rewards": {"accuracy": 0.0},
    }
    rows = samples(results.folder)
    assert len({row["seed"] for row in rows}) == 10
    assert results.tasks["sums"]["metrics"]["num_problems"] == 5
    assert set(results.tasks["sums"]["groups"]["size"]) == {"small", "large"}
    assert results.tasks["sums"]["groups"]["size"]["large"]["num_problems"] == 2
    timing = results.tasks["sums"]["timing"]
    assert timing["generated_tokens"] == sum(row["num_tokens"] for row in rows)
    for name in ("recipe.yaml", "environment.json", "problems.jsonl", "results.json", "results.md", "index.html"):
        assert (results.folder / name).stat().st_size > 0


def test_reference_completions_are_graded_like_a_models(tmp_path: Path) -> None:
    (tmp_path / "capitals.jsonl").write_text(
        '{"prompt": "France?", "solution": "7", "worked": "\\\\boxed{7}"}\n'
        '{"prompt": "Peru?", "solution": "8", "worked": "\\\\boxed{9}"}\n'
    )
    entry = {"dataset_name": str(tmp_path / "capitals.jsonl"), "reference": "It is {worked}."}
    results = grpo.evaluate(
        model="reference",
        tasks=["capitals"],
        define_tasks={"capitals": entry},
        engine={"name": "reference"},
        sampling={"num_samples": 1},
        output=str(tmp_path / "run"),
    )
    assert results.tasks["capitals"]["metrics"]["pass@1"] == 0.5
    wrong = [row for row in samples(results.folder) if row["verdict"] != "right"]
    assert [(row["problem_id"], row["completion"], row["answer"]) for row in wrong] == [
        ("capitals/1", r"It is \boxed{9}.", "9")
    ]


def test_local_copy_without_the_filter_column_is_used_whole_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = {"date": ["2024-08-01", "2025-02-01"]}
    entry = {"dataset_name": "owner/contests", "where": where, "reference": r"\boxed{{solution}}"}

    def evaluated(*rows: dict[str, str]) -> tuple[float, dict[str, Any], str]:
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        output = str(tmp_path / f"run{len(rows)}")
        engine, tasks = {"name": "reference"}, {"c": entry}
        results = grpo.evaluate(
            model="reference", tasks=["c"], define_tasks=tasks, engine=engine, data_dir=str(tmp_path), output=output
        ).tasks["c"]
        return results["metrics"]["num_problems"], results["dataset"]["where"], capsys.readouterr().out.splitlines()[0]

    dated = [{"prompt": "q", "solution": "1", "date": f"2024-0{month}-15"} for month in (6, 7, 8, 9)]
    assert evaluated(*dated)[:2] == (2, where)
    size, kept, said = evaluated(*({"prompt": row["prompt"], "solution": "1"} for row in dated[:3]))
    assert (size, kept) == (3, {})
    assert said == "c: the local copy has no column date, so all of its rows are used."


def test_unreadable_reference_answers_are_listed_and_excluded(tmp_path: Path) -> None:
    rows = [("1", "1"), ("\\frac{", "\\frac{"), ("3", "3"), (None, "None")]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{answer}", "solution": answer, "said": said}) + "\n" for answer, said in rows)
    )
    entry = {"dataset_name": str(tmp_path / "t.jsonl"), "reference": r"\boxed{{said}}"}
    results = grpo.evaluate(
        model="reference",
        tasks=["t"],
        define_tasks={"t": entry},
        engine={"name": "reference"},
        output=str(tmp_path / "run"),
    )
    task = results.tasks["t"]
    assert task["metrics"]["pass@1"] == 1.0
    assert (task["metrics"]["num_problems"], task["metrics"]["num_unreadable"]) == (4, 2)
    assert list(task["unreadable"]) == ["t/1", "t/3"]
    assert "t: 2 problems cannot be graded" in (tmp_path / "run" / "results.md").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tasks": ["gsm8"]}, r"unknown task 'gsm8'. Did you mean 'gsm8k'\?"),
        ({"template": "chat"}, "the tokenizer has no chat template"),
        (
            {"template": "few_shot"},
            "task 'sums' with template 'few_shot': exemplars=None, must be one of gsm8k",
        ),
        ({"engine": {"name": "hf", "max_model_len": 5}}, "the longest prompt has 5 tokens and the context 5"),
        ({"engine": {"name": "reference"}}, "task 'sums' has no reference completions"),
        ({"tasks": ["countdown", "countdown"]}, "'countdown' is listed twice"),
        ({"output": "/proc/version/run"}, "output='/proc/version/run' cannot be written"),
    ],
)
def test_invalid_recipes_fail_before_generation(
    tiny_llama: Path, sums: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_evaluation(recipe(tiny_llama, sums, **sections))
    assert not (sums.parent / "run" / "samples.jsonl").exists()


def test_a_launched_evaluation_that_is_refused_shows_its_sentence_alone(tiny_llama: Path, sums: Path) -> None:
    values = recipe(tiny_llama, sums, template="chat").model_dump(mode="json", exclude_unset=True)
    (sums.parent / "eval.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "grpo", "train", "--num_processes", "1", sums.parent / "eval.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "the tokenizer has no chat template" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_task_with_one_s_own_reward_has_shares_of_right_samples_but_none_without_answer(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "tags": ["x", "y"]}\n{"prompt": "b", "tags": ["x"]}\n')
    (tmp_path / "mine.py").write_text(
        "def says_a(prompts, completions, **kw):\n    return [float('a' in c) for c in completions]\n"
    )
    entry = {
        "dataset_name": str(tmp_path / "t.jsonl"),
        "reward": f"{tmp_path / 'mine.py'}:says_a",
        "reference": "{prompt}",
        "groups": ["tags"],
    }
    engine, output = {"name": "reference"}, str(tmp_path / "run")
    task = grpo.evaluate(model="reference", tasks=["t"], define_tasks={"t": entry}, engine=engine, output=output).tasks[
        "t"
    ]
    assert task["metrics"]["pass@1"] == 0.5 and "no_answer_ratio" not in task["metrics"]
    assert not any("no_answer_ratio" in metrics for metrics in task["groups"]["tags"].values())
    assert {value: m["pass@1"] for value, m in task["groups"]["tags"].items()} == {"['x', 'y']": 1.0, "['x']": 0.0}


def test_path_without_a_model_is_an_error(tmp_path: Path, sums: Path) -> None:
    for path in (tmp_path / "nosuch", tmp_path):  # a missing folder, and one without a model
        with pytest.raises(ValueError, match=f"model='{path}': no tokenizer in '{path}'"):
            run_evaluation(recipe(path, sums))


def test_missing_grading_column_is_an_error(tiny_llama: Path, sums: Path) -> None:
    sums.write_text("dataset_name: ./sums.jsonl\ncolumns: {prompt: question}\n")
    with pytest.raises(ValueError, match=r"its reward 'accuracy' needs a column 'solution', which is missing"):
        run_evaluation(recipe(tiny_llama, sums))
    sums.write_text("dataset_name: ./sums.jsonl\ncolumns: {prompt: question, solution: [answer, golds]}\n")
    with pytest.raises(
        ValueError, match=r"has no column 'answer' or 'golds'. Did you mean|It has: question, gold, size"
    ):
        run_evaluation(recipe(tiny_llama, sums))


def test_protocols_supply_defaults() -> None:
    def made(**sections: Any) -> EvalRecipe:
        values = {"stage": "eval", "model": {"model_name_or_path": "m"}, "tasks": ["aime24"], **sections}
        found = load_recipe(None, sections=values)
        assert isinstance(found, EvalRecipe)
        return found

    r1 = made()
    assert (r1.template, r1.sampling.temperature, r1.sampling.top_p) == ("chat", 0.6, 0.95)
    assert r1.sampling.max_completion_length == 32768 and r1.system_prompt is None
    warm = made(protocol="greedy", sampling={"temperature": 0.7})
    assert (warm.sampling.temperature, warm.sampling.num_samples, warm.sampling.top_p) == (0.7, 1, 1.0)
    with pytest.raises(RecipeError, match=r"protocol='greedi': unknown, must be one of .* Did you mean 'greedy'\?"):
        made(protocol="greedi")
    with pytest.raises(RecipeError, match=r"sampling.num_samples=4 at sampling.temperature=0: greedy decoding yields"):
        made(protocol="greedy", sampling={"num_samples": 4})
    with pytest.raises(RecipeError, match="only template 'chat' supports a system prompt"):
        made(protocol="r1-zero", system_prompt="Be brief.")


def test_command_line_options_become_a_recipe(tmp_path: Path) -> None:
    options = {
        "model.model_name_or_path": "m", "tasks": "gsm8k, math500", "sampling.num_samples": 2, "engine.name": "hf",
    }  # fmt: skip
    made = load_eval_recipe(None, ["sampling.top_k=5"], options)
    assert (made.tasks, made.sampling.num_samples, made.sampling.top_k) == (["gsm8k", "math500"], 2, 5)
    assert made.engine.name == "hf" and made.protocol == "deepseek-r1"
    (tmp_path / "mine.yaml").write_text("stage: eval\nmodel: {model_name_or_path: a}\ntasks: [svamp]\nlimit: 7\n")
    made = load_eval_recipe(str(tmp_path / "mine.yaml"), [], {"model.model_name_or_path": "b"})
    assert (made.model.model_name_or_path, made.tasks, made.limit) == ("b", ["svamp"], 7)
    with pytest.raises(RecipeError, match=r"sampling.temperatur: unknown key. Did you mean 'temperature'\?"):
        load_eval_recipe(None, ["sampling.temperatur=1"], options)


def test_an_open_thought_and_the_chat_templates_variables_reach_prompts_and_samples(
    tiny_llama: Path, sums: Path
) -> None:
    chatty = sums.parent / "chatty"
    shutil.copytree(tiny_llama, chatty)
    (chatty / "chat_template.jinja").write_text(
        "{{ messages[0].content }}{% if enable_thinking %}<think>{% else %}<answer>{% endif %}"
    )
    for thinking, end, prefix in ((True, "<think>", "<think>"), (False, "<answer>", "")):
        variables, output = {"enable_thinking": thinking}, str(chatty / end[1])
        made = recipe(chatty, sums, template="chat", chat_template_kwargs=variables, output=output)
        rows = samples(run_evaluation(made).folder)
        assert {row["prompt"].endswith(end) for row in rows} == {True}
        assert {row["completion_prefix"] for row in rows} == {prefix}
    other = recipe(chatty, sums, template="chat", chat_template_kwargs={"enable_thinking": True}, output=made.output)
    with pytest.raises(ValueError, match=r"other settings \(chat_template_kwargs: {'enable_thinking': False}, now"):
        run_evaluation(other)


def test_programs_that_no_sandbox_could_run_are_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "missing", lambda level: None if level == "none" else "what it needs")
    monkeypatch.setattr(pool, "_found", None)
    with pytest.raises(ValueError, match=r"bubblewrap: what it needs.*allow_unsandboxed: true"):
        build_grader("code", {})
    with pytest.raises(ValueError, match=r"isolation='landlock': level 'landlock' needs what it needs. Leave it out"):
        build_grader("code", {"isolation": "landlock"})
