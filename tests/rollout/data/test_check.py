"""The check of prompts before training, shared by processes."""

import json
from pathlib import Path

import pytest

from rollout.data.check import PromptSurvey, conclude, survey_prompts
from rollout.data.prompts import Prompter
from rollout.data.sources import Source, load_source
from tests.conftest import byte_tokenizer

STRICT = "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}{{ messages[0].content }}"


def source_of(folder: Path, prompts: list) -> Source:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return load_source(dataset_name=str(path))


def surveyed(source: Source, prompter: Prompter, num_processes: int) -> list[PromptSurvey]:
    return [
        survey_prompts(source, prompter, process_index=i, num_processes=num_processes) for i in range(num_processes)
    ]


def plain(max_prompt_length: int = 5) -> Prompter:
    return Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=max_prompt_length)


def user(*contents: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content} for content in contents]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_skipped_rows_are_counted_by_reason(tmp_path: Path, num_processes: int):
    source = source_of(tmp_path, ["1", None, "22", "a long one", "4", "another long one", "5", "6"])
    surveys = surveyed(source, plain(), num_processes)
    assert conclude("data", surveys, size=8, max_prompt_length=5) == (
        "data: 3 of 8 rows will be skipped (37.5%): 2 too long, 1 empty."
    )


def test_nothing_to_say_of_good_rows(tmp_path: Path):
    source = source_of(tmp_path, ["1", "2"])
    assert conclude("data", surveyed(source, plain(), 2), size=2, max_prompt_length=5) is None


@pytest.mark.parametrize("num_processes", [1, 2])
def test_all_rows_too_long_is_an_error(tmp_path: Path, num_processes: int):
    source = source_of(tmp_path, ["aaa", "bbb", "ccc"])
    surveys = surveyed(source, plain(2), num_processes)
    with pytest.raises(ValueError, match=r"max_prompt_length=2: none of 3 rows is usable \(3 too long\). Raise it"):
        conclude("data", surveys, size=3, max_prompt_length=2)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_a_row_that_the_template_rejects_is_an_error_with_its_number(tmp_path: Path, num_processes: int):
    source = source_of(tmp_path, [user("a"), user("b"), user("c", "d"), user("e", "f")])
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = STRICT
    surveys = surveyed(source, Prompter(tokenizer, template="chat", max_prompt_length=9), num_processes)
    with pytest.raises(
        ValueError,
        match=r"data: 2 of 4 rows cannot become a prompt. The first: rows.jsonl/train/2: .* it: one turn only. Fix",
    ):
        conclude("data", surveys, size=4, max_prompt_length=9)


def test_a_large_dataset_is_sampled_and_an_endless_one_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("rollout.data.check.MAX_ROWS", 10)
    surveys = surveyed(source_of(tmp_path, [None, *map(str, range(40))] * 2), plain(), 3)
    assert sum(survey.num_rows for survey in surveys) == 10
    assert survey_prompts(load_source(task="arithmetic"), plain(300)).num_rows == 1000
