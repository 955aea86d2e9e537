"""Code tasks from programming contests, on rows in the Hub's format: LiveCodeBench and CodeContests."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from grpo.evaluation.config import TaskConfig, builtin_tasks
from grpo.evaluation.grading import build_grader
from grpo.evaluation.tasks.load import Task, load_task
from rewards.programs.datasets import read_tests, usual_columns
from tests.grpo.evaluation.tasks.code_tasks import DATA, block, loaded, verdicts


def packed(value: Any) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def livecodebench_row(name: str | None, public: list[tuple], private: list[tuple], **more: Any) -> dict[str, Any]:
    kind = "functional" if name else "stdin"

    def tests(pairs: list[tuple]) -> str:
        return json.dumps([{"input": i, "output": o, "testtype": kind} for i, o in pairs])

    return {
        "question_title": "A",
        "question_content": "Add the two numbers.",
        "platform": "leetcode" if name else "atcoder",
        "question_id": "3456",
        "contest_id": "weekly-contest-418",
        "contest_date": "2024-10-05T19:30:00",
        "starter_code": f"class Solution:\n    def {name}(self, a: int, b: int) -> float:\n        " if name else "",
        "difficulty": "easy",
        "public_test_cases": tests(public),
        "private_test_cases": packed(tests(private)),
        "metadata": json.dumps({"func_name": name} if name else {}),
        **more,
    }


STDIN = livecodebench_row(None, [("1 2\n", "3\n")], [("5 5\n", "10\n"), ("1 1\n", "2.0\n")])
CALLS = livecodebench_row("add", [("1\n2", "3")], [("5\n5", "10"), ("1\n1", "2.0")])


def test_livecodebench_prompts_match_the_test_type_and_all_tests_count(tmp_path: Path) -> None:
    plain_private = json.dumps([{"input": "2 2\n", "output": "4\n", "testtype": "stdin"}])
    task = loaded(tmp_path, "livecodebench", STDIN, CALLS, {**STDIN, "private_test_cases": plain_private})
    stdin, calls, _ = (problem.prompt for problem in task.problems)
    assert stdin == (
        "Add the two numbers.\n\nRead from standard input and write to standard output. "
        "Give the Python program in one block of code."
    )
    assert "```python\nclass Solution:\n    def add(self" in calls and "standard input" not in calls
    assert task.config.groups == ["difficulty", "platform"]
    # As in LiveCodeBench's own harness: numbers compare as numbers, `import *` names exist, deep recursion works.
    deep = "def down(n):\n    return down(n - 1) if n else 0\ndown(30000)\n"
    program = "print(f'{reduce(add, map(int, stdin.readline().split())):.1f}')"
    answers = [block(deep + program), block("print(3)"), block("a, b = input().split()\nprint(a + b)")]
    assert verdicts(task, *answers) == ["right", "wrong output", "wrong output"]
    solution = "class Solution:\n    def add(self, a: int, b: Optional[int]) -> float:\n        return "
    answers = [block(f"{solution}{value}") for value in ("a + b", "float(a + b)", "3", "a * b", "str(a + b)")]
    assert verdicts(task, *answers, problem=1) == ["right", "right", "wrong output", "wrong output", "wrong output"]
    assert verdicts(task, block(program), block("print(3)"), problem=2) == ["right", "wrong output"]


class Planted:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def test_pickled_private_tests_are_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = packed(Planted(tmp_path / "ran"))
    hidden = packed({"input_output": STDIN["public_test_cases"], "more": Planted(tmp_path / "ran")})
    packs = [
        planted,
        hidden,
        packed([1, 2]),
        "eJ",
        "eJ?",
        packed("x" * 100)[:-20],
        packed("[" * 10**6),
        packed(""),
        packed("{}"),
    ]
    rows = [{**STDIN, "private_test_cases": pack} for pack in packs]
    task = loaded(tmp_path, "livecodebench", STDIN, *rows)
    grader = build_grader(task.config.reward, task.config.options)
    why = [grader.unreadable(problem) for problem in task.problems]
    assert why[0] is None
    assert "a pickle that does more than hold a text" in str(why[1]) and "None of it was run" in str(why[2])
    assert all(why[1:]), why
    monkeypatch.setattr("rewards.programs.datasets.MAX_TEST_BYTES", 1 << 20)
    bomb = livecodebench_row(None, [("1 2\n", "3\n")], [("0" * (2 << 20), "3\n")])
    with pytest.raises(ValueError, match=r"packed tests \(\d+ characters\) are larger than 1 MiB when unpacked"):
        read_tests(bomb["private_test_cases"])
    grader.close()
    assert not (tmp_path / "ran").exists()


def test_contest_window_selects_rows_from_the_repository_files(tmp_path: Path) -> None:
    dates = {
        "test3.jsonl": ["2023-05-01T00:00:00", "2024-07-31T23:59:59"],
        "test4.jsonl": ["2024-08-01T00:00:00", "2024-12-31T12:00:00"],
        "test5.jsonl": ["2025-01-31T00:00:00", "2025-02-01T00:00:00"],
        "test6.jsonl": ["2024-09-01T00:00:00"],
    }
    (tmp_path / "livecodebench").mkdir()
    (tmp_path / "livecodebench/code_generation_lite.py").write_text("raise AssertionError('a script was run')")
    for file, days in dates.items():
        rows = [json.dumps({**STDIN, "contest_date": day, "question_title": f"of {day}"}) + "\n" for day in days]
        (tmp_path / "livecodebench" / file).write_text("".join(rows))
    wanted = ["2024-08-01T00:00:00", "2024-12-31T12:00:00", "2025-01-31T00:00:00"]
    task = load_task("livecodebench", data_dir=tmp_path)
    assert [problem.columns["question_title"] for problem in task.problems] == [f"of {day}" for day in wanted]
    assert [problem.id for problem in task.problems] == [f"livecodebench/{row}" for row in (2, 3, 4)]
    assert len(load_task("livecodebench", data_dir=tmp_path, limit=2).problems) == 2
    # The same from a repository's folder, with a user-defined window.
    entry = {**builtin_tasks()["livecodebench"], "dataset_name": str(tmp_path / "livecodebench")}

    def of(**more: Any) -> Task:
        return load_task("mine", {"mine": TaskConfig.model_validate({**entry, **more})})

    assert len(of().problems) == 3
    assert len(of(where={"contest_date": ["2024-08-01", "2025-03-01"]}, dataset_files=["test5.jsonl"]).problems) == 2
    with pytest.raises(ValueError, match=r"where={'contest_date': \['2026', '2027'\]}: .* has no matching row"):
        of(where={"contest_date": ["2026", "2027"]})
    with pytest.raises(ValueError, match=r"row 0 of .* holds '2023-05-01T00:00:00', which cannot be compared"):
        of(where={"contest_date": [2024, 2025]})
    with pytest.raises(ValueError, match="has no column 'date'"):
        of(where={"date": ["2024", "2025"]})
    with pytest.raises(ValueError, match=r"all files must have the same format, one of .json, .jsonl, .parquet"):
        of(dataset_files=["test3.jsonl", "test4.csv"])


CODE_CONTESTS = {
    "name": "1548_A. Sum",
    "description": "Print the mean of two integers.",
    "public_tests": {"input": ["1 2\n"], "output": ["1.5000000\n"]},
    "private_tests": {"input": ["1000000 1000002\n"], "output": ["1000001\n"]},
    "generated_tests": {"input": ["4 4\n", "7 8\n"], "output": ["4\n", "7.5000000\n"]},
    "source": 2,
    "difficulty": 7,
    "solutions": {"language": [3], "solution": ["print(sum(map(int, input().split())) / 2)"]},
    "time_limit": {"seconds": 1, "nanos": 500_000_000},
    "memory_limit_bytes": 256_000_000,
    "input_file": "",
    "output_file": "",
}


def test_code_contests_run_all_tests_within_their_limits(tmp_path: Path) -> None:
    from_file = {**CODE_CONTESTS, "input_file": "sum.in", "output_file": "sum.out"}
    unlimited = {**CODE_CONTESTS, "time_limit": None, "memory_limit_bytes": 0}
    task = loaded(tmp_path, "code_contests", CODE_CONTESTS, from_file, unlimited)
    program = "a, b = map(int, input().split())\nprint((a + b) / 2)"
    mean = "a, b = map(int, input().split())\nprint({})"
    answers = {
        block(program): "right",
        block(program + "\nx = bytearray(b'1') * 350_000_000"): "memory",
        block(program + "\nfor _ in range(10**10): pass"): "timeout",
        block("print({'1 2': 1.5}.get(input(), 1000001))"): "wrong output",  # passes public and private tests
        block(mean.format("(a + b) // 2 if a > 9 else (a + b) / 2")): "right",
        block(mean.format("(a + b) // 2 + 1 if a > 9 else (a + b) / 2")): "wrong output",  # 1000002, not 1000001
        block(mean.format("(a + b) / 2 + (a == 7) / 1e4")): "wrong output",
    }
    assert verdicts(task, *answers) == list(answers.values())
    assert verdicts(task, block(program), problem=1) == [None]
    assert verdicts(task, block(program), problem=2) == ["right"]
    grader = build_grader(task.config.reward, task.config.options)
    assert "must read the file 'sum.in'" in str(grader.unreadable(task.problems[1]))
    grader.close()
    count = {"input": ["1\n"], "output": ["1000000\n"]}
    whole = {**CODE_CONTESTS, "public_tests": count, "private_tests": count, "generated_tests": count}
    task = loaded(tmp_path, "code_contests", whole)
    assert verdicts(task, block("print(10**6)"), block("print(10**6 + 0.5)")) == ["right", "wrong output"]
    limits = usual_columns(["q"], {name: [value] for name, value in CODE_CONTESTS.items()})[0]
    assert (limits.time_limit, limits.memory_mb, len(limits)) == (1.5, 244, 4)


@pytest.mark.skipif(not DATA.is_dir(), reason="no copies of the public datasets next to the checkout")
def test_local_copies_of_the_public_datasets_are_graded() -> None:
    livecodebench = load_task("livecodebench", data_dir=DATA)
    assert len(livecodebench.problems) == 3 and livecodebench.config.groups == []
    three_cards = (
        "for _ in range(int(input())):\n    s = input()\n    print('YES' if sum(map(ne, s, 'abc')) < 3 else 'NO')"
    )
    seniors = "class Solution:\n    def countSeniors(self, d: List[str]) -> int:\n        "
    assert verdicts(livecodebench, block(three_cards), block("print('YES')")) == ["right", "wrong output"]
    answers = [block(f"{seniors}return sum(int(x[11:13]) > {age} for x in d)") for age in (60, 40)]
    assert verdicts(livecodebench, *answers, problem=1) == ["right", "wrong output"]
    leetcode = load_task("leetcode", data_dir=DATA, limit=3)
    assert [verdicts(leetcode, leetcode.references[p.id], problem=i) for i, p in enumerate(leetcode.problems)] == [
        ["right"], ["right"], ["right"]
    ]  # fmt: skip
    contests = load_task("code_contests", data_dir=DATA)
    assert len(contests.problems) == 165 and all(verdicts(contests, "none", problem=i) for i in range(2))
