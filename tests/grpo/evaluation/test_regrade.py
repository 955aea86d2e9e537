"""Judging kept samples again, judging those of others, and comparing two evaluations."""

import json
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.evaluation.cli import regrade_command
from grpo.evaluation.foreign import regrade_file
from grpo.evaluation.regrade import Regraded, regrade
from grpo.evaluation.results.compare import compare_runs
from grpo.report.records import read_rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(folder: Path, said: list[str], *, name: str = "run") -> Path:
    """A finished evaluation of four problems, whose answers are `said`."""
    rows = [{"prompt": f"q{i}", "solution": str(i), "level": i % 2, "said": text} for i, text in enumerate(said)]
    data = write(folder / f"{name}.jsonl", rows)
    entry = {"dataset_name": str(data), "reference": "{said}", "groups": ["level"]}
    results = grpo.evaluate(
        model=name, tasks=["t"], define_tasks={"t": entry}, engine={"name": "reference"}, output=str(folder / name)
    )
    return results.folder


SAID = [r"\boxed{0}", r"\boxed{2}", "The answer is 2.", r"\boxed{3}"]


def test_regrading_without_a_change_changes_nothing(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, SAID)
    before = (folder / "samples.jsonl").read_bytes()
    metrics = json.loads((folder / "results.json").read_text())["tasks"]["t"]["metrics"]
    done = regrade(folder)
    assert done.changes == []
    assert (folder / "samples.jsonl").read_bytes() == (folder / "samples.jsonl.previous").read_bytes() == before
    assert done.results.tasks["t"]["metrics"] == metrics and metrics["pass@1"] == 0.5


def test_other_options_and_other_checkers_judge_the_same_samples(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, SAID)
    free = regrade(folder, options={"answer_in": "free_text"}, output=tmp_path / "free")
    assert free.results.tasks["t"]["metrics"]["pass@1"] == 0.75
    assert free.results.tasks["t"]["groups"]["level"]["0"]["pass@1"] == 1.0
    assert [(c["problem_id"], c["before"], c["now"], c["answer"]) for c in free.changes] == [
        ("t/2", "wrong", "right", "2")
    ]
    assert [row["verdict"] for row in read_rows(folder / "samples.jsonl")] == ["right", "wrong", "wrong", "right"]
    (tmp_path / "mine.py").write_text(
        "def long(prompts, completions, **kwargs):\n    return [float(len(c) > 10) for c in completions]\n"
    )
    mine = regrade(folder, reward=f"{tmp_path / 'mine.py'}:long", output=tmp_path / "mine")
    assert mine.results.tasks["t"]["metrics"]["pass@1"] == 0.25
    again = regrade(tmp_path / "mine")  # it remembers its checker
    assert again.changes == [] and again.results.tasks["t"]["reward"].endswith("mine.py:long")


def foreign(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Regraded:
    columns = {"completion": "response", "solution": "gold", "score": "ok"}
    return regrade_file(
        write(tmp_path / "theirs.jsonl", rows), "gsm8k", output=tmp_path / "out", columns=columns, **options
    )


def test_answers_of_others_are_judged_and_compared_with_their_verdicts(tmp_path: Path) -> None:
    rows = [
        {"response": r"\boxed{7}", "gold": "#### 7", "ok": True},
        {"response": r"\boxed{8}", "gold": "#### 7", "ok": "pass"},
        {"response": [r"\boxed{9}", None], "gold": "9", "ok": [False, False]},
    ]
    done = foreign(tmp_path, rows[:2])
    assert done.results.tasks["gsm8k"]["metrics"]["pass@1"] == 0.5
    assert [(c["problem_id"], c["before"], c["now"]) for c in done.changes] == [("gsm8k/1", "right", "wrong")]
    done = foreign(tmp_path, rows[2:])
    assert [(c["sample"], c["before"], c["now"]) for c in done.changes] == [(0, "wrong", "right")]
    assert done.results.tasks["gsm8k"]["metrics"]["num_samples"] == 2
    first, empty = read_rows(tmp_path / "out" / "samples.jsonl")
    assert "published" in first and empty["completion"] == ""


def test_lines_of_one_problem_are_its_samples_and_columns_come_from_the_tasks_dataset(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "gsm8k.jsonl", [{"id": 1, "question": "q1", "answer": "#### 5"},
                                 {"id": 2, "question": "q2", "answer": "#### 6"}])  # fmt: skip
    rows = [{"id": f"G/{n}", "text": text} for n, text in ((2, "6"), (1, "4"), (2, "7"), (1, "5"))]
    done = regrade_file(
        write(tmp_path / "theirs.jsonl", rows),
        "gsm8k",
        output=tmp_path / "out",
        columns={"completion": "text"},
        key="id",
        data_dir=data,
        wrap=r"\boxed{{completion}}",
    )
    judged = {(row["problem_id"], row["sample"]): row["verdict"] for row in read_rows(tmp_path / "out/samples.jsonl")}
    assert judged == {
        ("gsm8k/1", 0): "right", ("gsm8k/0", 0): "wrong", ("gsm8k/1", 1): "wrong", ("gsm8k/0", 1): "right",
    }  # fmt: skip
    assert done.changes == []  # there is no verdict of theirs


def test_columns_that_a_file_lacks_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'ok' \(for 'score'\). It has: response, gold"):
        foreign(tmp_path, [{"response": "", "gold": "1"}])
    path = write(tmp_path / "x.jsonl", [{"response": "1"}])
    with pytest.raises(ValueError, match="its reward 'accuracy' reads the column 'solution'"):
        regrade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "response"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "holds no answers"),
        ('{"response": "1", "gold": "1", "ok": 1}\n\n{"resp', "theirs.jsonl, line 3 is not JSON"),
        ('{"response": ["1", "2"], "gold": "1", "ok": [1]}', "line 1: 2 completions and 1 scores"),
        ('{"response": "1", "gold": "1", "ok": {"pass": 1}}', "a verdict is true or false, a number or a text"),
    ],
)
def test_file_that_cannot_be_judged_is_said_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(lines)
    columns = {"completion": "response", "solution": "gold", "score": "ok"}
    with pytest.raises(ValueError, match=message):
        regrade_file(path, "gsm8k", output=tmp_path / "out", columns=columns)


def test_lines_that_do_not_belong_together_are_said(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "1", "gold": "1"}, {"id": 1, "text": "1", "gold": "2"}]
    path, columns = write(tmp_path / "x.jsonl", rows), {"completion": "text", "solution": "gold", "problem_id": "id"}
    with pytest.raises(ValueError, match=r"line 2: gsm8k/1 had other columns in a line before, {'solution': '2'} now"):
        regrade_file(path, "gsm8k", output=tmp_path / "out", columns=columns)
    data = write(tmp_path / "gsm8k.jsonl", [{"id": 7, "question": "q", "answer": "#### 5"}]).parent
    with pytest.raises(ValueError, match=r"line 1: id=1 is no problem of task 'gsm8k'"):
        regrade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "text"}, key="id", data_dir=data)


def test_half_of_a_character_is_kept_as_it_is(tmp_path: Path) -> None:
    said = "\ud83d \\boxed{1}"
    path = write(tmp_path / "x.jsonl", [{"text": said, "gold": "1"}])
    done = regrade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "text", "solution": "gold"})
    assert done.results.tasks["gsm8k"]["metrics"]["pass@1"] == 1.0
    assert [row["completion"] for row in read_rows(tmp_path / "out" / "samples.jsonl")] == [said]


def test_samples_of_an_evaluation_are_not_replaced_by_others(tmp_path: Path) -> None:
    folder, other = evaluated(tmp_path, SAID), evaluated(tmp_path, SAID[::-1], name="other")
    before = (folder / "samples.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"is the folder of an evaluation, and its samples would be lost"):
        regrade(other, output=folder)
    path = write(tmp_path / "x.jsonl", [{"text": "1", "gold": "1"}])
    with pytest.raises(ValueError, match=r"is the folder of an evaluation, and its samples would be lost"):
        regrade_file(path, "gsm8k", output=folder, columns={"completion": "text", "solution": "gold"})
    assert (folder / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("option", "message"),
    [("answer_in", "the form is name=value"), ("answer_in=fre_text", "Did you mean 'free_text'")],
)
def test_option_that_the_checker_does_not_have(
    tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "1", "gold": "1"}])
    with pytest.raises((SystemExit, ValueError)) as said:
        regrade_command(
            [str(path), "--task", "gsm8k", "--columns", "completion=text,solution=gold", "--option", option,
             "--output", str(tmp_path / "out")]
        )  # fmt: skip
    assert message in capsys.readouterr().err + str(said.value)


def test_command_line_regrades_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [{"said": "The answer is 3.", "gold": "3", "ok": 0}])
    options = ["--columns", "completion=said,solution=gold,score=ok", "--option", "answer_in=free_text"]
    regrade_command([str(path), "--task", "gsm8k", *options, "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "| gsm8k |        1 |       1 | 100.0 [20.7, 100.0] |" in said
    assert "1 of 1 verdicts changed:\n  1 from wrong to right" in said


def test_comparison_pairs_the_problems(tmp_path: Path) -> None:
    a = evaluated(tmp_path, SAID, name="a")
    b = evaluated(tmp_path, [r"\boxed{0}", r"\boxed{1}", r"\boxed{2}", r"\boxed{4}"], name="b")
    line = compare_runs(a, b).splitlines()[-1]
    # differences 0, 1, 1, -1: mean 1/4, deviation 0.957, t of 3 degrees of freedom 3.182
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "t", "4", "50.0", "75.0", "+25.0 [-100.0, +100.0]", "2", "1",
    ]  # fmt: skip
    same = compare_runs(a, a).splitlines()[-1]
    assert "+0.0 [+0.0, +0.0]" in same
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no results\.json: it is not the folder of a finished"):
        compare_runs(a, tmp_path / "empty")
