"""Regrading an evaluation, grading external completions, and comparing two evaluations."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

import grpo
from grpo.evaluation.cli import regrade_command
from grpo.evaluation.external import grade_file
from grpo.evaluation.regrade import Regraded, describe, regrade
from grpo.evaluation.results.compare import compare_runs
from grpo.report.lock import lock
from grpo.report.records import read_rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluated(folder: Path, said: list[str], *, name: str = "run") -> Path:
    """A finished evaluation of four problems with the completions `said`."""
    rows = [{"prompt": f"q{i}", "solution": str(i), "level": i % 2, "said": text} for i, text in enumerate(said)]
    data = write(folder / f"{name}.jsonl", rows)
    entry = {"dataset_name": str(data), "reference": "{said}", "groups": ["level"]}
    results = grpo.evaluate(
        model=name, tasks=["t"], define_tasks={"t": entry}, engine={"name": "reference"}, output=str(folder / name)
    )
    return results.folder


SAID = [r"\boxed{0}", r"\boxed{2}", "The answer is 2.", r"\boxed{3}"]


def test_regrading_with_the_same_grader_changes_nothing(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, SAID)
    before = (folder / "samples.jsonl").read_bytes()
    metrics = json.loads((folder / "results.json").read_text())["tasks"]["t"]["metrics"]
    done = regrade(folder)
    assert done.changes == []
    assert (folder / "samples.jsonl").read_bytes() == (folder / "samples.jsonl.previous").read_bytes() == before
    assert done.results.tasks["t"]["metrics"] == metrics and metrics["pass@1"] == 0.5


def test_regrading_with_other_options_or_rewards(tmp_path: Path) -> None:
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
    again = regrade(tmp_path / "mine")  # the reward is remembered
    assert again.changes == [] and again.results.tasks["t"]["reward"].endswith("mine.py:long")


def test_regrading_in_place_keeps_the_samples_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = evaluated(tmp_path, SAID)
    before = (folder / "samples.jsonl").read_bytes()
    file = lock(folder)
    assert file is not None
    with pytest.raises(ValueError, match=rf"run is in use by process {os.getpid()}. Wait for it to end."):
        regrade(folder)
    os.close(file)
    with pytest.raises(ValueError, match=r"has no results\.json"):
        regrade(tmp_path)
    assert not (tmp_path / "run.lock").exists()

    def full(path: Path, rows: list) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("grpo.evaluation.regrade.write_rows", full)
    with pytest.raises(OSError, match="No space"):
        regrade(folder, options={"answer_in": "free_text"})
    assert (folder / "samples.jsonl").read_bytes() == (folder / "samples.jsonl.previous").read_bytes() == before
    assert next(read_rows(folder / "manifest.json"))["tasks"]["t"]["options"] == {}


def external(tmp_path: Path, rows: list[dict[str, Any]], output: str = "out", **options: Any) -> Regraded:
    columns = {"completion": "response", "solution": "gold", "score": "ok"}
    return grade_file(
        write(tmp_path / "theirs.jsonl", rows), "gsm8k", output=tmp_path / output, columns=columns, **options
    )


def test_external_completions_are_graded_and_compared_with_published_verdicts(tmp_path: Path) -> None:
    rows = [
        {"response": r"\boxed{7}", "gold": "#### 7", "ok": True},
        {"response": r"\boxed{8}", "gold": "#### 7", "ok": "pass"},
        {"response": [r"\boxed{9}", None], "gold": "9", "ok": [False, False]},
    ]
    done = external(tmp_path, rows[:2])
    assert done.results.tasks["gsm8k"]["metrics"]["pass@1"] == 0.5
    assert [(c["problem_id"], c["before"], c["now"]) for c in done.changes] == [("gsm8k/1", "right", "wrong")]
    done = external(tmp_path, rows[2:], output="lists")
    assert [(c["sample"], c["before"], c["now"]) for c in done.changes] == [(0, "wrong", "right")]
    assert done.results.tasks["gsm8k"]["metrics"]["num_samples"] == 2
    first, empty = read_rows(tmp_path / "lists" / "samples.jsonl")
    assert "published" in first and empty["completion"] == ""


def test_lines_are_grouped_by_problem_and_joined_with_the_tasks_dataset(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write(data / "gsm8k.jsonl", [{"id": 1, "question": "q1", "answer": "#### 5"},
                                 {"id": 2, "question": "q2", "answer": "#### 6"}])  # fmt: skip
    rows = [{"id": f"G/{n}", "text": text} for n, text in ((2, "6"), (1, "4"), (2, "7"), (1, "5"))]
    done = grade_file(
        write(tmp_path / "theirs.jsonl", rows),
        "gsm8k",
        output=tmp_path / "out",
        columns={"completion": "text"},
        key="id",
        data_dir=data,
        wrap=r"\boxed{{completion}}",
    )
    graded = {(row["problem_id"], row["sample"]): row["verdict"] for row in read_rows(tmp_path / "out/samples.jsonl")}
    assert graded == {
        ("gsm8k/1", 0): "right", ("gsm8k/0", 0): "wrong", ("gsm8k/1", 1): "wrong", ("gsm8k/0", 1): "right",
    }  # fmt: skip
    assert done.changes == []  # the file has no verdicts


AIME = "https://artofproblemsolving.com/wiki/2024_AIME_{}_Problems/Problem_4"


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [
        ([AIME.format("I"), AIME.format("II")], [AIME.format("II"), AIME.format("I")], ["gsm8k/1", "gsm8k/0"]),
        ([AIME.format("I"), AIME.format("II")], ["Problem_4"], "matches no problem of task 'gsm8k', or by its last"),
        (
            [AIME.format("I"), "1"],
            [AIME.format("I"), AIME.format("II")],
            "matches gsm8k/0 by its last part, and so did",
        ),
        (["same", "same"], ["same"], "gsm8k/0 and gsm8k/1 both have 'same'. Set --key to a column that identifies"),
        (["Mbpp/2", "Mbpp/3"], [3, 2, 3], ["gsm8k/1", "gsm8k/0", "gsm8k/1"]),
    ],
)
def test_lines_join_the_problem_with_their_key_or_none(
    tmp_path: Path, ours: list[str], theirs: list[Any], outcome: list[str] | str
) -> None:
    write(
        tmp_path / "gsm8k.jsonl", [{"url": url, "question": "q", "answer": f"#### {i}"} for i, url in enumerate(ours)]
    )
    path = write(tmp_path / "theirs.jsonl", [{"url": url, "text": "1"} for url in theirs])

    def graded() -> list[str]:
        grade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "text"}, key="url", data_dir=tmp_path)
        return [row["problem_id"] for row in read_rows(tmp_path / "out" / "samples.jsonl")]

    if isinstance(outcome, str):
        with pytest.raises(ValueError, match=outcome):
            graded()
    else:
        assert graded() == outcome


def test_missing_columns_in_an_external_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no column 'ok' \(for 'score'\). Columns: response, gold"):
        external(tmp_path, [{"response": "", "gold": "1"}])
    path = write(tmp_path / "x.jsonl", [{"response": "1"}])
    with pytest.raises(ValueError, match="its reward 'accuracy' needs a column 'solution'"):
        grade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "response"})


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no completions"),
        ('{"response": "1", "gold": "1", "ok": 1}\n\n{"resp', "theirs.jsonl, line 3 is not JSON"),
        ('{"response": "\xfc"}', "theirs.jsonl, line 1 is not JSON: 'utf-8' codec can't decode"),
        ('{"response": ["1", "2"], "gold": "1", "ok": [1]}', "line 1: 2 completions but 1 scores"),
        ('{"response": "1", "gold": "1", "ok": {"pass": 1}}', "must be true, false, a number or text"),
    ],
)
def test_malformed_external_files_are_reported_by_line(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(lines, encoding="latin-1")
    columns = {"completion": "response", "solution": "gold", "score": "ok"}
    with pytest.raises(ValueError, match=message):
        grade_file(path, "gsm8k", output=tmp_path / "out", columns=columns)


def test_inconsistent_or_unknown_problems_are_errors(tmp_path: Path) -> None:
    rows = [{"id": 1, "text": "1", "gold": "1"}, {"id": 1, "text": "1", "gold": "2"}]
    path, columns = write(tmp_path / "x.jsonl", rows), {"completion": "text", "solution": "gold", "problem_id": "id"}
    with pytest.raises(
        ValueError, match=r"line 2: gsm8k/1 has columns {'solution': '2'}, but different ones in an earlier line"
    ):
        grade_file(path, "gsm8k", output=tmp_path / "out", columns=columns)
    data = write(tmp_path / "gsm8k.jsonl", [{"id": 7, "question": "q", "answer": "#### 5"}]).parent
    with pytest.raises(ValueError, match=r"line 1: id=1 matches no problem of task 'gsm8k'"):
        grade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "text"}, key="id", data_dir=data)


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    said = "\ud83d \\boxed{1}"
    path = write(tmp_path / "x.jsonl", [{"text": said, "gold": "1"}])
    done = grade_file(path, "gsm8k", output=tmp_path / "out", columns={"completion": "text", "solution": "gold"})
    assert done.results.tasks["gsm8k"]["metrics"]["pass@1"] == 1.0
    assert [row["completion"] for row in read_rows(tmp_path / "out" / "samples.jsonl")] == [said]


def test_output_never_overwrites_another_evaluation(tmp_path: Path) -> None:
    folder, other = evaluated(tmp_path, SAID), evaluated(tmp_path, SAID[::-1], name="other")
    before = (folder / "samples.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"has a recipe.yaml, which would be lost"):
        regrade(other, output=folder)
    path = write(tmp_path / "x.jsonl", [{"text": "1", "gold": "1"}])
    with pytest.raises(ValueError, match=r"has a recipe.yaml, which would be lost"):
        grade_file(path, "gsm8k", output=folder, columns={"completion": "text", "solution": "gold"})
    assert (folder / "samples.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["samples.jsonl", "results.json"])
def test_output_never_overwrites_ones_own_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{"response": "1", "gold": "1"}])
    before, columns = path.read_bytes(), {"completion": "response", "solution": "gold"}
    with pytest.raises(ValueError, match=rf"output='{tmp_path}' has a {name}, which would be lost. Choose another"):
        grade_file(path, "gsm8k", output=tmp_path, columns=columns)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("option", "message"),
    [("answer_in", "must have the form name=value"), ("answer_in=fre_text", "Did you mean 'free_text'")],
)
def test_unknown_grading_options_are_errors(
    tmp_path: Path, option: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "x.jsonl", [{"text": "1", "gold": "1"}])
    with pytest.raises((SystemExit, ValueError)) as said:
        regrade_command(
            [str(path), "--task", "gsm8k", "--columns", "completion=text,solution=gold", "--option", option,
             "--output", str(tmp_path / "out")]
        )  # fmt: skip
    assert message in capsys.readouterr().err + str(said.value)


def test_command_line_grades_an_external_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "x.jsonl", [{"said": "The answer is 3.", "gold": "3", "ok": 0}])
    options = ["--columns", "completion=said,solution=gold,score=ok", "--option", "answer_in=free_text"]
    regrade_command([str(path), "--task", "gsm8k", *options, "--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "| gsm8k |        1 |       1 | 100.0 [20.7, 100.0] |" in said
    assert "1 of 1 verdicts changed:\n  1 from wrong to right" in said


def test_the_samples_of_a_file_are_counted_one_by_one(tmp_path: Path) -> None:
    rows = [{"response": ["1", "2", "3"], "gold": "1", "ok": 0}, {"response": r"\boxed{1}", "gold": "1", "ok": 1}]
    assert describe(external(tmp_path, rows)) == "None of 4 verdicts changed."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("x.jsonl --task gsm8k --reward code", "x.jsonl is a file, which is regraded without --reward. Leave it out."),
        (". --task gsm8k --key id --data-dir d", ". is a folder, which is regraded without --task, --key, --data-dir."),
        (". --columns a=b --wrap x", ". is a folder, which is regraded without --columns, --wrap. Leave it out."),
        ("x.jsonl --task gsm8k --data-dir d", "--data-dir d has the dataset that --key joins. Add --key, or leave"),
    ],
)
def test_options_that_regrading_does_not_read_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        regrade_command(arguments.split())
    assert message in capsys.readouterr().err


def test_comparison_pairs_the_problems(tmp_path: Path) -> None:
    a = evaluated(tmp_path, SAID, name="a")
    b = evaluated(tmp_path, [r"\boxed{0}", r"\boxed{1}", r"\boxed{2}", r"\boxed{4}"], name="b")
    line = compare_runs(a, b).splitlines()[-1]
    # differences 0, 1, 1, -1: mean 1/4, deviation 0.957, t of 3 degrees of freedom 3.182
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "t", "4", "50.0", "75.0", "+25.0 [-100.0, +100.0]", "2", "1",
    ]  # fmt: skip
    same = compare_runs(a, a).splitlines()[-1]
    assert "+0.0 [-60.2, +60.2]" in same  # no difference in four problems says little
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no results\.json, so it is not a finished evaluation"):
        compare_runs(a, tmp_path / "empty")


def test_comparison_refuses_other_problems_of_the_same_id(tmp_path: Path) -> None:
    a = evaluated(tmp_path, SAID, name="a")
    b = evaluated(tmp_path, SAID[:2], name="b")
    assert "| t    |        2 |" in compare_runs(a, b)
    rows = list(read_rows(b / "problems.jsonl"))
    write(b / "problems.jsonl", [rows[0], {**rows[1], "prompt": "another question"}])
    with pytest.raises(ValueError, match=r"t/1 is another problem in .*/a than in .*/b. Evaluate both on"):
        compare_runs(a, b)
    write(b / "problems.jsonl", [rows[0], {**rows[1], "columns": {"solution": "9"}}])
    assert "t: columns differ between A and B, so the comparison may be invalid." in compare_runs(a, b)
    first, second = ({"response": "1", "gold": gold, "ok": 1} for gold in ("1", "2"))
    theirs = [external(tmp_path, [row], output=row["gold"]).results.folder for row in (first, second)]
    with pytest.raises(ValueError, match="gsm8k/0 is another problem"):
        compare_runs(*theirs)


def test_comparison_notes_different_graders(tmp_path: Path) -> None:
    a = evaluated(tmp_path, SAID)
    regrade(a, options={"answer_in": "free_text"}, output=tmp_path / "free")
    said = compare_runs(a, tmp_path / "free")
    assert "t: A was graded by accuracy {}, B by accuracy {'answer_in': 'free_text'}; part of the difference" in said
    assert "graded by" not in compare_runs(a, a)


def test_regrading_puts_a_prefilled_thought_before_the_completion(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, SAID)
    rows = list(read_rows(folder / "samples.jsonl"))
    assert [row["completion_prefix"] for row in rows] == [""] * 4
    rows[0] |= {"completion_prefix": "<think>\n"}  # an unclosed thought: its box is no answer
    write(folder / "samples.jsonl", rows)
    assert [(c["problem_id"], c["before"], c["now"]) for c in regrade(folder).changes] == [("t/0", "right", "wrong")]
    assert next(read_rows(folder / "samples.jsonl"))["completion_prefix"] == "<think>\n"
