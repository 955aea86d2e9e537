"""reasoning_gym's scorers: right answers for every kind of task, and answers that would run as code."""

import re
import time
from pathlib import Path

import pytest

from rewards import reasoning_gym
from rewards.answers.gym import _EVALUATE, _SYMPY
from rewards.runner.load import run_check

package = pytest.importorskip("reasoning_gym")


def score(entry, answer):
    columns = {"answer": [entry["answer"]], "metadata": [entry["metadata"]]}
    return reasoning_gym([entry["question"]], [f"<think>.</think><answer>{answer}</answer>"], **columns)[0]


TASKS = ["basic_arithmetic", "chain_sum", "leg_counting", "number_sorting", "propositional_logic", "mini_sudoku"]


@pytest.mark.parametrize("task", [*TASKS, *sorted(_EVALUATE | _SYMPY)])
def test_a_tasks_own_answer_is_right(task):
    entry = package.create_dataset(task, size=1, seed=3)[0]
    right = entry["answer"] if entry["answer"] is not None else entry["metadata"].get("example_answer")
    assert score(entry, right) == 1.0
    assert score(entry, "no answer") < 0.5
    completions = ["no tags", "<think><answer>", ""]
    columns = {"answer": [right] * 3, "metadata": [entry["metadata"]] * 3}
    assert reasoning_gym([entry["question"]] * 3, completions, **columns) == [0.0] * 3


@pytest.mark.parametrize("task", sorted(_EVALUATE | _SYMPY))
@pytest.mark.parametrize(
    "payload",
    [
        "open('{path}', 'w').write('x')",
        "__import__('pathlib').Path('{path}').touch()",
        "[open('{path}', 'w')]",
        "[c for c in open('{path}', 'w')]",
        "(lambda: open('{path}', 'w'))()",
        "sin(open('{path}', 'w'))",
        "1+open('{path}', 'w')!",
        "open(\n'{path}', 'w')",
    ],
)
def test_no_answer_runs_as_code(task, payload, tmp_path):
    path = tmp_path / "written"
    entry = package.create_dataset(task, size=1, seed=3)[0]
    assert score(entry, payload.replace("{path}", str(path))) <= 0.05
    assert not path.exists()


@pytest.mark.parametrize("task", sorted(_EVALUATE | _SYMPY))
@pytest.mark.parametrize(
    "bomb",
    [
        "9**9**9**9",
        "(9**30)**(9**30)",
        "9**(10**9)",
        "9!!!!!",
        "[0]*10**10",
        "'x'*9999999999",
        "(" * 3000,
        "-" * 3000 + "1",
    ],
)
def test_bombs_score_zero_fast(task, bomb):
    entry = package.create_dataset(task, size=1, seed=3)[0]
    started = time.process_time()
    assert score(entry, bomb) == 0.0
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("prime_factorization", "2 * 3"),
        ("game_of_life", '{"a": 1}'),
        ("boxnet", "[1]"),
        ("list_functions", "9" * 5000),
        ("calendar_arithmetic", "9" * 400),
        ("complex_arithmetic", "nan"),
        ("complex_arithmetic", "3+NaNj"),
    ],
)
def test_an_answer_that_a_scorer_cannot_read_scores_zero(task, answer):
    entry = package.create_dataset(task, size=1, seed=3)[0]
    assert score(entry, answer) == 0.0


@pytest.mark.parametrize("task", ["coin_flip", "game_of_life_halting"])
def test_tasks_whose_scorers_pay_for_nothing_are_refused(task):
    entry = package.create_dataset(task, size=1, seed=3)[0]
    assert score(entry, "0") is None
    reason = run_check(reasoning_gym, {"answer": entry["answer"], "metadata": entry["metadata"]}, {})
    assert reason is not None and f"scorer of {task}" in reason


def test_all_evaluating_scorers_are_known():
    """Guards against new versions of the package."""
    evaluating = re.compile(r"\b(?:eval|exec|parse_expr|sympify|parse_latex|compile)\(\s*(?:user_)?answer\b")
    root = Path(package.__file__).parent
    found = {path.stem for path in root.rglob("*.py") if evaluating.search(path.read_text())}
    assert found <= _EVALUATE | _SYMPY and len(found) >= 8


def test_a_scorer_that_computes_for_hours_is_stopped():
    """The last test of this file, as it costs a worker. The scorer's own `except:` would catch any exception."""
    entry = package.create_dataset("simple_integration", size=1, seed=3)[0]
    assert score(entry, "(sin(x)+cos(x)+tan(x)+exp(x))**30/(sin(x)+1)**29") == 0.0
