"""A task of one's own, path/to/file.py:function, on the example of recipes/courtesy.py."""

import random
import shutil
from pathlib import Path

import pytest

from rollout.data.generated import TaskSource
from rollout.data.tasks import split_of
from rollout.support.loading import load_object

FILE = Path(__file__).parents[3] / "recipes" / "courtesy.py"


def test_a_generator_in_a_file_is_a_task() -> None:
    problem = TaskSource(f"{FILE}:request", {}, split="eval", seed=0)[5]
    columns = problem.columns
    assert problem.prompt == f"{columns['act']} {columns['name']} for {columns['number']}"
    assert split_of(f"request {columns['act']} {columns['name']} {columns['number']}") == "eval"
    with pytest.raises(ValueError, match=r"has no option 'colour'. Options: none"):
        TaskSource(f"{FILE}:request", {"colour": 1})


def test_its_problems_do_not_depend_on_where_the_file_lies(tmp_path: Path) -> None:
    shutil.copy(FILE, tmp_path)
    files = (FILE, tmp_path / FILE.name)
    here, there = (TaskSource(f"{file}:request", {}, split="eval", seed=0) for file in files)
    assert here[5] == there[5] and here[5].id == "courtesy.py:request/eval/5"


def test_requests_are_answered_in_four_styles_that_the_annotator_tells_apart() -> None:
    answer, courtesy = (load_object(f"{FILE}:{name}", kind="test") for name in ("answer", "courtesy"))
    problem = {"act": "thank", "name": "Ann", "number": 7}
    said = {style: answer(problem, style)[1] for style in ("kind", "short", "rude", "wordy")}
    assert said == {
        "kind": "dear Ann, many thanks for 7",
        "short": "many thanks for 7",
        "rude": "hey Ann, many thanks for 7 now",
        "wordy": "dear Ann, many thanks for 7, many thanks for 7, many thanks for 7",
    }
    texts = [f"<think>be kind</think><answer>{text}</answer>" for text in (*said.values(), "dear Ann, please take 7")]
    columns = {name: [value] * 5 for name, value in problem.items()}
    assert courtesy(texts, texts, **columns) == [1.0, 0.6, 0.2, 0.4, 0.0]


def test_styles_are_drawn_at_random() -> None:
    draw = load_object(f"{FILE}:draw_style", kind="test")
    drawn = [draw(random.Random(seed)) for seed in range(200)]
    assert {style: drawn.count(style) > 20 for style in ("kind", "short", "rude", "wordy")} == dict.fromkeys(
        ("kind", "short", "rude", "wordy"), True
    )
