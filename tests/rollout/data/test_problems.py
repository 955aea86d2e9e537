"""Sources, and the stream: its order, its shares, its resume, and the messages for data that does not fit."""

import json
import re
from pathlib import Path

import pytest
import yaml

from grpo.recipe.config import GRPORecipe
from rollout.data.problems import DatasetSource, ProblemStream, TaskSource, held_out, load_source
from rollout.data.prompts import Prompter
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


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def gsm8k(tmp_path: Path) -> str:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    return str(path)


def numbered(tmp_path: Path, prompts: list[str]) -> DatasetSource:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": prompt} for prompt in prompts]))
    return DatasetSource(str(path))


def prompter(max_prompt_length: int = 300) -> Prompter:
    return Prompter(byte_tokenizer(), template="{prompt}", max_prompt_length=max_prompt_length)


def stream(source, *, seed: int = 0, max_prompt_length: int = 300, **shard: int) -> ProblemStream:
    return ProblemStream(source, prompter(max_prompt_length), seed=seed, **shard)


def ids(prompts) -> list[str]:
    return [prompt.problem.id for prompt in prompts]


# -- generated tasks


def test_problem_is_the_same_whoever_asks_and_whenever():
    first, second = TaskSource("countdown", {}, seed=1), TaskSource("countdown", {}, seed=1)
    assert [second[i] for i in (17, 3)] == [first[i] for i in (17, 3)]
    assert first[17].id == "countdown/train/17"
    assert first[17].prompt != TaskSource("countdown", {}, seed=2)[17].prompt


def test_generated_problem_is_pinned():
    """Random access must give the same problems in every version, or a resumed run would change its data."""
    problem = TaskSource("arithmetic", {"min_terms": 3, "max_terms": 3}, split="eval", seed=0)[5]
    assert problem == Problem(id="arithmetic/eval/5", prompt="2+6-1=?", columns={"answer": "7"})


def test_splits_share_no_problem_over_20k_draws():
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


def test_reasoning_gym_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("rollout.data.problems.find_spec", lambda name: None)
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


# -- datasets


def test_gsm8k_rows_from_jsonl(gsm8k: str):
    source = load_source(dataset_name=gsm8k, columns={"prompt": "question", "solution": "answer"})
    assert source.size == 3
    assert source[2] == Problem(id="gsm8k.jsonl/train/2", prompt="2+2?", columns={"solution": "#### 4"})


def test_rows_from_parquet_keep_the_columns_that_are_not_renamed(tmp_path: Path):
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


def test_dataset_split_takes_slices(gsm8k: str):
    rest = load_source(dataset_name=gsm8k, dataset_split="train[:-1]", columns={"prompt": "question"})
    last = load_source(dataset_name=gsm8k, dataset_split="train[-1:]", columns={"prompt": "question"})
    assert (rest.size, last.size, last[0].prompt) == (2, 1, "2+2?")


def test_data_errors_name_what_is_there(gsm8k: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"no column 'qestion'. Did you mean 'question'. It has: question, answer"):
        load_source(dataset_name=gsm8k, columns={"prompt": "qestion"})
    with pytest.raises(ValueError, match=r"no column 'prompt'. It has: question, answer.*prompt: question"):
        load_source(dataset_name=gsm8k)
    with pytest.raises(ValueError, match=r"no such file"):
        load_source(dataset_name=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r'Unknown split "test"'):
        load_source(dataset_name=gsm8k, dataset_split="test", columns={"prompt": "question"})
    path = tmp_path / "null.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": null}\n')
    with pytest.raises(ValueError, match=r"null.jsonl/train/1: the prompt is None"):
        load_source(dataset_name=str(path))[1]


@pytest.mark.skipif(not REAL_GSM8K.exists(), reason="no copy of GSM8K here")
def test_real_gsm8k_loads_whole():
    source = load_source(dataset_name=str(REAL_GSM8K), columns={"prompt": "question", "solution": "answer"})
    assert source.size == 1319
    assert source[0].prompt.startswith("Janet’s ducks lay 16 eggs per day.")
    assert source[0].columns["solution"].endswith("#### 18")
    prompts = held_out(source, prompter(400), 64)
    assert len(prompts) == 64 and max(len(prompt.token_ids) for prompt in prompts) <= 400


# -- the stream


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_processes_together_take_the_same_problems(num_processes: int, tmp_path: Path):
    prompts = ["x" * (1 + i % 7) for i in range(30)]
    for source, expected_dropped in ((TaskSource("arithmetic", {}), 0), (numbered(tmp_path, prompts), 4)):
        budget = 6 if source.size else 300
        alone = stream(source, max_prompt_length=budget)
        whole = [ids(alone.take(8)) for _ in range(3)]
        shards = [
            stream(source, max_prompt_length=budget, process_index=i, num_processes=num_processes)
            for i in range(num_processes)
        ]
        for step in whole:
            assert sorted(id for shard in shards for id in ids(shard.take(8))) == sorted(step)
        for shard in shards:
            assert shard.state_dict() == alone.state_dict()
            assert shard.num_dropped == alone.num_dropped >= expected_dropped


def test_share_of_a_process_is_every_nth_prompt():
    whole = ids(stream(TaskSource("arithmetic", {})).take(6))
    share = ids(stream(TaskSource("arithmetic", {}), process_index=1, num_processes=2).take(6))
    assert share == [whole[1], whole[3], whole[5]] == ["arithmetic/train/1", "arithmetic/train/3", "arithmetic/train/5"]


def test_resume_goes_on_at_the_exact_position(tmp_path: Path):
    source = numbered(tmp_path, ["x" * (1 + i % 7) for i in range(30)])
    uninterrupted = stream(source, max_prompt_length=6)
    killed = stream(source, max_prompt_length=6)
    assert ids(uninterrupted.take(7)) == ids(killed.take(7))
    resumed = stream(source, max_prompt_length=6)
    resumed.load_state_dict(json.loads(json.dumps(killed.state_dict())))
    for _ in range(8):
        assert ids(resumed.take(7)) == ids(uninterrupted.take(7))
    assert resumed.num_dropped == uninterrupted.num_dropped > 4


def test_each_epoch_visits_every_row_once_in_another_order(tmp_path: Path):
    walk = stream(numbered(tmp_path, [str(i) for i in range(20)]))
    first, second = ids(walk.take(20)), ids(walk.take(20))
    assert sorted(first) == sorted(f"rows.json/train/{i}" for i in range(20))
    assert sorted(second) == sorted(f"rows.json/train/{i}@1" for i in range(20))
    assert [i.removesuffix("@1") for i in second] != first
    assert ids(stream(walk.source, seed=1).take(20)) != first


def test_long_prompts_are_skipped_and_counted(tmp_path: Path):
    walk = stream(numbered(tmp_path, ["1", "22", "a long one", "4"]), max_prompt_length=5)
    assert {prompt.problem.prompt for prompt in walk.take(3)} == {"1", "22", "4"}
    walk.take(9)
    assert walk.num_dropped == 4


def test_stream_of_only_long_prompts_stops_with_the_remedy(tmp_path: Path):
    with pytest.raises(ValueError, match=r"max_prompt_length=2: the last 3 prompts were all longer. Raise it"):
        stream(numbered(tmp_path, ["aaa", "bbb", "ccc"]), max_prompt_length=2).take(3)
    with pytest.raises(ValueError, match=r"max_prompt_length=2: the last 1.* prompts were all longer"):
        stream(TaskSource("arithmetic", {}), max_prompt_length=2).take(8)


def test_held_out_prompts_are_distinct_fixed_and_fit(tmp_path: Path):
    rows = numbered(tmp_path, ["1", "1", "22", "a long one", "4"])
    chosen = [prompt.problem.prompt for prompt in held_out(rows, prompter(5), 10)]
    assert sorted(chosen) == ["1", "22", "4"]
    assert [prompt.problem.prompt for prompt in held_out(rows, prompter(5), 2)] == chosen[:2]
    with pytest.raises(ValueError, match=r"max_prompt_length=0: every held-out prompt is longer"):
        held_out(rows, prompter(0), 2)


def test_held_out_problems_of_a_small_task_are_not_repeated():
    source = TaskSource("countdown", {"numbers": 2, "high": 6, "max_ways": 0}, split="eval")
    prompts = [prompt.problem.prompt for prompt in held_out(source, prompter(), 200)]
    assert 1 < len(prompts) < 200 and len(set(prompts)) == len(prompts)


# -- documentation


def test_recipes_in_the_documentation_are_valid():
    text = (Path(__file__).parents[3] / "docs/data.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert len(blocks) == 3
    model = {"model_name_or_path": "any"}
    for block in blocks:
        GRPORecipe(model=model, **{"rewards": [{"function": "countdown"}], **block})
    load_source(task=blocks[0]["data"]["task"], task_options=blocks[0]["data"]["task_options"])
