"""Tasks as data: the built-in entries, local copies, and prompts under each template."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from grpo.evaluation.config import TaskConfig, builtin_tasks
from grpo.evaluation.grading import build_grader
from grpo.evaluation.tasks.load import Task, fill, find_task, load_task
from grpo.evaluation.tasks.prompts import EXEMPLARS_FILE, task_prompts
from grpo.recipe.load import RecipeError
from rewards.runner.load import BUILTINS
from rollout.data.prompts import R1_ZERO, Prompter
from rollout.data.sources import load_source
from rollout.data.stream import held_out
from rollout.types import Completion, Group, Problem
from tests.conftest import byte_tokenizer

DATA = Path(__file__).parents[5] / "shared" / "data" / "eval"


def write(path: Path, *rows: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_builtin_task_is_complete() -> None:
    exemplars = yaml.safe_load(EXEMPLARS_FILE.read_text())
    for name, entry in builtin_tasks().items():
        config = TaskConfig.model_validate(entry, strict=True)
        assert config.reward in BUILTINS, name
        assert config.exemplars is None or config.exemplars in exemplars, name
        assert config.licence, name
        assert config.task or "prompt" in config.columns or name == "mbpp_plus", name
    assert set(builtin_tasks()) >= {
        "gsm8k", "math500", "math", "aime24", "aime25", "amc23", "minerva_math", "olympiadbench", "gaokao2023en",
        "svamp", "hmmt", "humaneval", "mbpp", "mbpp_plus", "livecodebench", "code_contests", "leetcode", "countdown",
    }  # fmt: skip
    published = {
        name: builtin_tasks()[name]["num_samples"] for name in ("aime24", "aime25", "math500", "livecodebench")
    }
    assert published == {"aime24": 64, "aime25": 64, "math500": 16, "livecodebench": 8}


def test_worked_examples_are_arithmetically_correct() -> None:
    """Every "a * b = c" holds, and the last result is the stated answer."""
    exemplars = yaml.safe_load(EXEMPLARS_FILE.read_text())
    assert (len(exemplars["gsm8k"]), len(exemplars["math"])) == (8, 4)
    checked = 0
    for example in exemplars["gsm8k"]:
        *equations, answer = re.findall(r"((?:\d+ [-+*/] )+\d+) = (\d+)|The answer is (\d+)\.", example["answer"])
        for left, right, _ in equations:
            assert eval(left) == int(right), example
            checked += 1
        assert int(answer[2]) == int(equations[-1][1]), example
    assert checked >= 16


@pytest.mark.parametrize("place", ["gsm8k.jsonl", "gsm8k/test.jsonl", "gsm8k/my_test_split.jsonl", "gsm8k/all.jsonl"])
def test_local_copies_replace_the_hub(tmp_path: Path, place: str) -> None:
    write(tmp_path / place, {"question": "1+1?", "answer": "It is 2. #### 2"})
    if "split" in place:
        write(tmp_path / "gsm8k/train.jsonl", {"question": "no", "answer": "no"})
    task = load_task("gsm8k", data_dir=tmp_path)
    assert task.problems == [Problem(id="gsm8k/0", prompt="1+1?", columns={"solution": "It is 2. #### 2"})]


def test_missing_or_ambiguous_local_copies_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs gsm8k.jsonl, or exactly one file in gsm8k/ with 'test' in its name"):
        load_task("gsm8k", data_dir=tmp_path)
    write(tmp_path / "gsm8k/test.jsonl", {"question": "1+1?", "answer": "2"})
    write(tmp_path / "gsm8k/test2.jsonl", {"question": "1+1?", "answer": "2"})
    with pytest.raises(ValueError, match=r"found: test.jsonl, test2.jsonl"):
        load_task("gsm8k", data_dir=tmp_path)


def test_column_names_may_differ_between_copies(tmp_path: Path) -> None:
    write(tmp_path / "math500.jsonl", {"problem": "p", "solution": "long", "answer": "7", "subject": "A", "level": 1})
    write(tmp_path / "math/test.jsonl", {"problem": "p", "solution": r"\boxed{7}", "type": "A", "level": "Level 1"})
    assert load_task("math500", data_dir=tmp_path).problems[0].columns["solution"] == "7"
    assert load_task("math", data_dir=tmp_path).problems[0].columns["subject"] == "A"
    write(tmp_path / "math500.jsonl", {"problem": "p", "gold": "7"})
    with pytest.raises(ValueError, match=r"no column 'answer' or 'solution'.* It has: problem, gold"):
        load_task("math500", data_dir=tmp_path)


def test_choices_are_shuffled_lettered_and_graded(tmp_path: Path) -> None:
    rows = [
        {"Question": f"{n}+1?", "Correct Answer": f"{n + 1}", "High-level domain": "Maths"}
        | {f"Incorrect Answer {wrong}": f"{n + 10 * wrong}\n" for wrong in (1, 2, 3)}
        for n in range(40)
    ]
    write(tmp_path / "gpqa_diamond.jsonl", *rows)
    task = load_task("gpqa_diamond", data_dir=tmp_path)
    assert task.problems[0].prompt == "0+1?\n\nA) 30\nB) 1\nC) 10\nD) 20"
    assert task.problems == load_task("gpqa_diamond", data_dir=tmp_path).problems
    places = [problem.columns["choices"].index(problem.columns["answer"]) for problem in task.problems]
    assert {places.count(place) for place in range(4)} <= set(range(5, 18)), "the correct choice is in any place"
    few = load_task("gpqa_diamond", data_dir=tmp_path, limit=3).problems
    assert [p for p in task.problems if p in few] == few, "a limit keeps the order"
    completions = [r"\boxed{B}", r"\boxed{(B)}", r"\boxed{A}", r"\boxed{1}", r"\boxed{C) 1}"]
    grader = build_grader(task.config.reward, task.config.options)
    done = Completion(token_ids=[1], logprobs=[], text="", finish_reason="stop", policy_version=0)
    groups = [Group(problem=task.problems[0], prompt_ids=[1], completions=[replace(done, text=t) for t in completions])]
    [graded] = grader.grade(groups)
    assert graded.rewards["multiple_choice"] == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert callable(grader.voting)
    assert grader.voting([("A", "(A)"), ("A", "C"), ("thirty", "30")]) == [True, False, False]
    grader.close()
    write(tmp_path / "gpqa_diamond.jsonl", {"Question": "q", "Correct Answer": "a", "High-level domain": "d"})
    with pytest.raises(
        ValueError, match=r"the dataset has no column 'Incorrect Answer 1'. Columns: Correct Answer, domain"
    ):
        load_task("gpqa_diamond", data_dir=tmp_path)


def test_limit_is_a_fixed_subset_in_dataset_order(tmp_path: Path) -> None:
    write(tmp_path / "svamp.jsonl", *({"question_concat": f"q{i}", "Answer": i} for i in range(100)))
    few, more = (load_task("svamp", data_dir=tmp_path, limit=n).problems for n in (10, 20))
    numbers = [int(problem.id.removeprefix("svamp/")) for problem in few]
    assert numbers == sorted(numbers) and numbers != list(range(10))
    assert all(problem.prompt == f"q{number}" for problem, number in zip(few, numbers, strict=True))
    assert {problem.id for problem in few} < {problem.id for problem in more}


def test_generated_task_matches_trainings_held_out_problems() -> None:
    prompter = Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=64)
    trained_on, _ = held_out(load_source(task="countdown", split="eval"), prompter, 20)
    evaluated_on = load_task("countdown", limit=20).problems
    assert [p.prompt for p in evaluated_on] == [p.problem.prompt for p in trained_on]
    assert [p.columns for p in evaluated_on] == [p.problem.columns for p in trained_on]


def test_user_defined_tasks_are_validated(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("dataset_name: ./mine.jsonl\nreward: accuracy\n")
    name, config = find_task(str(tmp_path / "mine.yaml"), {})
    assert (name, config.dataset_name) == ("mine", str(tmp_path / "mine.jsonl"))
    (tmp_path / "mine.yaml").write_text("dataset_name: ./mine.jsonl\nrewards: accuracy\n")
    with pytest.raises(RecipeError, match=r"rewards: unknown key. Did you mean 'reward'\?"):
        find_task(str(tmp_path / "mine.yaml"), {})
    (tmp_path / "mine.yaml").write_text("task: countdown\nwhere: {target: [1, 9]}\n")
    with pytest.raises(RecipeError, match=r"task='countdown' does not read where=\{'target': \[1.0, 9.0\]\}. Remove"):
        find_task(str(tmp_path / "mine.yaml"), {})
    with pytest.raises(ValueError, match=r"unknown task 'humanevl'. Did you mean 'humaneval'\?"):
        find_task("humanevl", {})


@pytest.mark.parametrize(
    ("entry", "unread"),
    [
        ({"dataset_name": "a/b", "num_problems": 9}, "dataset_name='a/b' does not read num_problems=9"),
        ({"dataset_name": "a/b", "task_options": {"terms": 3}}, "does not read task_options={'terms': 3}"),
        ({"dataset_name": "x.jsonl", "dataset_config": "main"}, "does not read dataset_config='main'"),
        ({"dataset_name": "x.jsonl", "dataset_files": ["y.jsonl"]}, "does not read dataset_files=['y.jsonl']"),
        ({"task": "countdown", "dataset_split": "test"}, "task='countdown' does not read dataset_split='test'"),
    ],
)
def test_settings_that_a_source_of_problems_does_not_read_are_refused(entry: dict, unread: str) -> None:
    with pytest.raises(ValueError, match=re.escape(unread)):
        TaskConfig.model_validate(entry)


def test_a_split_selects_rows_of_files_and_of_local_copies(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "solution": str(i)} for i in range(5)]
    write(tmp_path / "mine.jsonl", *rows)
    write(tmp_path / "hub/test.jsonl", *rows)
    write(tmp_path / "hub/train.jsonl", *rows[:1])
    write(tmp_path / "two/a.jsonl", *rows[:2])
    write(tmp_path / "two/b.jsonl", *rows[2:])

    def asked(name: str, data_dir: Path | None = None, **entry: str | list[str]) -> list[str]:
        config = TaskConfig.model_validate(entry)
        return [str(problem.prompt) for problem in load_task(name, {name: config}, data_dir=data_dir).problems]

    mine = str(tmp_path / "mine.jsonl")
    assert asked("mine", dataset_name=mine) == ["q0", "q1", "q2", "q3", "q4"]
    assert asked("mine", dataset_name=mine, dataset_split="train[-2:]") == ["q3", "q4"]
    with pytest.raises(ValueError, match=r"dataset_split='test' cannot be read"):
        asked("mine", dataset_name=mine, dataset_split="test")
    assert asked("hub", tmp_path, dataset_name="a/b", dataset_split="test[:2]") == ["q0", "q1"]
    files = ["a.jsonl", "b.jsonl"]
    assert asked("two", tmp_path, dataset_name="a/b", dataset_files=files, dataset_split="train[1:3]") == ["q1", "q2"]
    assert asked("two", dataset_name=str(tmp_path / "two"), dataset_files=files) == ["q0", "q1", "q2", "q3", "q4"]


def test_unknown_column_in_a_question_is_an_error_but_latex_is_not(tmp_path: Path) -> None:
    write(tmp_path / "q.jsonl", {"prompt": "p", "choices": ["1", "2"], "solution": "7"})
    entry = {"dataset_name": str(tmp_path / "q.jsonl"), "question": "{prompt}\n{choises}"}
    with pytest.raises(
        ValueError, match=r"uses \{choises\}, but the dataset has no such column. Did you mean 'choices'\?"
    ):
        load_task("q", {"q": TaskConfig.model_validate(entry)})
    entry |= {"question": r"{prompt} in \text{cm}, \frac{1}{n}, x_{n}, x^{n}, \{a} or \boxed{}"}
    prompt = load_task("q", {"q": TaskConfig.model_validate(entry)}).problems[0].prompt
    assert prompt == r"p in \text{cm}, \frac{1}{n}, x_{n}, x^{n}, \{a} or \boxed{}"
    # A copy may lack a column that only the reference completion needs.
    entry |= {"reference": r"\boxed{{gold}}"}
    assert load_task("q", {"q": TaskConfig.model_validate(entry)}).references == {}


@pytest.mark.parametrize(("text", "message"), [("", "the file is empty"), ('{"prompt"', "cannot be read: .*JSON")])
def test_invalid_dataset_files_are_errors(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_task("x", {"x": TaskConfig(dataset_name=str(tmp_path / "x.jsonl"))})


def test_fill_keeps_latex_and_code_braces() -> None:
    text = r"{prompt} as \boxed{} or \frac{1}{2}: {tests} {unknown} {d['a']}"
    filled = fill(text, {"prompt": "Give {tests}", "tests": ["assert a", "assert b"]})
    assert filled == "Give {tests} as \\boxed{} or \\frac{1}{2}: assert a\nassert b {unknown} {d['a']}"


def test_prompts_under_each_template() -> None:
    task = Task("t", TaskConfig(task="arithmetic", instruction="Box it.", exemplars="gsm8k"),
                [Problem(id="t/0", prompt="1+1?", columns={})], {})  # fmt: skip
    tokenizer = byte_tokenizer()

    def text(template: str, **options) -> str:
        return task_prompts(task, tokenizer, template=template, system_prompt=None, **options)[1][0]

    assert text("Q: {prompt}\nA:") == "Q: 1+1?\nA:"
    assert text("r1_zero") == R1_ZERO.replace("{prompt}", "1+1?")
    few_shot = text("few_shot")
    assert few_shot.startswith("Question: A baker") and few_shot.endswith("\n\nQuestion: 1+1?\nAnswer:")
    assert few_shot.count("Question:") == 9
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        text("chat")
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    assert text("chat") == "<user>1+1?\n\nBox it.<assistant>"
    assert text("chat", instruct=False) == "<user>1+1?<assistant>"


@pytest.mark.skipif(not DATA.is_dir(), reason="no copies of the public datasets next to the checkout")
def test_public_datasets_have_their_published_sizes() -> None:
    sizes = {"gsm8k": 1319, "math500": 500, "math": 5000, "aime24": 30, "aime25": 30, "humaneval": 164, "mbpp": 974}
    for name, size in sizes.items():
        assert len(load_task(name, data_dir=DATA).problems) == size
    levels = {problem.columns["level"] for problem in load_task("math500", data_dir=DATA).problems}
    assert levels == {1, 2, 3, 4, 5}


def test_a_problem_that_the_template_cannot_show_is_named() -> None:
    config = TaskConfig(dataset_name="x")
    asked = Problem(id="t/0", prompt=[{"role": "user", "content": "q"}], columns={})
    called = Problem(id="t/1", prompt="q", columns={"tools": "hammer"})
    for problem, message in ((asked, "t/0: the prompt is a list of messages"), (called, "t/1: only template 'chat'")):
        with pytest.raises(ValueError, match=message):
            task_prompts(Task("t", config, [problem], {}), byte_tokenizer(), template="r1_zero", system_prompt=None)
