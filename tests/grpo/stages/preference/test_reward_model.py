"""The reward model: what it reads, what it learns, that it is scored as trained, and that resuming is exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from grpo.recipe.errors import NonFiniteError, RefusedError
from grpo.recipe.stages.preference import PreferenceData, RewardModelModel, RewardModelRecipe, RewardModelTrainer
from grpo.report.records import read_rows
from grpo.stages.preference.reward_model import (
    LoadedPairs,
    PairTokens,
    load_pairs,
    reward_input,
    run_reward_model,
    split,
)
from rewards import reward_model
from rewards.models.reward_input import RewardInput
from tests.conftest import byte_tokenizer

CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ROWS = [
    {"prompt": f"say {i}", "chosen": f"<think>hm</think>dear {i}", "rejected": f"<think>{'x' * (i % 5)}</think>hey {i}"}
    for i in range(24)
]


def pairs_file(folder: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def recipe(folder: Path, model: Path, pairs: str, **trainer: Any) -> RewardModelRecipe:
    data = PreferenceData(dataset_name=pairs, template="{prompt} :", summary_only=True, max_length=40, num_held_out=4)
    settings: dict[str, Any] = {"batch_size": 8, "max_pairs_per_micro_batch": 4, "learning_rate": 3e-3, **trainer}
    return RewardModelRecipe(
        stage="reward_model",
        model=RewardModelModel(model_name_or_path=str(model)),
        data=data,
        trainer=RewardModelTrainer(output_dir=str(folder), **settings),
    )


@pytest.fixture(scope="module")
def trained(tiny_v3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    return run_reward_model(recipe(folder / "run", tiny_v3, pairs_file(folder), max_steps=12, save_steps=6))


def test_one_process_takes_one_of_several_gpus(tiny_v3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else transformers would spread the model over all, which TRL refuses."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run_reward_model(recipe(tmp_path / "run", tiny_v3, pairs_file(tmp_path), max_steps=1))


def test_the_model_reads_template_answer_and_end_token() -> None:
    tokenizer = byte_tokenizer()
    shown = RewardInput(template="{prompt} :", summary_only=True, special_tokens=True)
    said = ["<think>a</think> b", "<think>a"]
    [ids, unfinished] = shown.token_ids(tokenizer, ["q", "q"], said)
    assert tokenizer.decode(ids) == "q :b<eos>" and tokenizer.decode(unfinished) == "q :<eos>"
    tokenizer.chat_template = CHAT
    chat = RewardInput(template="chat", special_tokens=True)
    messages = [{"role": "user", "content": "q"}]
    both = chat.token_ids(tokenizer, ["q", messages], ["a", "a"])
    assert [tokenizer.decode(ids) for ids in both] == ["[user]q[assistant]a"] * 2  # the template writes its own end


def test_an_answer_that_the_prompt_begins_is_read_once() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    prompt = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "The answer"}]
    assert RewardInput().text(tokenizer, prompt, "The answer is 4") == "[user]q[assistant]The answer is 4"


def test_a_row_without_an_answer_is_named(tmp_path: Path) -> None:
    data = PreferenceData(dataset_name=pairs_file(tmp_path, [*ROWS[:1], {**ROWS[1], "chosen": None}]), max_length=40)
    with pytest.raises(RefusedError, match=r"pairs.jsonl/train/1: the column 'chosen' is None; a pair needs text"):
        load_pairs(data, byte_tokenizer(), reward_input(data))


@pytest.mark.parametrize("kind", ["text", "messages"])
def test_pairs_are_tokenized_as_trls_trainer_does(tmp_path: Path, kind: str) -> None:
    trainer = pytest.importorskip("trl.trainer.reward_trainer")
    from datasets import Dataset
    from trl import RewardConfig

    row: dict[str, Any] = dict(ROWS[3])
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    if kind == "messages":
        row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    arguments = RewardConfig(output_dir=str(tmp_path), bf16=False, max_length=None, report_to="none")
    theirs = trainer.RewardTrainer._prepare_dataset(None, Dataset.from_list([row]), tokenizer, arguments, "train")[0]
    data = PreferenceData(dataset_name=pairs_file(tmp_path, [row]))
    [ours] = load_pairs(data, tokenizer, reward_input(data)).rows
    assert (ours.chosen, ours.rejected) == (theirs["chosen_ids"], theirs["rejected_ids"])


def test_it_learns_and_is_scored_as_it_was_trained(trained: Path) -> None:
    rows = [row for row in read_rows(trained / "metrics.jsonl") if "eval/accuracy" in row]
    assert [row["step"] for row in rows] == [0, 12]
    assert rows[-1]["eval/accuracy"] == 1.0 and rows[-1]["eval/margin"] > 1.0 > abs(rows[0]["eval/margin"])
    tokenizer = AutoTokenizer.from_pretrained(trained)
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    with torch.inference_mode():
        alone = model(tokenizer("say 9 :dear 9<eos>", return_tensors="pt").input_ids).logits.item()
    prompts, said = ["say 9"] * 3, ["<think>long thought</think>dear 9", "dear 9", "hey 9"]
    kind, same, rude = reward_model(prompts, said, model_name_or_path=str(trained))
    assert kind == same == pytest.approx(alone, abs=1e-5) and kind > rude + 1  # type: ignore[operator]


def test_an_option_against_the_training_is_refused_before_it_starts(trained: Path) -> None:
    options = {"model_name_or_path": str(trained), "summary_only": False}
    with pytest.raises(ValueError, match=r"has summary_only=False, but .* was trained with summary_only=True. Remove"):
        reward_model.check_columns({}, options)  # type: ignore[attr-defined]


def test_the_balance_bias_stays_and_only_the_head_is_replaced(trained: Path, tiny_v3: Path) -> None:
    before, after = load_file(tiny_v3 / "model.safetensors"), load_file(trained / "model.safetensors")
    biases = [name for name in before if name.endswith("e_score_correction_bias")]
    assert len(biases) == 2 and all(torch.equal(before[name], after[name]) for name in biases)
    assert before.keys() ^ after.keys() == {"lm_head.weight", "score.weight"}


def test_a_killed_run_continues_bitwise(trained: Path, tiny_v3: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copytree(trained / "checkpoint-6", folder / "checkpoint-6")
    shutil.copytree(trained / "checkpoint-6", folder / "checkpoint-7")  # killed while it was written: not marked
    (folder / "checkpoint-7/trainer_state/complete").unlink()
    shutil.copy(trained / "metrics.jsonl", folder)  # with rows of steps that are taken again
    run_reward_model(
        recipe(folder, tiny_v3, pairs_file(tmp_path), max_steps=12, save_steps=6, resume_from_checkpoint=True)
    )
    assert (folder / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()
    rows = [list(read_rows(path / "metrics.jsonl")) for path in (trained, folder)]
    assert [row["step"] for row in rows[1]] == [row["step"] for row in rows[0]]
    assert [row.get("loss") for row in rows[1]] == [row.get("loss") for row in rows[0]]


def test_a_checkpoint_that_was_trained_on_other_pairs_is_refused(trained: Path, tiny_v3: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoint-6", tmp_path / "run" / "checkpoint-6")
    others = pairs_file(tmp_path, [{**row, "chosen": f"{row['chosen']}!"} for row in ROWS])
    with pytest.raises(RefusedError, match=r"data: the rows have changed since .*checkpoint-6, so some would be taken"):
        run_reward_model(recipe(tmp_path / "run", tiny_v3, others, max_steps=12, resume_from_checkpoint=True))


def test_a_dataset_without_a_column_is_refused(tmp_path: Path, tiny_v3: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a", "worse": "b"}]
    with pytest.raises(ValueError, match="has no column 'rejected'; a pair needs prompt, chosen and rejected"):
        run_reward_model(recipe(tmp_path / "run", tiny_v3, pairs_file(tmp_path, rows)))


def test_pairs_that_are_all_too_long_are_refused(tmp_path: Path, tiny_v3: Path) -> None:
    rows = [{"prompt": "q", "chosen": "a" * 50, "rejected": "b"}]
    with pytest.raises(ValueError, match="max_length=40: all 1 pairs are longer, the shortest has 54 tokens"):
        run_reward_model(recipe(tmp_path / "run", tiny_v3, pairs_file(tmp_path, rows)))


def test_pairs_beyond_the_tokenizers_own_limit_are_read_whole(tmp_path: Path) -> None:
    """They were cut there, without their end, and scored whole afterwards."""
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = 8
    rows = [{"prompt": "q", "chosen": "a" * 20, "rejected": "b"}, {"prompt": "q", "chosen": "a" * 40, "rejected": "b"}]
    data = PreferenceData(dataset_name=pairs_file(tmp_path, rows), template="{prompt} :", max_length=40)
    pairs = load_pairs(data, tokenizer, reward_input(data))
    assert [tokenizer.decode(pair.chosen) for pair in pairs.rows] == [f"q :{'a' * 20}<eos>"]
    assert pairs.num_rows == 2


def test_a_model_without_room_for_the_longest_pair_is_refused(tmp_path: Path, tiny_v3: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a" * 600, "rejected": "b"} for i in range(8)]
    long = recipe(tmp_path / "run", tiny_v3, pairs_file(tmp_path, rows))
    with pytest.raises(RefusedError, match="max_model_len=605: the model's context is 512 tokens"):
        run_reward_model(long.model_copy(update={"data": long.data.model_copy(update={"max_length": 1000})}))


def test_positions_that_depend_on_the_longest_pair_beside_are_refused(tmp_path: Path, tiny_llama: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    rows = [{"prompt": f"q{i}", "chosen": "a" * 600, "rejected": "b"} for i in range(8)]
    long = recipe(tmp_path / "run", tmp_path / "model", pairs_file(tmp_path, rows))
    with pytest.raises(RefusedError, match="max_model_len=605: beyond 512 tokens, rope_type=dynamic"):
        run_reward_model(long.model_copy(update={"data": long.data.model_copy(update={"max_length": 1000})}))


def test_a_loss_that_is_not_finite_ends_the_run_without_a_model(tmp_path: Path, tiny_v3: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step \d: (loss|grad_norm) is (nan|inf). Lower trainer.learning_rate"):
        run_reward_model(recipe(tmp_path / "run", tiny_v3, pairs_file(tmp_path), max_steps=6, learning_rate=1e30))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_no_prompt_is_both_trained_on_and_held_out() -> None:
    rows = [PairTokens(f"p{i % 4}", [i], [i]) for i in range(12)]
    train, held_out = split(LoadedPairs(12, rows), 4)
    assert (len(train), len(held_out)) == (6, 6)  # two whole prompts
    assert not {pair.prompt for pair in train} & {pair.prompt for pair in held_out}
    with pytest.raises(ValueError, match="num_held_out=12: no pairs are left to train on of 12"):
        split(LoadedPairs(12, rows), 12)
