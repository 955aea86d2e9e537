"""`grpo eval` from recipe to files, with a real engine on a tiny model: resuming, growing, repeating, wrong input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.evaluation.cli import load_eval_recipe
from grpo.evaluation.config import EvalRecipe
from grpo.evaluation.regrade import regrade
from grpo.evaluation.results.compare import compare_runs
from grpo.evaluation.run import run_evaluation
from grpo.recipe.load import RecipeError, load_recipe
from grpo.report.records import read_rows
from rollout.engines.hf import HFEngine

SUMS = [{"question": f"{i}+{i}=?", "gold": str(2 * i), "size": "small" if i < 3 else "large"} for i in range(5)]


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A task of one's own: a file with an entry, and its data beside it."""
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    (tmp_path / "sums.yaml").write_text(
        "dataset_name: ./sums.jsonl\ncolumns: {prompt: question, solution: gold}\ngroups: [size]\n"
        'instruction: "Give a number."\n'
    )
    return tmp_path / "sums.yaml"


def recipe(model: Path, sums: Path, **sections: Any) -> EvalRecipe:
    sampling = {"num_samples": 2, "max_completion_length": 4, "temperature": 1.0, "top_p": 1.0}
    values = {
        "stage": "eval",
        "model": {"model_name_or_path": str(model)},
        "tasks": [str(sums)],
        "template": "{prompt}",
        "engine": {"name": "hf", "max_num_seqs": 3},
        "output": str(sums.parent / "run"),
        **sections,
        "sampling": {**sampling, **sections.get("sampling", {})},
    }
    made = load_recipe(None, sections=values)
    assert isinstance(made, EvalRecipe)
    return made


def samples(folder: Path) -> list[dict[str, Any]]:
    return list(read_rows(folder / "samples.jsonl"))


def test_every_sample_is_kept_with_what_is_needed_to_judge_it_again(tiny_llama: Path, sums: Path) -> None:
    results = run_evaluation(recipe(tiny_llama, sums))
    rows = samples(results.folder)
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(f"sums/{i}", j) for i in range(5) for j in (0, 1)]
    # What a random model says is no matter here.
    said = {
        name: rows[3].pop(name) for name in ("completion", "seed", "num_tokens", "finish_reason", "answer", "reason")
    }
    assert isinstance(said["completion"], str) and isinstance(said["reason"], str) and said["num_tokens"] <= 4
    assert rows[3] == {
        "task": "sums",
        "problem_id": "sums/1",
        "sample": 1,
        "prompt": "1+1=?",
        "gold": "2",
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


def test_evaluation_killed_half_way_goes_on_and_ends_with_the_same_samples(
    tiny_llama: Path, sums: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_evaluation(recipe(tiny_llama, sums, output=str(sums.parent / "whole")))
    generate, asked = HFEngine.generate, []

    def dying(engine: HFEngine, prompts: Any, sampling: Any) -> Any:
        for number, group in enumerate(generate(engine, prompts, sampling)):
            if number == 4:
                raise KeyboardInterrupt
            yield group

    def counting(engine: HFEngine, prompts: Any, sampling: Any) -> Any:
        asked.extend(prompt.problem.id for prompt in prompts)
        return generate(engine, prompts, sampling)

    monkeypatch.setattr(HFEngine, "generate", dying)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(recipe(tiny_llama, sums))
    kept = sums.parent / "run" / "samples.jsonl"
    there = len(kept.read_text().splitlines())
    assert 0 < there <= 4
    with kept.open("a") as file:
        file.write('{"task": "sums", "problem_id": "su')  # what SIGKILL leaves of a line
    monkeypatch.setattr(HFEngine, "generate", counting)
    resumed = run_evaluation(recipe(tiny_llama, sums))
    assert len(asked) == 10 - there
    assert kept.read_bytes() == (whole.folder / "samples.jsonl").read_bytes()
    assert resumed.tasks["sums"]["metrics"] == whole.tasks["sums"]["metrics"]


def test_more_samples_and_problems_are_added_to_those_that_are_there(tiny_llama: Path, sums: Path) -> None:
    few = run_evaluation(recipe(tiny_llama, sums, limit=3))
    before = samples(few.folder)
    more = run_evaluation(recipe(tiny_llama, sums, sampling={"num_samples": 4}))
    after = samples(more.folder)
    assert len(before) == 6 and len(after) == 20
    assert all(row in after for row in before)
    assert more.tasks["sums"]["metrics"]["num_samples"] == 4
    again = run_evaluation(
        recipe(tiny_llama, sums, limit=3)
    )  # nothing is generated, and the figures are those of 3 x 2
    assert again.tasks["sums"]["metrics"] == few.tasks["sums"]["metrics"]
    kept = samples(again.folder)
    assert len(kept) == 20
    assert compare_runs(again.folder, again.folder).splitlines()[-1].split("|")[2].strip() == "3"
    assert regrade(again.folder).results.tasks["sums"]["metrics"] == few.tasks["sums"]["metrics"]
    assert samples(again.folder) == kept, "what does not count stays"


def test_evaluation_that_was_interrupted_is_not_compared_or_judged_again(tiny_llama: Path, sums: Path) -> None:
    done = run_evaluation(recipe(tiny_llama, sums))
    with (done.folder / "samples.jsonl").open("r+") as file:
        file.truncate(len("".join(file.readlines()[:7]).encode()))
    for again in (lambda: compare_runs(done.folder, done.folder), lambda: regrade(done.folder)):
        with pytest.raises(ValueError, match=r"3 samples of sums are missing.*call grpo eval again"):
            again()
    run_evaluation(recipe(tiny_llama, sums))
    assert regrade(done.folder).results.tasks["sums"]["metrics"] == done.tasks["sums"]["metrics"]


def test_samples_of_other_weights_under_the_same_path_are_not_mixed(tiny_llama: Path, sums: Path) -> None:
    model = sums.parent / "model"
    shutil.copytree(tiny_llama, model)
    run_evaluation(recipe(model, sums, limit=1))
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    run_evaluation(recipe(model, sums, limit=2))
    weights.write_bytes(content[:-4] + bytes(4))  # one number of the last tensor
    with pytest.raises(ValueError, match="holds samples of other weights than those that are now in"):
        run_evaluation(recipe(model, sums, limit=2))


def test_samples_of_other_settings_are_not_mixed(tiny_llama: Path, sums: Path) -> None:
    run_evaluation(recipe(tiny_llama, sums, limit=1))
    with pytest.raises(ValueError, match=r"sampling.temperature: 1.0 there, 0.5 now"):
        run_evaluation(recipe(tiny_llama, sums, sampling={"temperature": 0.5}))
    (sums.parent / "sums.jsonl").write_text("".join(json.dumps({**row, "question": "what?"}) + "\n" for row in SUMS))
    with pytest.raises(ValueError, match="was asked otherwise there"):
        run_evaluation(recipe(tiny_llama, sums))


def test_kept_verdicts_are_not_taken_for_those_of_another_gold_or_checker(tiny_llama: Path, sums: Path) -> None:
    run_evaluation(recipe(tiny_llama, sums))
    sums.write_text(sums.read_text() + "options: {answer_in: free_text}\n")
    with pytest.raises(ValueError, match=r"judged by .*'options': \{\}.*, now .*'free_text'.*grpo regrade"):
        run_evaluation(recipe(tiny_llama, sums))
    regrade(sums.parent / "run", options={"answer_in": "free_text"})
    assert run_evaluation(recipe(tiny_llama, sums)).tasks["sums"]["options"] == {"answer_in": "free_text"}
    rows = [{**row, "gold": "99"} for row in SUMS]
    (sums.parent / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"sums/0 .*had other columns \(its gold answer is one\)"):
        run_evaluation(recipe(tiny_llama, sums))


def test_greedy_twice_writes_the_same_files(tiny_llama: Path, sums: Path) -> None:
    def run(name: str) -> bytes:
        greedy = {"num_samples": None, "temperature": 0.0}
        return (
            run_evaluation(recipe(tiny_llama, sums, sampling=greedy, output=str(sums.parent / name)))
            .folder.joinpath("samples.jsonl")
            .read_bytes()
        )

    first = run("first")
    assert first == run("second")
    assert first.count(b"\n") == 5  # one sample each: the others would be the same


def test_reference_answers_of_a_task_go_the_way_of_a_models(tmp_path: Path) -> None:
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


def test_local_copy_without_the_column_that_chooses_rows_is_taken_whole_and_says_so(
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
    assert said == "c: the local copy has no column date, so all of its rows are taken."


def test_gold_that_no_checker_reads_is_counted_and_listed_and_in_no_share(tmp_path: Path) -> None:
    rows = [("1", "1"), ("\\frac{", "\\frac{"), ("3", "3"), (None, "None")]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps({"prompt": f"q{gold}", "solution": gold, "said": said}) + "\n" for gold, said in rows)
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
    assert "t: 2 problems cannot be judged" in (tmp_path / "run" / "results.md").read_text()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"tasks": ["gsm8"]}, r"task 'gsm8' is unknown. Did you mean 'gsm8k'\?"),
        ({"template": "chat"}, "the tokenizer has no chat template"),
        (
            {"template": "few_shot"},
            "task 'sums' with template 'few_shot': exemplars=None, and there are those of gsm8k",
        ),
        ({"engine": {"name": "hf", "max_model_len": 5}}, "the longest prompt has 5 tokens, the context 5"),
        ({"engine": {"name": "reference"}}, "task 'sums' has no reference answers"),
        ({"tasks": ["countdown", "countdown"]}, "'countdown' is there more than once"),
        ({"output": "/proc/version/run"}, "output='/proc/version/run' cannot be written"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_generated(
    tiny_llama: Path, sums: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_evaluation(recipe(tiny_llama, sums, **sections))
    assert not (sums.parent / "run" / "samples.jsonl").exists()


def test_sample_that_a_reward_of_ones_own_finds_right_is_not_one_without_an_answer(tmp_path: Path) -> None:
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
    assert (task["metrics"]["pass@1"], task["metrics"]["no_answer_ratio"]) == (0.5, 0.5)
    assert {value: m["pass@1"] for value, m in task["groups"]["tags"].items()} == {"['x', 'y']": 1.0, "['x']": 0.0}


def test_path_without_a_model_is_said(tmp_path: Path, sums: Path) -> None:
    for path in (tmp_path / "nosuch", tmp_path):  # no folder, and one without a model
        with pytest.raises(ValueError, match=f"model='{path}': no tokenizer in '{path}'"):
            run_evaluation(recipe(path, sums))


def test_column_that_the_checker_reads_and_the_dataset_lacks(tiny_llama: Path, sums: Path) -> None:
    sums.write_text("dataset_name: ./sums.jsonl\ncolumns: {prompt: question}\n")
    with pytest.raises(ValueError, match=r"its reward 'accuracy' reads the column 'solution', and there is none"):
        run_evaluation(recipe(tiny_llama, sums))
    sums.write_text("dataset_name: ./sums.jsonl\ncolumns: {prompt: question, solution: [answer, golds]}\n")
    with pytest.raises(
        ValueError, match=r"has no column 'answer' or 'golds'. Did you mean|It has: question, gold, size"
    ):
        run_evaluation(recipe(tiny_llama, sums))


def test_protocols_fill_in_what_the_recipe_leaves_out() -> None:
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
    with pytest.raises(RecipeError, match=r"protocol='greedi': none of .* Did you mean 'greedy'\?"):
        made(protocol="greedi")
    with pytest.raises(RecipeError, match=r"sampling.num_samples=4 at sampling.temperature=0: greedy decoding gives"):
        made(protocol="greedy", sampling={"num_samples": 4})
    with pytest.raises(RecipeError, match="only template 'chat' has a place for it"):
        made(protocol="r1-zero", system_prompt="Be brief.")


def test_options_of_the_command_line_become_a_recipe(tmp_path: Path) -> None:
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
