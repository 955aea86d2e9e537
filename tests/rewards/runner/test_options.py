"""Options come from the recipe and columns from the dataset; neither becomes the other."""

import io
import json

import pytest
from rich.console import Console

import rewards
from rewards.runner.preflight import inspect_problems, report_findings
from rewards.runner.score import Rewards, RewardSpec
from rollout.types import Problem
from tests.rewards.runner.test_score import group, score_all

DOUBLE = {"input": ["3\n"], "output": ["6\n"]}
NONE = {"input": [], "output": []}
CODE_CONTESTS = {
    "name": "double",
    "public_tests": DOUBLE,
    "private_tests": NONE,
    "generated_tests": NONE,
    "time_limit": {"seconds": 1, "nanos": 500_000_000},
    "memory_limit_bytes": 256_000_000,
    "input_file": "",
    "language": ["CPP"],
}
PROGRAMS = ["```python\nprint(2 * int(input()))\n```", "```python\nprint(input())\n```"]


def preflight(columns, *specs) -> str:
    """The warnings before training on one such problem."""
    console, loaded = Console(file=io.StringIO(), width=200), Rewards(specs, num_workers=0)
    found = inspect_problems([Problem(id="p/0", prompt="q", columns=columns)], loaded)
    report_findings([found], [], loaded, console, complete=True)
    return console.file.getvalue()


def shaped(prompts, completions, *, p=0.5, mode="x", **kwargs):
    assert "p" not in kwargs
    return [p + len(mode)] * len(completions)


def test_no_column_fills_a_keyword_only_option_and_one_warning_says_so():
    columns = {"p": 0.25, "mode": "a mode", "seed": 7}
    assert preflight(columns, RewardSpec(function=shaped, options={"p": 2.0})) == (
        "reward 'shaped': the dataset's column 'mode' does not set the option or argument of that name. "
        "Set the option in the recipe, or rename the column.\n"
        "reward 'shaped': the dataset's column 'p' does not set the option or argument of that name. "
        "Set the option in the recipe, or rename the column.\n"
    )
    assert score_all([{"function": shaped}], [group(["a"], **columns)])[0].rewards == [1.5]
    assert score_all([{"function": shaped, "options": {"p": 2.0}}], [group(["a"], **columns)])[0].rewards == [3.0]


@pytest.mark.parametrize(
    ("function", "columns", "expected"),
    [
        ("accuracy", {"solution": "2", "answer_in": "box"}, [1.0, 0.0]),
        ("exact_match", {"answer": "2", "completion_prefix": "<think>"}, [1.0, 0.0]),
        ("format", {"think_prefilled": True}, [0.0, 0.0]),
        ("random", {"p": 1.0, "seed": 3}, None),
        ("repetition_penalty", {"ngram_size": 0, "max_penalty": 1.0}, None),
        ("multiple_choice", {"answer": "B", "mode": "x"}, [0.0, 0.0]),
    ],
)
def test_columns_with_the_name_of_a_builtins_option_change_nothing(function, columns, expected):
    texts = ["<answer>2</answer>", "<answer>3</answer>"]
    plain = {name: columns[name] for name in ("solution", "answer") if name in columns}
    (scored,) = score_all([{"function": function}], [group(texts, **columns)])
    (without,) = score_all([{"function": function}], [group(texts, **plain)])
    assert scored.breakdown == without.breakdown
    assert expected is None or scored.rewards == expected


def test_an_option_with_the_name_of_a_column_is_an_error():
    def shorter(prompts, completions, limit=200, **kwargs):
        return [1.0]

    loaded = Rewards([RewardSpec(function=shorter, options={"limit": 100})], num_workers=0)
    with pytest.raises(ValueError, match=r"reward 'shorter' has the option 'limit', but the dataset has a column"):
        loaded.check(Problem(id="p/0", prompt="q", columns={"limit": 3}))
    language = Rewards([RewardSpec(function="language", options={"target_language": "zh"})], num_workers=0)
    with pytest.raises(ValueError, match="has the option 'target_language', but the dataset has a column"):
        language.check(Problem(id="p/0", prompt="q", columns={"target_language": "en"}))


def test_a_keyword_only_parameter_without_a_default_reads_its_column():
    def right(prompts, completions, *, solution, **kwargs):
        return [float(text == reference) for text, reference in zip(completions, solution, strict=True)]

    assert score_all([{"function": right}], [group(["2", "3"], solution="2")])[0].rewards == [1.0, 0.0]


def test_a_function_with_only_kwargs_receives_every_column_and_option():
    seen = {}

    def look(prompts, completions, **kwargs):
        seen.update(kwargs)
        return [0.0]

    score_all([{"function": look, "options": {"rate": 3}}], [group(["a"], p=1, mode="m", all_columns=5)])
    assert {name: seen[name] for name in ("p", "mode", "rate", "all_columns")} == {
        "p": [1],
        "mode": ["m"],
        "rate": 3,
        "all_columns": [5],
    }
    assert "completion_prefix" not in seen


@pytest.mark.parametrize("name", ["cosine_scaled", "soft_overlong_punishment", "judge", "reward_model"])
def test_a_missing_option_of_a_builtin_is_an_error_at_start(name):
    option = {"cosine_scaled": "max_len", "soft_overlong_punishment": "max_completion_len", "judge": "model"}.get(
        name, "model_name_or_path"
    )
    with pytest.raises(ValueError, match=f"reward '{name}' needs the option '{option}'. Set it in the recipe"):
        Rewards([RewardSpec(function=name)], num_workers=0)


def test_an_option_cannot_replace_an_argument_of_every_call():
    with pytest.raises(ValueError, match="the option 'prompts' has the name of an argument of every call"):
        Rewards([RewardSpec(function=shaped, options={"prompts": 1})], num_workers=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_code_grades_a_row_of_code_contests(num_workers):
    assert preflight(CODE_CONTESTS, RewardSpec(function="code", options={"time_limit": 2.0})) == (
        "reward 'code': the dataset's column 'language' does not set the option or argument of that name. "
        "Set the option in the recipe, or rename the column.\n"
        "reward 'code': the dataset's column 'time_limit' does not set the option or argument of that name. "
        "Set the option in the recipe, or rename the column.\n"
    )
    specs = [
        {"function": "code", "options": {"time_limit": 2.0}},
        {"function": "cosine_scaled", "options": {"max_len": 10_000, "correctness": "code"}},
        {"function": "relative_length", "options": {"correctness": "code"}},
    ]
    (scored,) = score_all(specs, [group(PROGRAMS, **CODE_CONTESTS)], num_workers)
    assert scored.breakdown["code"] == [1.0, 0.0]
    assert scored.breakdown["cosine_scaled"] == pytest.approx([1.0, -1.0], abs=1e-4)
    assert scored.breakdown["relative_length"] == [-0.5, 0.0]
    columns = {name: [value] * 2 for name, value in CODE_CONTESTS.items()}
    assert rewards.code(["q"] * 2, PROGRAMS, all_columns=columns) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("function", "options", "columns", "reason"),
    [
        ("code", {}, {"tests": None}, "unknown format of tests: NoneType"),
        ("code", {}, {"tests": "{}"}, "unknown format of tests: \\[\\]"),
        ("code", {}, {**CODE_CONTESTS, "input_file": "in.txt"}, "must read the file 'in.txt'"),
        ("code", {}, {**CODE_CONTESTS, "public_tests": NONE}, "stdin tests are empty"),
        (
            "code",
            {},
            {**CODE_CONTESTS, "public_tests": {"input": [1], "output": ["2"]}},
            "need text as input and output",
        ),
        ("code", {}, {"solution": "2"}, "no tests: the columns .* include no `tests`"),
        ("code", {"language": "cpp"}, {"test_list": ["assert f(1) == 2"]}, "assert tests need language 'python'"),
        ("cosine_scaled", {"max_len": 9}, {"solution": None}, "no reference answer"),
        ("cosine_scaled", {"max_len": 9}, {"answer": "2"}, "correctness='accuracy' needs the column 'solution'"),
        ("cosine_scaled", {"max_len": 0}, {"solution": "2"}, "max_len=0.*Choose max_len >= 1"),
        ("relative_length", {"correctness": "countdown"}, {"numbers": [1], "target": "x"}, "'x' is not a whole"),
        ("relative_length", {"correctness": "cuntdown"}, {}, "Did you mean 'countdown'"),
        ("relative_length", {"correctness": "judge"}, {}, "reward 'judge' needs the option 'model'"),
        (
            "soft_overlong_punishment",
            {"max_completion_len": 9, "soft_punish_cache": 10},
            {},
            "soft_punish_cache=10 with",
        ),
        ("repetition_penalty", {"max_penalty": 1.0}, {}, "a penalty must not be positive"),
        ("random", {"p": 1.5}, {}, "p=1.5, but p is a probability"),
        ("judge", {"model": "m", "mode": "pairwise"}, {}, "mode='pairwise' and no column 'reference'"),
        ("judge", {"model": "m"}, {"reference": None}, "no reference answer"),
        ("language", {}, {"target_language": None}, "target_language None is not known"),
        ("reasoning_gym", {}, {"answer": "1", "metadata": None}, "metadata names no task of reasoning_gym"),
        ("reasoning_gym", {}, {"answer": None, "metadata": {"source_dataset": "gcd"}}, "no reference answer"),
    ],
)
def test_every_builtin_checks_its_columns_and_options_before_training(function, options, columns, reason):
    with pytest.raises(ValueError, match=reason):
        preflight(columns, RewardSpec(function=function, options=options))


def test_rows_without_readable_tests_are_left_out():
    good = {"type": "stdin", "cases": [{"input": "3\n", "output": "6\n"}]}
    verdicts = []
    got = rewards.code(
        ["q"] * 3,
        [PROGRAMS[0]] * 3,
        [json.dumps(good), None, {**good, "cases": []}],
        log_extra=lambda column, values: verdicts.extend(values),
    )
    assert got == [1.0, None, None]
    assert verdicts[0] == "passed" and verdicts[1].startswith("tests unreadable: unknown format of tests: NoneType")
