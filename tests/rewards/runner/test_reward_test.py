"""`grpo reward-test`, run as a command on small files."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

MINE = """
def short(prompts, completions, completion_ids, *, limit=3, log_metric=None, **kwargs):
    log_metric("tokens", sum(map(len, completion_ids)) / len(completion_ids))
    return [float(len(ids) <= limit) for ids in completion_ids]

def shout(prompts, completions, word, **kwargs):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [None if w is None else float(t == w.upper()) for t, w in zip(texts, word)]

def crash(prompts, completions, **kwargs):
    return [1 / (len(c) - 3) for c in completions]

def leave(prompts, completions, **kwargs):
    raise SystemExit(3)
"""


@pytest.fixture
def reward_test(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)

    def run(function: str, *rows: dict, flags: tuple = (), options: tuple = (), columns: int | None = None):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [sys.executable, "-m", "grpo", "reward-test", *flags, function, str(path), *options]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | (
            {"COLUMNS": str(columns)} if columns else {}
        )
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_expected_rewards_exit_with_0(reward_test):
    done = reward_test(
        "mine.py:shout",
        {"completion": "PARIS", "word": "paris", "expected": 1},
        {"completion": [{"role": "assistant", "content": "ROME"}], "prompt": "q", "word": "rome", "expected": True},
        {"completions": ["OSLO", "oslo"], "word": "oslo", "expected": [1.0, 0.0]},
        {"completion": "x", "word": None, "expected": None},
        {"completion": "no expectation", "word": "x"},
    )
    assert done.returncode == 0, done.stderr
    assert "5 of 5 as expected" in done.stdout
    assert "6 completions: mean 0.6; 3 x 1, 2 x 0, 1 x None" in done.stdout
    assert "time: mean " in done.stdout and "p99 " in done.stdout and "slowest: rows.jsonl:" in done.stdout


def test_an_unexpected_reward_is_shown_and_exits_with_1(reward_test):
    rows = [{"completion": "A", "word": "a", "expected": 1, "id": f"good/{i}"} for i in range(30)]
    done = reward_test("mine.py:shout", *rows, {"completion": "b " * 200, "word": "b", "expected": 1, "id": "bad/7"})
    assert done.returncode == 1
    assert "30 of 31 as expected, 1 not" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "bad/7" in line and "slowest" not in line]
    assert line.split()[:3] == ["bad/7", "b", "b"] and line.split()[-3:-1] == ["0", "1"]
    assert "good/1 " not in done.stdout.split("completions:")[0]


def test_options_columns_and_tokenizer_are_used(reward_test):
    row = {"text": "x", "completion": "12345"}
    tokenizer = ("--tokenizer", str(ROOT / "recipes" / "v3_base"))
    done = reward_test("mine.py:short", row | {"expected": 1}, flags=tokenizer, options=("limit=9",))
    assert done.returncode == 0, done.stderr
    assert "tokens: mean 3" in done.stdout
    assert reward_test("mine.py:short", row | {"completion_ids": [1, 2, 3, 4], "expected": 0}).returncode == 0
    renamed = {"completion": "ROME", "city": "rome", "expected": 1}
    assert reward_test("mine.py:shout", renamed, flags=("--columns", "{word: city}")).returncode == 0
    built_in = {"completion": "<answer>4</answer>", "answer": "4", "expected": 1}
    assert reward_test("exact_match", built_in).returncode == 0


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_the_terminal(reward_test, width):
    rows = [{"completion": "word " * 100, "word": "x", "id": "an/identifier/that/is/long/indeed/7"}] * 3
    table = reward_test("mine.py:shout", *rows, columns=width).stdout.split("3 completions")[0]
    assert max(map(len, table.splitlines())) <= width
    assert "word word" in table


@pytest.mark.parametrize(
    ("function", "row", "flags", "message"),
    [
        ("mine.py:shout", {"completion": "a"}, (), "needs the column 'word', but problem 'rows.jsonl:1' has none"),
        ("mine.py:short", {"completion": "a"}, (), "rows.jsonl:1 has no column 'completion_ids'"),
        ("mine.py:shout", {"text": "a", "word": "a"}, (), "must have either `completion` or `completions`"),
        ("mine.py:shout", {"completion": 3, "word": "a"}, (), "a completion must be a string or a list of one message"),
        ("mine.py:shout", {"completion": "a"}, ("--columns", "{word: w}"), "no column 'w', which `columns` names"),
        ("mine.py:shout", {"completions": ["a"], "word": "a", "expected": [1, 2]}, (), "has 2 values in `expected`"),
        (
            "mine.py:shout",
            {"completions": ["a", "b"], "word": "a", "expected": 1},
            (),
            "has no list of values in",
        ),
        ("mine.py:shout", {"completion": "a", "word": "a", "expected": "x"}, (), "`expected` has 'x'. Each must be a"),
        ("mine.py:shout", {"completions": "ab", "word": "a"}, (), "`completions` must be a list, not 'ab'"),
        ("mine.py:leave", {"completion": "a"}, (), "reward 'leave' called sys.exit(3), which would end the run."),
        ("mine.py:shot", {"completion": "a"}, (), "does not define 'shot'. Did you mean 'shout'?"),
        ("mine.py:crash", {"completion": "abc"}, (), "reward 'crash' raised ZeroDivisionError: division by zero"),
        ("exact_match", {"completion": "a"}, ("--tokenizer", "/tmp/nope"), "--tokenizer /tmp/nope: "),
        ("acuracy", {"completion": "a"}, (), "Did you mean 'accuracy'?"),
    ],
)
def test_user_errors_are_messages_and_not_tracebacks(reward_test, function, row, flags, message):
    done = reward_test(function, row, flags=flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == (function in ("mine.py:crash", "mine.py:leave"))  # the function's own


def test_a_reward_file_that_cannot_be_imported_exits_with_2(reward_test, tmp_path):
    (tmp_path / "other.py").write_text("import no_such_module\n")
    done = reward_test("other.py:f", {"completion": "a"})
    assert done.returncode == 2
    assert done.stderr.count('  File "') == 1 and "No module named 'no_such_module'" in done.stderr


def test_a_file_that_does_not_exist_is_said_to_be_missing(tmp_path):
    command = [sys.executable, "-m", "grpo", "reward-test", "format", "no.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and "no.jsonl does not exist." in done.stderr


def test_wrong_usage_prints_help(tmp_path):
    for arguments in ([], ["format"], ["format", "rows.jsonl", "limit"], ["format", "no.jsonl"]):
        command = [sys.executable, "-m", "grpo", "reward-test", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
        assert done.returncode == 2 and (".jsonl" in done.stderr), done.stderr
