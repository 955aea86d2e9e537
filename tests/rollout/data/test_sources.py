"""Sources: generated tasks and datasets, and the error messages for data that does not fit."""

import json
import re
from pathlib import Path

import pytest
import yaml

from grpo.recipe.config import GRPORecipe
from rollout.data.columns import UnusableRowError
from rollout.data.generated import TaskSource
from rollout.data.prompts import Prompter
from rollout.data.sources import load_source
from rollout.data.stream import ProblemStream, held_out
from rollout.data.tasks import countdown_key
from rollout.types import Problem
from tests.conftest import byte_tokenizer

GSM8K = [
    {
        "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?",
        "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
        "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
    },
    {
        "question": "A robe takes 2 bolts of blue fiber and half that much white fiber.  "
        "How many bolts in total does it take?",
        "answer": "It takes 2/2=<<2/2=1>>1 bolt of white fiber\n"
        "So the total amount of fabric is 2+1=<<2+1=3>>3 bolts of fabric\n#### 3",
    },
    {"question": "2+2?", "answer": "#### 4"},
]
REAL_GSM8K = Path(__file__).parents[4] / "shared/data/eval/gsm8k/test.jsonl"


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return str(path)


# -- generated tasks


def test_problem_i_depends_on_nothing_but_its_index_and_the_seed():
    first, second = TaskSource("countdown", {}, seed=1), TaskSource("countdown", {}, seed=1)
    assert [second[i] for i in (17, 3)] == [first[i] for i in (17, 3)]
    assert first[17].id == "countdown/train/17"
    assert first[17].prompt != TaskSource("countdown", {}, seed=2)[17].prompt


def test_generated_problem_is_pinned():
    """Random access must return the same problems in every version, or a resumed run would see different data."""
    problem = TaskSource("arithmetic", {"min_terms": 3, "max_terms": 3}, split="eval", seed=0)[5]
    assert problem == Problem(id="arithmetic/eval/5", prompt="2+6-1=?", columns={"answer": "7"})


def test_splits_are_disjoint_over_20k_draws():
    keys = {}
    for split in ("train", "eval"):
        source = TaskSource("countdown", {"high": 20, "max_ways": 0}, split=split)
        keys[split] = {
            countdown_key(p.columns["numbers"], p.columns["target"]) for p in map(source.__getitem__, range(10_000))
        }
    assert len(keys["train"]) > 1000 and len(keys["eval"]) > 1000
    assert not keys["train"] & keys["eval"]


def test_task_errors_name_the_nearest():
    with pytest.raises(ValueError, match=r"task 'countdwn' is unknown. Did you mean 'countdown'"):
        load_source(task="countdwn")
    with pytest.raises(ValueError, match=r"no option 'number'. Did you mean 'numbers'.*Options: numbers, low, high"):
        load_source(task="countdown", task_options={"number": 4})
    with pytest.raises(ValueError, match=r"countdown needs numbers >= 2"):
        load_source(task="countdown", task_options={"numbers": 1})
    with pytest.raises(ValueError, match=r"task 'countdown': numbers='3' must be an integer. Write it without quotes"):
        load_source(task="countdown", task_options={"numbers": "3"})
    with pytest.raises(ValueError, match=r"task 'arithmetic': max_terms=5.5 must be an integer"):
        load_source(task="arithmetic", task_options={"min_terms": 5, "max_terms": 5.5})


def test_missing_reasoning_gym_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr("rollout.data.generated.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install reasoning-gym"):
        load_source(task="reasoning_gym:chain_sum")


def test_reasoning_gym_task_by_name():
    pytest.importorskip("reasoning_gym")
    train = load_source(task="reasoning_gym:chain_sum", task_options={"min_terms": 2, "max_terms": 3}, seed=1)
    evaluation = load_source(
        task="reasoning_gym:chain_sum", task_options={"min_terms": 2, "max_terms": 3}, split="eval"
    )
    assert train[4] == train[4]
    assert train[4].columns["metadata"]["source_dataset"] == "chain_sum"
    assert not {train[i].prompt for i in range(500)} & {evaluation[i].prompt for i in range(500)}
    with pytest.raises(ValueError, match=r"Did you mean 'chain_sum'"):
        load_source(task="reasoning_gym:chain_sums")
    with pytest.raises(ValueError, match=r"Did you mean 'max_terms'"):
        load_source(task="reasoning_gym:chain_sum", task_options={"max_term": 3})
    with pytest.raises(ValueError, match=r"task_options=\{'min_terms': '2'\}: task 'reasoning_gym:chain_sum' refuses"):
        load_source(task="reasoning_gym:chain_sum", task_options={"min_terms": "2"})


# -- datasets


def test_gsm8k_rows_from_jsonl(gsm8k: str):
    source = load_source(dataset_name=gsm8k, columns={"prompt": "question", "solution": "answer"})
    assert source.size == 3
    assert source[2] == Problem(id="gsm8k.jsonl/train/2", prompt="2+2?", columns={"solution": "#### 4"})


def test_parquet_rows_keep_columns_that_are_not_renamed(tmp_path: Path):
    from datasets import Dataset

    path = tmp_path / "math.parquet"
    rows = [
        {"problem": "1+1", "solution": "So \\boxed{2}.", "level": 5},
        {"problem": "2+2", "solution": "\\boxed{4}", "level": 1},
    ]
    Dataset.from_list(rows).to_parquet(path)
    source = load_source(dataset_name=str(path), columns={"prompt": "problem"})
    assert source[0] == Problem(
        id="math.parquet/train/0", prompt="1+1", columns={"solution": "So \\boxed{2}.", "level": 5}
    )


def test_conversational_prompts_reach_the_chat_template(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "1+1"}], "solution": "2"}) + "\n")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    chat = Prompter(tokenizer, template="chat", max_prompt_length=50)
    [prompt] = ProblemStream(load_source(dataset_name=str(path)), chat, seed=0).take(1)
    assert tokenizer.decode(prompt.token_ids) == "<user>1+1"


def test_dataset_split_accepts_slices(gsm8k: str):
    rest = load_source(dataset_name=gsm8k, dataset_split="train[:-1]", columns={"prompt": "question"})
    last = load_source(dataset_name=gsm8k, dataset_split="train[-1:]", columns={"prompt": "question"})
    assert (rest.size, last.size, last[0].prompt) == (2, 1, "2+2?")


def test_data_errors_name_what_the_source_has(gsm8k: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no column 'qestion'. Did you mean 'question'. It has: question, answer"):
        load_source(dataset_name=gsm8k, columns={"prompt": "qestion"})
    with pytest.raises(ValueError, match=r"no column 'prompt'. It has: question, answer.*prompt: question"):
        load_source(dataset_name=gsm8k)
    with pytest.raises(ValueError, match=r"no such file"):
        load_source(dataset_name=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"jsonl', dataset_split='test' cannot be read: Unknown split"):
        load_source(dataset_name=gsm8k, dataset_split="test", columns={"prompt": "question"})
    path = tmp_path / "null.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(UnusableRowError, match=r"null.jsonl/train/1: the prompt is None; it must contain a question"):
        load_source(dataset_name=str(path))[1]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.csv", b"prompt\nx\n", "of files, .json, .jsonl, .parquet are read. Convert it"),
        ("blank.jsonl", b"\n\n", "no rows"),
        ("none.json", b"[]", "no rows"),
        ("cut.parquet", b"PAR1" + b"x" * 40, "dataset_split='train' cannot be read: Parquet magic bytes not found"),
        ("cut.jsonl", b'{"prompt": "a"}\n{"prompt"', "dataset_split='train' cannot be read: JSON parse error"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, reason: str, streaming: bool):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"dataset_name='{tmp_path}/{name}'.*{reason}"):
        load_source(dataset_name=str(tmp_path / name), streaming=streaming)


@pytest.mark.skipif(not REAL_GSM8K.exists(), reason="needs a local copy of GSM8K")
def test_real_gsm8k_loads_completely():
    source = load_source(dataset_name=str(REAL_GSM8K), columns={"prompt": "question", "solution": "answer"})
    assert source.size == 1319
    assert source[0].prompt.startswith("Janet’s ducks lay 16 eggs per day.")
    assert source[0].columns["solution"].endswith("#### 18")
    prompts, _ = held_out(source, Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=400), 64)
    assert len(prompts) == 64 and max(len(prompt.token_ids) for prompt in prompts) <= 400


SHARE_GPT = [
    {"conversations": [{"from": "system", "value": "Rhyme."}, {"from": "human", "value": "1+1"},
                       {"from": "gpt", "value": "2"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"},
                       {"from": "human", "value": "c"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "observation", "value": "b"}]},
]  # fmt: skip


def test_share_gpt_conversations_become_prompt_and_solution(tmp_path: Path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SHARE_GPT))
    for columns in ({}, {"prompt": "conversations"}):
        source = load_source(dataset_name=str(path), columns=columns)
        rhyme, question = {"role": "system", "content": "Rhyme."}, {"role": "user", "content": "1+1"}
        assert source[0] == Problem(id="chat.jsonl/train/0", prompt=[rhyme, question], columns={"solution": "2"})
        assert [message["role"] for message in source[1].prompt if isinstance(message, dict)] == [
            "user",
            "assistant",
            "user",
        ]
        with pytest.raises(UnusableRowError, match=r"chat.jsonl/train/2: a conversation has a turn from 'observation'"):
            source[2]


def test_nested_columns_have_dotted_names(tmp_path: Path):
    path = tmp_path / "verl.jsonl"
    model = {"ground_truth": "2", "style": "rule"}
    rows = [
        {"prompt": "1+1", "reward_model": model},
        {"prompt": "2", "reward_model": None},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for streaming in (False, True):
        columns = {"solution": "reward_model.ground_truth"}
        source = load_source(dataset_name=str(path), columns=columns, streaming=streaming, shuffle_buffer_size=1)
        assert source[0].columns == {"solution": "2", "reward_model": model}
        assert source[1].columns["solution"] is None
        with pytest.raises(ValueError, match=r"'reward_model.ground_trth'. Did you mean 'reward_model.ground_truth'"):
            load_source(dataset_name=str(path), columns={"solution": "reward_model.ground_trth"}, streaming=streaming)


def recipe(**sections) -> GRPORecipe:
    given = {"model": {"model_name_or_path": "any"}, "rewards": [{"function": "accuracy"}]}
    return GRPORecipe(**{**given, "data": {"dataset_name": "rows.jsonl"}, **sections})


def test_rollout_stop_reaches_both_samplings():
    built = recipe(rollout={"stop": ["\n\n", "User:"]})
    assert built.rollout_sampling(0).stop == built.evaluation_sampling().stop == ("\n\n", "User:")
    with pytest.raises(ValueError, match="at least 1 character"):
        recipe(rollout={"stop": [""]})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"task": "countdown", "streaming": True}, "streaming=true with task='countdown'"),
        (
            {"dataset_name": "a", "dataset_split": "train[:5]", "streaming": True},
            r"dataset_split='train\[:5\]': only whole splits",
        ),
        ({"task": "countdown", "chat_template_kwargs": {"a": 1}}, "only template chat uses them"),
    ],
)
def test_data_settings_without_effect_are_refused(data: dict, message: str):
    with pytest.raises(ValueError, match=message):
        recipe(data=data)


# -- documentation


def test_recipes_in_the_documentation_are_valid():
    text = (Path(__file__).parents[3] / "docs/data.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 4
    model = {"model_name_or_path": "any"}
    for block in blocks:
        GRPORecipe(model=model, **{"rewards": [{"function": "countdown"}], **block})
    load_source(task=blocks[0]["data"]["task"], task_options=blocks[0]["data"]["task_options"])
